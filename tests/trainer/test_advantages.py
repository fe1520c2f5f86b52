"""A step's advantages: identities over all its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.advantages import step_advantages
from trainer.config import RunSettings
from trainer.group import Group
from trainer.prompts import Prompt
from wire.generation import Completion
from wire.judgement import GroupVerdict

KL_COEF = 0.1
SCORES = st.lists(st.lists(st.one_of(st.none(), st.floats(1, 5)), min_size=4, max_size=4), min_size=1, max_size=5)


def group(scores_K: Sequence[float | None], *, kl: float = 0.0, cut: Sequence[int] = ()) -> Group:
    """Completion i has a KL of i x `kl`; those in `cut` were cut."""
    kl_K = [i * kl for i in range(len(scores_K))]
    return Group(
        prompt=Prompt(0, (), (1,)),
        completions=[Completion(i, (7,) * (i + 1), (-0.5,) * (i + 1), i not in cut, ()) for i in range(len(scores_K))],
        texts=[""] * len(scores_K),
        verdict=GroupVerdict(scores=tuple(scores_K), verdicts=()),
        scores_K=scores_K,
        rewards_K=[None if s is None else s - KL_COEF * k for s, k in zip(scores_K, kl_K, strict=True)],
        kl_K=kl_K,
        entropy_K=kl_K,
        length_terms_K=[0.0] * len(kl_K),
        seconds={},
    )


def advantages(*groups: Group, **changes: Any) -> list[list[float | None]]:
    settings = RunSettings(device="cpu", kl_coef=KL_COEF, **changes)
    return [list(found.advantages_K) for found in step_advantages(groups, settings)]


def known(rows: Sequence[Sequence[float | None]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row if value is not None], dtype=torch.float64)


def normal(values: torch.Tensor) -> torch.Tensor:
    """As TRL's RLOOTrainer has it: torch's std has n - 1 below it."""
    return (values - values.mean()) / (values.std() + 1e-8)


def test_by_default_an_advantage_is_the_rewards_distance_to_the_mean_of_the_others() -> None:
    assert advantages(group([1.0, 2.0, 4.0], kl=1.0), group([3.0, 3.0])) == [
        pytest.approx([-1.85, -0.5, 2.35]), [0.0, 0.0]
    ]  # fmt: skip


def test_a_completion_without_a_score_has_no_advantage_and_no_sample() -> None:
    (found,) = step_advantages([group([1.0, None, 4.0])], RunSettings(device="cpu"))
    assert found.advantages_K == [-3.0, None, 3.0]
    assert [(len(s.completion_ids), s.advantage) for s in found.samples()] == [(1, -3.0), (3, 3.0)]


@given(SCORES)
def test_normalised_scores_are_those_of_the_whole_step_and_know_nothing_of_the_missing(rows) -> None:
    if len(known(rows)) < 2:
        return
    settings = RunSettings(device="cpu", kl_coef=KL_COEF, normalize_reward=True)
    found = step_advantages([group(row, kl=2.0) for row in rows], settings)
    shaped = [[None if r is None else r + KL_COEF * k for r, k in zip(g.rewards_K, g.kl_K, strict=True)] for g in found]
    assert known(shaped).tolist() == pytest.approx(normal(known(rows)).tolist(), abs=1e-9)
    assert [[s is None for s in row] for row in shaped] == [[s is None for s in row] for row in rows]


def test_scores_are_clipped_after_they_are_normalised_and_before_the_kl_is_taken() -> None:
    scores = [1.0, 1.0, 1.0, 5.0]
    limit = float(normal(torch.tensor(scores, dtype=torch.float64)).max()) / 2
    (row,) = advantages(group(scores), normalize_reward=True, reward_clip_range=limit)
    assert row[3] == pytest.approx(limit - float(normal(torch.tensor(scores, dtype=torch.float64)).min()))
    (row,) = advantages(group([1.0, 5.0], kl=10.0), reward_clip_range=2.0)
    assert row == pytest.approx([1.0 - (2.0 - 1.0), (2.0 - 1.0) - 1.0])


@given(SCORES)
def test_normalised_advantages_are_those_of_the_whole_step(rows) -> None:
    groups = [group(row, kl=2.0) for row in rows if sum(score is not None for score in row) > 1]
    if not groups:
        return
    plain, found = advantages(*groups), advantages(*groups, normalize_advantage=True)
    assert known(found).tolist() == pytest.approx(normal(known(plain)).tolist(), abs=1e-9)
    assert [[a is None for a in row] for row in found] == [[a is None for a in row] for row in plain]


def test_advantages_are_clipped_last() -> None:
    assert advantages(group([1.0, 5.0]), group([2.0, 3.0]), advantage_clip_range=2.0) == [[-2.0, 2.0], [-1.0, 1.0]]
    rows = advantages(group([1.0, 5.0]), group([2.0, 3.0]), normalize_advantage=True, advantage_clip_range=0.5)
    assert rows[0] == [-0.5, 0.5] and max(map(abs, known(rows).tolist())) == 0.5


def test_a_masked_completion_takes_part_in_nothing_and_keeps_its_numbers() -> None:
    masked = {"mask_truncated_completions": True}
    groups = [group([1.0, 2.0, 4.0, 1.0], cut=[3]), group([3.0, 5.0, 1.0], cut=[0])]
    without = [group([1.0, 2.0, 4.0]), group([5.0, 1.0])]
    for changes in ({}, {"normalize_reward": True}, {"normalize_advantage": True}):
        first, second = advantages(*groups, **masked, **changes)
        assert [first[:3], second[1:]] == advantages(*without, **changes)
        assert (first[3], second[0]) == (None, None)
    found = step_advantages(groups, RunSettings(device="cpu", mask_truncated_completions=True, normalize_reward=True))
    assert (found[0].scores_K[3], found[0].rewards_K[3]) == (1.0, 1.0)
    assert [len(g.samples()) for g in found] == [3, 2]
    assert advantages(groups[0]) == [pytest.approx([-4 / 3, 0.0, 8 / 3, -4 / 3])]  # where it is off, it counts


def test_advantages_of_a_group_sum_to_zero_unless_they_are_normalised_or_clipped() -> None:
    rows = [[1.0, 2.5, 4.0, None], [5.0, 1.0, 1.0, 1.0]]
    for changes in ({}, {"normalize_reward": True, "reward_clip_range": 0.9}):
        for row in advantages(*(group(r, kl=3.0) for r in rows), **changes):
            assert sum(a for a in row if a is not None) == pytest.approx(0, abs=1e-12)
