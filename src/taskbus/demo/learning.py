"""Learning from a trajectory: an actor-critic step in plain NumPy.

Advantages are generalised estimates (GAE); the step of the policy is clipped as in PPO, because a trajectory was played
with weights that may be a few versions old by the time it arrives.
"""

from __future__ import annotations

import math

import numpy as np

from taskbus.demo.playing import Trajectory
from taskbus.demo.policy import Array, Params, Policy

__all__ = ["Adam", "advantages", "improve"]

_DISCOUNT = 0.99
_TRACE = 0.95
_CLIP = 0.2
_REWARD_SCALE = np.float32(0.1)  # keeps values near the size of the network's other output


def improve(policy: Policy, adam: Adam, trajectory: Trajectory) -> None:
    """Take one step of ``policy`` towards what went better than expected in ``trajectory``."""
    layers = policy.layers(trajectory.observations)
    logits, values = layers[-1].T
    gains = advantages(policy, values, trajectory)
    targets = values + gains
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)

    right = 1.0 / (1.0 + np.exp(-logits))
    side = np.where(trajectory.actions == 1, 1.0, -1.0)
    ratio = np.exp(-np.logaddexp(0.0, -side * logits) - trajectory.log_probs)  # now : when it was played
    inside = np.where(gains > 0, ratio < 1.0 + _CLIP, ratio > 1.0 - _CLIP)

    slope = np.stack([-gains * ratio * inside * (trajectory.actions - right), values - targets], axis=1)
    adam.step(policy.params, policy.gradient(layers, (slope / len(slope)).astype(np.float32)))


def advantages(policy: Policy, values: Array, trajectory: Trajectory) -> Array:
    """How much better than ``values`` each step turned out, looking ahead, ever less, up to its episode's end."""
    ahead = policy.layers(trajectory.next_observations)[-1][:, 1] * ~trajectory.fell
    surprise = (_REWARD_SCALE * trajectory.rewards + _DISCOUNT * ahead - values).tolist()
    keep = np.where(trajectory.ended, 0.0, _DISCOUNT * _TRACE).tolist()
    gain = 0.0
    for step in reversed(range(len(surprise))):
        surprise[step] = gain = surprise[step] + keep[step] * gain
    return np.array(surprise, np.float32)


class Adam:
    """Adam (Kingma and Ba) with the usual decay rates; gradients longer than 0.5 are shortened to that."""

    def __init__(self, params: Params, rate: float) -> None:
        self._rate = rate
        self._steps = 0
        self._mean = {name: np.zeros_like(value) for name, value in params.items()}
        self._square = {name: np.zeros_like(value) for name, value in params.items()}

    def step(self, params: Params, gradient: Params) -> None:
        """Replace every array of ``params`` by one that is a step down ``gradient``."""
        self._steps += 1
        length = math.sqrt(sum(float((slope**2).sum()) for slope in gradient.values()))
        shorten = min(1.0, 0.5 / (length + 1e-8))
        rate = self._rate * math.sqrt(1.0 - 0.999**self._steps) / (1.0 - 0.9**self._steps)
        for name, slope in gradient.items():
            slope = shorten * slope
            self._mean[name] += 0.1 * (slope - self._mean[name])
            self._square[name] += 0.001 * (slope**2 - self._square[name])
            change = rate * self._mean[name] / (np.sqrt(self._square[name]) + 1e-5)
            params[name] = (params[name] - change).astype(np.float32)
