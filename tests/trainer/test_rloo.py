"""The maths, by brute force and identities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.rloo import assemble_reward, importance_weights, leave_one_out, policy_loss

REWARDS = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


@given(REWARDS)
def test_advantages_sum_to_zero_and_are_the_distance_to_the_mean_of_the_others(rewards: list[float]) -> None:
    advantages = leave_one_out(rewards)
    assert sum(a for a in advantages if a is not None) == pytest.approx(0, abs=1e-9)
    for index, advantage in enumerate(advantages):
        others = rewards[:index] + rewards[index + 1 :]
        assert advantage == pytest.approx(rewards[index] - sum(others) / len(others), abs=1e-9)


@given(REWARDS, st.floats(-10, 10))
def test_a_constant_added_to_every_reward_changes_nothing(rewards: list[float], constant: float) -> None:
    shifted = leave_one_out([reward + constant for reward in rewards])
    assert shifted == pytest.approx(leave_one_out(rewards), abs=1e-8)


def test_two_completions_get_plus_and_minus_their_difference() -> None:
    assert leave_one_out([3.0, 1.0]) == [2.0, -2.0]


def test_a_missing_reward_takes_no_part() -> None:
    assert leave_one_out([4.0, None, 1.0]) == [3.0, None, -3.0]
    assert leave_one_out([4.0, None, None]) == [None, None, None]


def test_the_reward_is_score_less_penalty_less_kl() -> None:
    assert assemble_reward(4.0, finished=False, kl=2.0, kl_coef=0.5, missing_eos_penalty=1.0) == (3.0, 2.0)
    assert assemble_reward(4.0, finished=True, kl=2.0, kl_coef=0.5, missing_eos_penalty=1.0) == (4.0, 3.0)
    assert assemble_reward(4.0, finished=False, kl=0.0, kl_coef=0.5, missing_eos_penalty=None) == (4.0, 4.0)


def test_the_importance_weight_is_capped_and_carries_no_gradient() -> None:
    new = torch.tensor([0.0, 5.0, -1.0], requires_grad=True)
    weights = importance_weights(new, torch.zeros(3), cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad


def test_the_gradient_equals_the_estimator_enumerated_on_a_three_token_policy() -> None:
    """All 27 groups of K = 3 one-token completions, each with its probability: the expected gradient of our loss is the
    gradient of the expected reward, computed without any estimator."""
    reward_V = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(3, dtype=torch.float64)
    for draws in itertools.product(range(3), repeat=3):
        logprobs_V = logits.log_softmax(0)
        new_T = logprobs_V[list(draws)]
        advantages = leave_one_out([float(reward_V[token]) for token in draws])
        loss = policy_loss(
            new_T,
            new_T.detach(),
            torch.ones(3, dtype=torch.float64),
            torch.arange(3),
            torch.tensor(advantages, dtype=torch.float64),
            denominator=3,
            cliprange=0.2,
        ).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        expected -= gradient * new_T.sum().exp().detach()
    objective = (logits.softmax(0) * reward_V).sum()
    (truth,) = torch.autograd.grad(objective, logits)
    assert torch.allclose(expected, truth, atol=1e-12)


def test_a_reused_batch_is_clipped_on_the_side_that_would_go_too_far() -> None:
    new_T = torch.tensor([0.5, 0.5, -0.5], requires_grad=True)
    result = policy_loss(
        new_T,
        torch.zeros(3),
        torch.ones(3),
        torch.tensor([0, 1, 2]),
        torch.tensor([1.0, -1.0, -1.0]),
        denominator=3,
        cliprange=0.2,
    )
    result.loss.backward()
    assert result.clipped_N.tolist() == [True, False, True]
    assert new_T.grad is not None
    assert new_T.grad.tolist() == pytest.approx([0.0, math.exp(0.5) / 3, 0.0])


def test_how_a_batch_is_cut_changes_nothing() -> None:
    torch.manual_seed(0)
    new_T, sampled_T = torch.randn(7, requires_grad=True), torch.randn(7)
    segment_T, advantage_N = torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([1.0, -0.5, 2.0])

    def loss(tokens: slice, completions: slice) -> torch.Tensor:
        new = new_T[tokens]
        weight = importance_weights(new, sampled_T[tokens], 2.0)
        segment = segment_T[tokens] - segment_T[tokens].min()
        arguments = (new, new.detach(), weight, segment, advantage_N[completions])
        return policy_loss(*arguments, denominator=3, cliprange=0.2).loss

    (whole,) = torch.autograd.grad(loss(slice(0, 7), slice(0, 3)), new_T)
    (parts,) = torch.autograd.grad(loss(slice(0, 2), slice(0, 1)) + loss(slice(2, 7), slice(1, 3)), new_T)
    assert torch.allclose(whole, parts, atol=1e-7)
