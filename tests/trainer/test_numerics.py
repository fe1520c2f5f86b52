"""The gate between learner and replicas, on gaps whose standard deviation is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from trainer.group import Group
from trainer.numerics import ENOUGH_TOKENS, PATIENCE, NumericsGate, measure_gap
from trainer.prompts import Prompt
from trainer.stats import Moments
from wire.errors import ServiceError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict

EMPTY = Group(Prompt(0, (), (1,)), [], [], GroupVerdict(scores=(), verdicts=()), [], [], [], [], [], {})
V3 = PolicyVersion(0, 3)


def gap(std: float, count: int) -> Moments:
    """Half the tokens one standard deviation above 0, half below."""
    return Moments.of([std, -std] * (count // 2))


def groups(std: float, count: int = 2 * ENOUGH_TOKENS) -> list[Group]:
    """Two groups with a gap of this standard deviation, in `count` tokens each."""
    return [replace(EMPTY, gap=gap(std, count))] * 2


def gate_after(*stds: float) -> NumericsGate:
    gate = NumericsGate(max_first=0.08, max_later=0.15)
    for std in stds:
        gate.check(groups(std), V3)
    return gate


def test_the_first_batch_is_refused_above_its_limit_and_the_message_names_the_causes() -> None:
    gate_after(0.079)
    for std in (0.09, math.nan):
        with pytest.raises(ServiceError) as error:
            gate_after(std)
        text = str(error.value)
        assert f"at version 0.3 the gap between their log-probs has a standard deviation of {std:.3f} nats" in text
        assert "over 1024 tokens" in text and "above max_first_logp_gap (0.08)" in text
        for cause in ("template", "temperature", "not pushed", "dtype", "kernel"):
            assert cause in text


def test_later_batches_may_be_above_the_first_ones_limit() -> None:
    gate_after(0.01, *[0.14] * 10)


@pytest.mark.parametrize("bad", [0.16, math.nan])
def test_three_in_a_row_above_the_later_limit_end_the_run(bad: float) -> None:
    gate = gate_after(0.01, bad, bad)
    with pytest.raises(ServiceError, match=r"for 3 steps in a row: .* above max_logp_gap \(0.15\)"):
        gate.check(groups(bad), V3)


def test_one_good_batch_in_between_begins_the_count_anew() -> None:
    gate_after(0.01, *[0.2] * (PATIENCE - 1), 0.1, *[0.2] * (PATIENCE - 1), 0.1)


def test_a_later_batch_with_too_few_fresh_tokens_tells_nothing_either_way() -> None:
    too_few, enough = ENOUGH_TOKENS // 2 - 2, ENOUGH_TOKENS // 2  # in each of two groups
    gate = gate_after(0.01)
    for _ in range(5):
        gate.check(groups(0.5, too_few), V3)
    gate = gate_after(0.01, 0.2, 0.2)
    gate.check(groups(0.01, too_few), V3)
    with pytest.raises(ServiceError, match="for 3 steps in a row"):
        gate.check(groups(0.2, enough), V3)


def test_a_first_batch_is_judged_however_few_its_tokens() -> None:
    with pytest.raises(ServiceError, match="over 4 tokens"):
        NumericsGate(0.08, 0.15).check(groups(0.2, 2), V3)


def test_infinite_limits_let_everything_pass() -> None:
    gate = NumericsGate(math.inf, math.inf)
    for _ in range(5):
        gate.check(groups(9.0), V3)


def test_a_batch_without_tokens_tells_nothing() -> None:
    NumericsGate(0.08, 0.15).check([EMPTY], V3)


def completion(logprobs: Sequence[float], *spans: tuple[str, int, int]) -> Completion:
    ids = tuple(range(len(logprobs)))
    return Completion(0, ids, tuple(logprobs), True, tuple(VersionSpan(*span) for span in spans))


def test_the_gap_is_learner_minus_replica_of_what_the_held_version_wrote() -> None:
    completions = [
        completion((-1.0, -1.0, -1.0), ("0.2", 0, 1), ("0.3", 1, 3)),
        completion((-2.0, -2.0), ("1.3", 0, 2)),  # another lineage
    ]
    own = [(-1.5, -0.5, -0.75), (-1.0, -1.0)]
    assert measure_gap(completions, own, V3) == Moments.of([0.5, 0.25])
    assert measure_gap(completions, own, PolicyVersion(1, 3)) == Moments.of([1.0, 1.0])
    assert measure_gap(completions, own, None) == Moments()
