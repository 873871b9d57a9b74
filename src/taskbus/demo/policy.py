"""The policy: a small network in plain NumPy that pushes the cart left or right and says how well it expects to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Params", "Policy"]

Array = npt.NDArray[np.float32]
Params = dict[str, Array]

_SIZES = (4, 32, 32, 2)  # observation, two tanh layers, (push, value)
_SCALE: Array = np.array([2.4, 2.0, 0.21, 2.0], dtype=np.float32)  # of an observation, so that all of it is near 1


class Policy:
    """Two outputs for each observation: how strongly to push right (a logit) and the expected return (a value).

    ``params`` is a plain dict of arrays: what is emitted as ``weights`` and put in place at the other end.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self.params: Params = {}
        for layer, (rows, columns) in enumerate(zip(_SIZES, _SIZES[1:], strict=False)):
            last = layer == len(_SIZES) - 2
            spread = 0.01 if last else math.sqrt(2.0 / rows)  # at first both actions are equally likely
            self.params[f"w{layer}"] = (spread * self._random.standard_normal((rows, columns))).astype(np.float32)
            self.params[f"b{layer}"] = np.zeros(columns, np.float32)

    def act(self, observation: npt.NDArray[Any]) -> tuple[int, float]:
        """Choose 0 (left) or 1 (right) by chance, as the policy leans; returns it with the log of its probability."""
        logit = float(self.layers(observation)[-1][0])
        right = self._random.random() < 1.0 / (1.0 + math.exp(-logit))
        return int(right), -math.log1p(math.exp(-logit if right else logit))

    def layers(self, observations: npt.NDArray[Any]) -> list[Array]:
        """The input, every hidden layer and the output, shape (..., 2), for observations of shape (..., 4)."""
        layers = [(observations / _SCALE).astype(np.float32)]
        for layer in range(len(_SIZES) - 1):
            total = layers[-1] @ self.params[f"w{layer}"] + self.params[f"b{layer}"]
            layers.append(total if layer == len(_SIZES) - 2 else np.tanh(total))
        return layers

    def gradient(self, layers: list[Array], slope: npt.NDArray[Any]) -> Params:
        """The gradient for ``params``, from ``layers`` of a batch and the slope of the loss at their output."""
        gradient: Params = {}
        for layer in reversed(range(len(_SIZES) - 1)):
            gradient[f"w{layer}"] = layers[layer].T @ slope
            gradient[f"b{layer}"] = slope.sum(axis=0)
            slope = (slope @ self.params[f"w{layer}"].T) * (1.0 - layers[layer] ** 2)  # tanh' = 1 - tanh²
        return gradient
