"""How busy each part was; small enough to work out by hand, and against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.utilisation import Busy, Utilisation
from wire.waits import Wait, Waits

A, B = "replica http://a", "replica http://b"


class Open(Waits):
    """Waits that are not over, since given times."""

    def __init__(self, *waits: Wait) -> None:
        super().__init__()
        self._current = dict.fromkeys(waits)


def hear(utilisation: Utilisation, peer: str, reason: str, *spans: tuple[float, float]) -> None:
    for start, end in spans:
        utilisation.hear(Wait("group 1", peer, reason, start), end)


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=25)


@given(SPANS)
def test_the_union_is_that_of_brute_force_and_the_total_the_sum(spans: list[tuple[int, int]]) -> None:
    busy = Busy()
    ordered = sorted(((start, start + length) for start, length in spans), key=lambda span: span[1])
    for start, end in ordered:
        busy.add(start, end)
    seconds = {second for start, end in ordered for second in range(start, end)}
    assert busy.union == len(seconds)
    assert busy.total == sum(length for _, length in spans)


def test_replicas_are_a_mean_of_shares_and_in_flight_a_mean_number() -> None:
    utilisation = Utilisation(0.0)
    hear(utilisation, A, "writes", (0, 4), (2, 5), (9, 10))
    hear(utilisation, B, "writes", (6, 8))
    found = utilisation.drain(10.0)
    assert found["util/replicas"] == pytest.approx((6 / 10 + 2 / 10) / 2)
    assert found["util/replicas_in_flight"] == pytest.approx((4 + 3 + 1 + 2) / 10)


def test_only_work_counts() -> None:
    utilisation = Utilisation(0.0)
    hear(utilisation, A, "has no room", (0, 4))
    hear(utilisation, A, "does not answer", (0, 5))
    hear(utilisation, "judge http://j", "queue is full", (0, 5))
    hear(utilisation, "learner 0", "saves", (0, 6))
    hear(utilisation, "group 3", "is in the making", (0, 8))
    assert utilisation.drain(10.0) == {
        "util/judge": 0.0, "util/judge_in_flight": 0.0, "util/replicas_in_flight": 0.0
    }  # fmt: skip


def test_the_judge_is_one_part_whichever_server_made_a_verdict() -> None:
    utilisation = Utilisation(0.0, waits=Open(Wait("group 4", "judge http://j", "judges", 8.0)))
    hear(utilisation, "genrm http://g", "judges", (0, 3))
    hear(utilisation, "genrm http://h", "judges", (1, 5))
    found = utilisation.drain(10.0)
    assert found["util/judge"] == pytest.approx(7 / 10)
    assert found["util/judge_in_flight"] == pytest.approx((3 + 4 + 2) / 10)


def test_the_learner_is_a_mean_over_ranks_of_steps_and_no_grad_passes() -> None:
    utilisation = Utilisation(0.0)
    hear(utilisation, "learner 0", "scores", (0, 2))
    hear(utilisation, "learner 1", "scores", (0, 1))
    hear(utilisation, "learner 0", "steps", (4, 8))
    hear(utilisation, "learner 1", "steps", (4, 7))
    hear(utilisation, "learner", "scores", (0, 9))  # groups that wait for their turn with it
    assert utilisation.drain(10.0)["util/learner"] == pytest.approx((6 + 4) / 20)


def test_a_wait_over_several_windows_counts_in_each_for_what_lies_in_it() -> None:
    wait = Wait("group 1", A, "writes", 5.0)
    waits = Open(wait)
    utilisation = Utilisation(0.0, waits=waits)
    assert utilisation.drain(10.0)["util/replicas"] == pytest.approx(5 / 10)
    assert utilisation.drain(20.0)["util/replicas"] == pytest.approx(1.0)
    waits._current.clear()
    utilisation.hear(wait, 22.5)
    assert utilisation.drain(30.0)["util/replicas"] == pytest.approx(2.5 / 10)
    found = utilisation.drain(40.0)
    assert (found["util/replicas"], found["util/replicas_in_flight"]) == (0.0, 0.0)


def test_a_replica_of_the_fleet_that_is_asked_for_nothing_is_idle_and_one_that_left_is_none() -> None:
    fleet = [A, B]
    utilisation = Utilisation(0.0, lambda: fleet)
    hear(utilisation, A, "writes", (0, 10))
    assert utilisation.drain(10.0)["util/replicas"] == pytest.approx(0.5)
    fleet.remove(B)
    hear(utilisation, A, "writes", (10, 20))
    assert utilisation.drain(20.0)["util/replicas"] == pytest.approx(1.0)
    fleet.clear()
    assert "util/replicas" not in utilisation.drain(30.0)


def test_no_time_has_no_shares() -> None:
    assert Utilisation(3.0).drain(3.0) == {}
