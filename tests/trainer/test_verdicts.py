"""What the judge said, counted: by hand on small groups."""

from __future__ import annotations

import math

import pytest

from trainer.verdicts import LEAST_VERDICTS, VerdictRecord
from wire.errors import ServiceError
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict


def given(scores: tuple[float, float], ranking: int, **facts: float) -> Verdict:
    return Verdict(scores=scores, ranking=ranking, **facts)


def placed(first: int, second: int, verdict: Verdict) -> PlacedVerdict:
    return PlacedVerdict(first=first, second=second, verdict=verdict)


UNREADABLE = Verdict(missing="unreadable", text="no numbers here", attempts=3)
GROUP = GroupVerdict(  # 0 and 1 in both orders; 3 says the same as 0
    scores=(4.0, None, None, 4.0),
    verdicts=(
        placed(0, 1, given((4, 2), 2, completion_tokens=10, seconds=1.0)),
        placed(1, 0, given((3, 3), 3, completion_tokens=20, seconds=3.0, neutralised=2)),
        placed(1, 2, given((2, 4), 1, completion_tokens=30, seconds=2.0)),
        placed(2, 0, UNREADABLE),
    ),
    same_as=(0, 1, 2, 0),
)
EMPTY = GroupVerdict(scores=(1.0, 1.0), verdicts=(), unjudged=(0, 1), same_as=(0, 1))


def test_shares_are_of_what_they_can_be_of() -> None:
    record = VerdictRecord(max_unreadable=1.0)
    record.note(GROUP, [5, 50, 500, 6])
    record.note(EMPTY, [1, 2])
    found = record.drain()
    expected = {
        "judge/verdicts": 4, "judge/missing": 1 / 4, "judge/missing_unreadable": 1 / 4, "judge/missing_timeout": 0.0,
        "judge/attempts": 6 / 4, "judge/completion_tokens": 60 / 4, "judge/seconds": 6 / 4,
        "judge/ties": 1 / 3, "judge/contradictions": 1 / 3, "judge/flips": 1.0, "judge/neutralised": 1 / 4,
        "judge/unjudged": 2 / 6, "judge/duplicates": 1 / 6,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(found["judge/intransitive"])  # no triple was compared all with all


def test_missing_scores_are_shown_by_length_the_shortest_first() -> None:
    record = VerdictRecord(max_unreadable=1.0)
    for _ in range(3):
        record.note(GROUP, [5, 50, 500, 6])
    found = record.drain()
    assert [found[f"judge/missing_length_q{quarter}"] for quarter in (1, 2, 3, 4)] == [0, 0, 1, 1]


def test_drained_counts_start_afresh() -> None:
    record = VerdictRecord(max_unreadable=1.0)
    record.note(GROUP, [5, 50, 500, 6])
    record.drain()
    found = record.drain()
    assert found["judge/verdicts"] == 0 and math.isnan(found["judge/missing"])


@pytest.mark.parametrize(("per_step", "window"), [(4, LEAST_VERDICTS), (64, 64)])
def test_a_part_of_a_step_is_weighed_with_those_before(per_step: int, window: int) -> None:
    whole = GroupVerdict(scores=(4.0, 2.0), verdicts=(placed(0, 1, given((4, 2), 2)),) * window, same_as=(0, 1))
    record = VerdictRecord(max_unreadable=1.0, per_step=per_step)
    record.note(whole, [1, 2])
    record.drain()
    record.note(GROUP, [5, 50, 500, 6])  # one of its four is missing
    found = record.drain()
    assert found["judge/verdicts"] == 4
    assert found["judge/missing"] == found["judge/missing_unreadable"] == 1 / window
    record.note(whole, [1, 2])
    assert record.drain()["judge/missing"] == 0


def test_a_judge_that_cannot_be_read_ends_the_run_with_its_last_words() -> None:
    record = VerdictRecord(max_unreadable=0.2)
    for _ in range(LEAST_VERDICTS // 4):
        record.check()  # too few to tell
        record.note(GROUP, [1, 2, 3, 4])
    with pytest.raises(ServiceError, match=r"4 of the last 16 .*judge_max_unreadable \(0\.2\).*no numbers here"):
        record.check()


def test_a_judge_at_the_limit_goes_on_and_each_verdict_is_checked_once() -> None:
    record = VerdictRecord(max_unreadable=0.25)
    for _ in range(40):
        record.note(GROUP, [1, 2, 3, 4])
        record.check()
        record.drain()  # a step may drain before there were enough to check
    sick = GroupVerdict(scores=(None,) * 4, verdicts=tuple(placed(k, (k + 1) % 4, UNREADABLE) for k in range(4)))
    with pytest.raises(ServiceError, match=r"of the last 16 "):
        for _ in range(8):
            record.note(sick, [1, 2, 3, 4])
            record.check()
