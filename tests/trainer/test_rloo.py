"""The maths, by brute force and identities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.config_checks import IMPORTANCE_WEIGHTS
from trainer.rloo import assemble_reward, importance_weights, leave_one_out, normalise, policy_loss

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


def test_normalised_values_are_torchs_own_arithmetic() -> None:
    values = torch.tensor([1.0, 3.5, -2.0, 0.25], dtype=torch.float64)
    expected = (values - values.mean()) / (values.std() + 1e-8)
    assert normalise(values.tolist()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert normalise([2.0, 2.0]) == [0.0, 0.0]


NEW = torch.tensor([0.0, 5.0, -1.0, 0.5])
SEGMENTS = torch.tensor([0, 0, 1, 1])


def weights_of(kind: str, cap: float = 2.0) -> tuple[list[float], list[bool]]:
    new = NEW.clone().requires_grad_()
    weights = importance_weights(new, torch.zeros(4), SEGMENTS, kind=kind, cap=cap)
    assert not weights.weight_T.requires_grad
    return weights.weight_T.tolist(), weights.capped_T.tolist()


def test_an_importance_weight_is_a_ratio_of_tokens_or_sequences_or_1_and_is_capped() -> None:
    assert weights_of("token") == (
        pytest.approx([1.0, 2.0, math.exp(-1), math.exp(0.5)]), [False, True, False, False]
    )  # fmt: skip
    assert weights_of("sequence") == (
        pytest.approx([2.0, 2.0, math.exp(-0.5), math.exp(-0.5)]), [True, True, False, False]
    )  # fmt: skip
    assert weights_of("none") == ([1.0] * 4, [False] * 4)


def test_the_weights_of_no_tokens_are_none() -> None:
    empty = torch.zeros(0)
    for kind in IMPORTANCE_WEIGHTS:
        weights = importance_weights(empty, empty, empty.long(), kind=kind, cap=2.0)
        assert weights.weight_T.shape == weights.capped_T.shape == (0,)


class Chain:
    """A three-token policy that writes two tokens, the second with the first in view: nine completions.

    `table[0]` are the logits of the first token, `table[1 + first]` of the second. All in double precision.
    """

    COMPLETIONS = tuple(itertools.product(range(3), repeat=2))

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def token_logprobs(self) -> Tensor:
        """[9, 2]: of each completion's tokens."""
        rows = self.table.log_softmax(-1)
        return torch.stack([torch.stack([rows[0, a], rows[1 + a, b]]) for a, b in self.COMPLETIONS])


REWARDS_OF_NINE = torch.tensor([1.0, 3.0, -2.0, 0.5, 0.0, 4.0, -1.0, 2.0, 1.5], dtype=torch.float64)


def enumerated_gradient(
    policy: Chain,
    *,
    sampler: Chain | None = None,
    rewards: Tensor = REWARDS_OF_NINE,
    k: int = 2,
    kind: str = "none",
    cut: frozenset[int] = frozenset(),
) -> Tensor:
    """The expected ascent direction of our estimator: every tuple of K completions, times its probability under what
    they are sampled from. Completions in `cut` are masked."""
    sampled_92 = (sampler or policy).token_logprobs().detach()
    logprobs_92 = policy.token_logprobs()
    expected_loss = torch.zeros((), dtype=torch.float64)
    for draws in itertools.product(range(9), repeat=k):
        advantages = leave_one_out([None if draw in cut else float(rewards[draw]) for draw in draws])
        kept = [(draw, advantage) for draw, advantage in zip(draws, advantages, strict=True) if advantage is not None]
        if not kept:
            continue
        index = torch.tensor([draw for draw, _ in kept])
        new_T, sampled_T = logprobs_92[index].flatten(), sampled_92[index].flatten()
        segment_T = torch.arange(len(kept)).repeat_interleave(2)
        weights = importance_weights(new_T, sampled_T, segment_T, kind=kind, cap=1e9)
        advantage_N = torch.tensor([advantage for _, advantage in kept], dtype=torch.float64)
        old_T = new_T.detach()
        loss = policy_loss(
            new_T, old_T, weights.weight_T, segment_T, advantage_N, denominator=len(kept), cliprange=0.2
        ).loss
        expected_loss = expected_loss + loss * sampled_92[list(draws)].sum().exp()
    return -gradient_of(policy, expected_loss)


def gradient_of(policy: Chain, objective: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(objective, policy.table)
    return gradient


@pytest.mark.parametrize("k", [2, 3])
def test_the_expected_gradient_is_the_gradient_of_the_expected_reward(k: int) -> None:
    """On all tuples of K completions of a three-token policy, against a gradient that no estimator has touched."""
    policy = Chain(0)
    truth = gradient_of(policy, (policy.token_logprobs().sum(-1).exp() * REWARDS_OF_NINE).sum())
    assert truth.norm() > 0.1
    assert torch.allclose(enumerated_gradient(policy, k=k), truth, atol=1e-12)


def test_with_k1_in_the_reward_it_is_the_gradient_of_the_reward_less_the_kl() -> None:
    policy, reference, beta = Chain(0), Chain(1), 0.7
    logprob_9 = policy.token_logprobs().sum(-1)
    kl_9 = logprob_9 - reference.token_logprobs().detach().sum(-1)
    truth = gradient_of(policy, (logprob_9.exp() * (REWARDS_OF_NINE - beta * kl_9)).sum())
    rewards = [
        assemble_reward(float(score), finished=True, kl=float(kl), kl_coef=beta, missing_eos_penalty=None)[1]
        for score, kl in zip(REWARDS_OF_NINE, kl_9.detach(), strict=True)
    ]
    found = enumerated_gradient(policy, rewards=torch.tensor(rewards, dtype=torch.float64))
    assert torch.allclose(found, truth, atol=1e-12)
    assert not torch.allclose(enumerated_gradient(policy), truth, atol=1e-2)


def test_sequence_weights_make_another_policys_samples_as_good_as_ones_own() -> None:
    """Without a cap. Token weights leave out how likely the earlier tokens were: close, not equal; none is further."""
    policy, sampler = Chain(0), Chain(0)
    with torch.no_grad():
        sampler.table += 0.3 * Chain(1).table
    truth = gradient_of(policy, (policy.token_logprobs().sum(-1).exp() * REWARDS_OF_NINE).sum())
    distance = {
        kind: float((enumerated_gradient(policy, sampler=sampler, kind=kind) - truth).norm() / truth.norm())
        for kind in IMPORTANCE_WEIGHTS
    }
    assert distance["sequence"] < 1e-12
    assert 1e-3 < distance["token"] < distance["none"]


def test_masking_the_completions_that_were_cut_gives_the_gradient_of_the_reward_of_those_that_end() -> None:
    """Two of the nine count as cut. The gradient is that of E[R | it ends], times the chance that two of K end: nothing
    in it makes ending more or less likely."""
    policy, cut = Chain(0), frozenset({2, 5})
    probability_9 = policy.token_logprobs().sum(-1).exp()
    ends_9 = torch.tensor([index not in cut for index in range(9)], dtype=torch.float64)
    ends = (probability_9 * ends_9).sum()
    truth = gradient_of(policy, (probability_9 * ends_9 * REWARDS_OF_NINE).sum() / ends) * ends.item() ** 2
    assert torch.allclose(enumerated_gradient(policy, cut=cut), truth, atol=1e-12)


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


def test_a_weight_scales_a_tokens_gradient_and_leaves_the_ratio_and_its_clip_alone() -> None:
    """Sequence weights of 3: the ratio exp(0.1) is inside 1 +- 0.2 and must not be taken for exp(0.3), which is not."""
    new_T = torch.tensor([0.05, 0.05, 0.25], requires_grad=True)
    result = policy_loss(
        new_T,
        torch.zeros(3),
        torch.tensor([3.0, 0.5, 0.01]),
        torch.tensor([0, 0, 1]),
        torch.ones(2),
        denominator=2,
        cliprange=0.2,
    )
    result.loss.backward()
    assert result.ratio_N.tolist() == pytest.approx([math.exp(0.1), math.exp(0.25)])
    assert result.clipped_N.tolist() == [False, True]
    assert float(result.loss.detach()) == pytest.approx(-(math.exp(0.1) + 1.2) / 2)
    assert new_T.grad is not None
    assert new_T.grad.tolist() == pytest.approx([-3 * math.exp(0.1) / 2, -0.5 * math.exp(0.1) / 2, 0.0])


@pytest.mark.parametrize("kind", IMPORTANCE_WEIGHTS)
def test_how_a_batch_is_cut_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    new_T, sampled_T = torch.randn(7, requires_grad=True), torch.randn(7)
    segment_T, advantage_N = torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([1.0, -0.5, 2.0])

    def loss(tokens: slice, completions: slice) -> torch.Tensor:
        new = new_T[tokens]
        segment = segment_T[tokens] - segment_T[tokens].min()
        weight = importance_weights(new, sampled_T[tokens], segment, kind=kind, cap=2.0).weight_T
        arguments = (new, new.detach(), weight, segment, advantage_N[completions])
        return policy_loss(*arguments, denominator=3, cliprange=0.2).loss

    (whole,) = torch.autograd.grad(loss(slice(0, 7), slice(0, 3)), new_T)
    (parts,) = torch.autograd.grad(loss(slice(0, 2), slice(0, 1)) + loss(slice(2, 7), slice(1, 3)), new_T)
    assert torch.allclose(whole, parts, atol=1e-7)
