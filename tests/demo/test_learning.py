"""The numbers behind the demo: gradients are right, and a single process learns with them."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from taskbus.demo.learning import Adam, advantages, improve
from taskbus.demo.playing import Player, Trajectory
from taskbus.demo.policy import Policy


def a_trajectory(steps: int, *, fell: bool = False, ended: bool = False) -> Trajectory:
    """Standing still, and at the last step what is asked for."""
    at_the_end = np.arange(steps) == steps - 1
    still = np.zeros((steps, 4), np.float32)
    return Trajectory(
        observations=still,
        actions=np.zeros(steps, np.int8),
        log_probs=np.full(steps, math.log(0.5), np.float32),
        rewards=np.ones(steps, np.float32),
        next_observations=still,
        fell=at_the_end & fell,
        ended=at_the_end & (fell or ended),
        returns=[],
    )


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    policy = Policy(seed=1)
    policy.params = {name: value.astype(np.float64) for name, value in policy.params.items()}
    observations = np.random.default_rng(2).standard_normal((5, 4))
    weight = np.random.default_rng(3).standard_normal((5, 2))

    def loss() -> float:
        return float((weight * policy.layers(observations)[-1]).sum())

    gradient = policy.gradient(policy.layers(observations), weight)
    for name, value in policy.params.items():
        place = tuple(size // 2 for size in value.shape)
        before, step = value[place], 1e-6
        value[place] = before + step
        above = loss()
        value[place] = before - step
        below = loss()
        value[place] = before
        assert gradient[name][place] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


def test_a_new_policy_leans_to_neither_side_and_knows_the_probability_of_what_it_did() -> None:
    policy = Policy(seed=0)
    acts = [policy.act(np.array([0.1, -0.2, 0.02, 0.3])) for _ in range(400)]
    assert 0.4 < mean(action for action, _ in acts) < 0.6
    assert all(math.exp(log_prob) == pytest.approx(0.5, abs=0.1) for _, log_prob in acts)


def test_the_value_of_what_comes_after_a_fall_counts_nothing() -> None:
    policy = Policy(seed=0)
    policy.params["b2"][1] = 7.0  # a value everywhere
    values = policy.layers(np.zeros((1, 4)))[-1][:, 1]
    fell = advantages(policy, values, a_trajectory(1, fell=True))
    cut = advantages(policy, values, a_trajectory(1, ended=True))
    assert fell[0] == pytest.approx(0.1 - 7.0, abs=0.01)
    assert cut[0] == pytest.approx(0.1 + 0.99 * 7.0 - 7.0, abs=0.01)


def test_advantages_look_ahead_only_to_the_end_of_the_episode() -> None:
    policy = Policy(seed=0)
    policy.params = {name: np.zeros_like(value) for name, value in policy.params.items()}
    one = a_trajectory(3)
    gains = advantages(policy, np.zeros(3, np.float32), one)
    assert gains.tolist() == pytest.approx([0.1 * (1 + 0.9405 + 0.9405**2), 0.1 * 1.9405, 0.1], rel=1e-5)
    ended = replace(one, ended=np.array([True, False, False]))
    assert advantages(policy, np.zeros(3, np.float32), ended)[0] == pytest.approx(0.1)


def test_weights_that_were_given_away_are_not_changed_by_the_next_step() -> None:
    policy = Policy(seed=0)
    given = policy.params["w0"]
    before = given.copy()
    improve(policy, Adam(policy.params, rate=0.1), Player(policy, seed=0).play(8))
    assert (given == before).all()
    assert not (policy.params["w0"] == before).all()
    assert {value.dtype for value in policy.params.values()} == {np.dtype(np.float32)}


def test_a_trajectory_goes_on_where_the_last_one_stopped_and_over_the_ends_of_episodes() -> None:
    player = Player(Policy(seed=3), seed=3)
    first, second = player.play(40), player.play(40)
    assert first.observations.shape == first.next_observations.shape == (40, 4)
    assert first.returns and first.ended.sum() == len(first.returns)
    if not first.ended[-1]:
        assert (second.observations[0] == first.next_observations[-1]).all()
    inside = np.flatnonzero(~first.ended[:-1])
    assert (first.observations[inside + 1] == first.next_observations[inside]).all()


def test_one_process_alone_learns_in_a_few_seconds() -> None:
    policy = Policy(seed=0)
    adam, player = Adam(policy.params, rate=2e-3), Player(policy, seed=0)
    for _ in range(300):
        improve(policy, adam, player.play(256))
    onlooker = Player(policy, seed=1)
    assert mean(onlooker.episode() for _ in range(10)) > 150  # about 20 at first
