"""Playing CartPole: what a collector records for the learner, and what an evaluator counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from taskbus.demo.policy import Array, Policy

__all__ = ["Player", "Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """Consecutive steps of one player: arrays with a row for each step, and the returns of the episodes that ended.

    ``fell`` marks the steps after which the pole was down, ``ended`` those and the ones at which the time was up.
    """

    observations: Array
    actions: npt.NDArray[np.int8]
    log_probs: Array
    rewards: Array
    next_observations: Array
    fell: npt.NDArray[np.bool_]
    ended: npt.NDArray[np.bool_]
    returns: list[float]


class Player:
    """One CartPole-v1, with a policy that acts in it."""

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        self.policy = policy
        self._env: gymnasium.Env[Any, Any] = gymnasium.make("CartPole-v1", disable_env_checker=True)
        self._observation: npt.NDArray[Any] = self._env.reset(seed=seed)[0]
        self._return = 0.0

    def play(self, steps: int) -> Trajectory:
        """Go on playing for ``steps`` steps, over the ends of episodes."""
        rows, returns = [], []
        for _ in range(steps):
            row, ended = self._step()
            rows.append(row)
            if ended is not None:
                returns.append(ended)
        observations, actions, log_probs, rewards, next_observations, fell, over = zip(*rows, strict=True)
        return Trajectory(
            np.array(observations, np.float32),
            np.array(actions, np.int8),
            np.array(log_probs, np.float32),
            np.array(rewards, np.float32),
            np.array(next_observations, np.float32),
            np.array(fell),
            np.array(over),
            returns,
        )

    def episode(self) -> float:
        """Play up to the end of the episode; returns the sum of its rewards."""
        while True:
            _, ended = self._step()
            if ended is not None:
                return ended

    def _step(self) -> tuple[tuple[Any, ...], float | None]:
        """One row of a trajectory, and the return of the episode if this was its last step."""
        before = self._observation
        action, log_prob = self.policy.act(before)
        after, reward, fell, time_up, _ = self._env.step(action)
        over = fell or time_up
        self._return += float(reward)
        ended = self._return if over else None
        self._observation = self._env.reset()[0] if over else after
        self._return = 0.0 if over else self._return
        return (before, action, log_prob, reward, after, fell, over), ended
