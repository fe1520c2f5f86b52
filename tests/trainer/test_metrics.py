"""The numbers of a step, on a step small enough to work them out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.group import Group
from trainer.metrics import step_metrics
from trainer.prompts import Prompt
from trainer.stats import Moments, StepStats, merge
from wire.generation import Completion, VersionSpan
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict

STOP = 2
PROMISED = {
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "val/ratio", "val/ratio_var",
    "val/num_eos_tokens", "lr", "episode", "eps", "sampling/logp_diff_mean", "sampling/logp_diff_std",
    "sampling/logp_diff_max", "sampling/ratio_outside_0.9_1.1",
}  # fmt: skip


def completion(index: int, *ids: int, finished: bool = True) -> Completion:
    return Completion(index, ids, (-0.5,) * len(ids), finished, (VersionSpan("0.1", 0, len(ids)),))


def placed(first: int, second: int | None, verdict: Verdict) -> PlacedVerdict:
    return PlacedVerdict(first=first, second=second, verdict=verdict)


def group_with_a_hole() -> Group:
    """Three completions; the judge has no score for the second."""
    verdicts = (
        placed(0, 1, Verdict(missing="timeout", attempts=3, completion_tokens=20)),
        placed(2, 0, Verdict(scores=(4.0, 2.0), ranking=2, completion_tokens=10)),
    )
    return Group(
        prompt=Prompt(0, (), (1,)),
        completions=[completion(0, 7, STOP), completion(1, 8, 9, STOP), completion(2, 7, 7, 7, 7, finished=False)],
        texts=["a", "b", "c"],
        verdict=GroupVerdict(scores=(2.0, None, 4.0), verdicts=verdicts),
        scores_K=[2.0, None, 3.0],
        rewards_K=[1.5, None, 2.0],
        kl_K=[5.0, 100.0, 10.0],
        entropy_K=[1.0, 100.0, 3.0],
        length_terms_K=[-0.5, 0.0, 0.5],
        seconds={"generate": 2.0, "judge": 4.0, "reference": 1.0},
        advantages_K=[-0.5, None, 0.5],
    )


def flat_group() -> Group:
    """Two completions of equal reward, the second never sent to the judge."""
    return Group(
        prompt=Prompt(1, (), (1,)),
        completions=[completion(0, STOP), completion(1)],
        texts=["", ""],
        verdict=GroupVerdict(scores=(1.0, 1.0), verdicts=(), unjudged=(1,)),
        scores_K=[1.0, 1.0],
        rewards_K=[1.0, 1.0],
        kl_K=[0.0, 0.0],
        entropy_K=[0.0, 0.0],
        length_terms_K=[0.0, 0.0],
        seconds={"generate": 4.0, "judge": 0.0, "reference": 3.0},
        advantages_K=[0.0, 0.0],
    )


STATS = StepStats(
    entropy=Moments.of([1.0, 2.0]),
    ratio=Moments.of([0.5, 1.5]),
    logp_diff=Moments.of([-0.3, 0.1]),
    ratio_outside=Moments.of([1.0, 0.0, 0.0, 0.0]),
    weight=Moments.of([1.0, 2.0, 0.0]),
    weight_capped=Moments.of([0.0, 1.0]),
    approx_kl=Moments.of([0.25, 0.75]),
    clipped=Moments.of([0.0, 1.0]),
    loss=-0.125,
    grad_norm=3.0,
    learning_rate=1e-6,
)


def metrics(*groups: Group) -> dict[str, float]:
    return step_metrics(
        groups, STATS, kl_coef=0.1, lags=[0, 1], episode=48, eps=2.5, stop_token_ids=(STOP, 3)
    )  # fmt: skip


def test_every_promised_name_is_there() -> None:
    assert set(metrics(group_with_a_hole())) >= PROMISED


def test_objectives_are_means_over_the_completions_that_have_a_score() -> None:
    found = metrics(group_with_a_hole(), flat_group())
    assert found["objective/scores"] == pytest.approx((2 + 3 + 1 + 1) / 4)
    assert found["objective/rlhf_reward"] == pytest.approx((1.5 + 2 + 1 + 1) / 4)
    assert found["objective/kl"] == pytest.approx((5 + 10) / 4)
    assert found["objective/non_score_reward"] == pytest.approx(-0.1 * (5 + 10) / 4)
    assert found["objective/entropy"] == pytest.approx((1 + 3) / 4)
    assert found["objective/rlhf_reward"] == pytest.approx(
        found["objective/scores"] + found["objective/non_score_reward"]
    )


def test_the_learners_numbers_keep_their_names() -> None:
    found = metrics(group_with_a_hole())
    expected = {
        "policy/approxkl_avg": 0.5, "policy/clipfrac_avg": 0.5, "policy/entropy_avg": 1.5, "policy/grad_norm": 3.0,
        "loss/policy_avg": -0.125, "val/ratio": 1.0, "val/ratio_var": 0.25, "lr": 1e-6, "episode": 48, "eps": 2.5,
        "sampling/logp_diff_mean": -0.1, "sampling/logp_diff_std": 0.2, "sampling/logp_diff_max": 0.3,
        "sampling/ratio_outside_0.9_1.1": 0.25, "sampling/weight_capped": 0.5,
        "sampling/ess": 9 / 5 / 3,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_samples_are_counted_over_all_completions() -> None:
    found = metrics(group_with_a_hole(), flat_group())
    expected = {
        "val/num_eos_tokens": 3, "sample/lag_mean": 0.5, "sample/lag_max": 1, "sample/length_mean": 10 / 5,
        "sample/truncated": 1 / 5, "sample/equal_rewards": 1 / 2, "objective/length_term": 1 / 5,
        "time/generate": 3.0, "time/judge": 2.0, "time/reference": 2.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_what_nobody_measured_is_nan_and_not_zero() -> None:
    found = step_metrics([flat_group()], StepStats(), kl_coef=0, lags=[0], episode=1, eps=1, stop_token_ids=())
    assert math.isnan(found["val/ratio"]) and math.isnan(found["judge/standard_error"])
    assert math.isnan(found["sampling/ess"]) and math.isnan(found["sampling/gap_std"])


def test_the_effective_share_is_1_for_equal_weights_and_1_over_n_for_one_that_outweighs_all() -> None:
    assert Moments.of([0.7] * 5).effective_share == pytest.approx(1)
    assert Moments.of([0, 0, 3.0, 0]).effective_share == pytest.approx(1 / 4)


def test_advantages_that_the_length_turns_are_counted() -> None:
    found = metrics(group_with_a_hole(), flat_group())
    # Rewards 1.5 and 2.0 with the terms, 2.0 and 1.5 without: both advantages turn; the flat group's two are 0.
    assert found["objective/sign_flips"] == pytest.approx(2 / 4)


VALUES = st.lists(st.floats(-100, 100), max_size=6)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_moments_of_parts_add_up_to_those_of_the_whole(parts: list[list[float]]) -> None:
    whole = [value for part in parts for value in part]
    added = merge([StepStats(ratio=Moments.of(part), num_tokens=len(part)) for part in parts])
    assert added.num_tokens == added.ratio.count == len(whole)
    assert added.ratio.largest == max(map(abs, whole), default=0.0)
    if whole:
        mean = sum(whole) / len(whole)
        assert added.ratio.mean == pytest.approx(mean, abs=1e-9)
        assert added.ratio.variance == pytest.approx(sum((v - mean) ** 2 for v in whole) / len(whole), abs=1e-6)
    else:
        assert math.isnan(added.ratio.mean) and math.isnan(added.ratio.variance)
