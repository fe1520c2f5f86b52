"""Room in a cluster: what is missing is said once, and again when it has changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import wire.room
from wire.room import Needs, until_found

NEEDS = Needs("the learner", {"learner": 1, "GPU": 1}, 8)
TOTAL = {"learner": 8.0, "GPU": 4.0}


def found_after(num: int) -> Callable[[float], bool]:
    answers = iter([False] * num + [True])
    return lambda _: next(answers)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.room, "SAY_AFTER_S", 0.0)
    monkeypatch.setattr(wire.room, "LOOK_AGAIN_S", 0.0)


async def test_a_cluster_with_room_is_not_spoken_of(impatient: None) -> None:
    said: list[str] = []
    await until_found(NEEDS, found_after(0), lambda: (TOTAL, TOTAL), said.append)
    assert not said


async def test_what_is_missing_is_said_when_it_has_changed(impatient: None) -> None:
    said: list[str] = []
    free = iter([{"learner": 8.0, "GPU": 3.0}, {"learner": 8.0, "GPU": 3.0}, {"learner": 7.0}])
    await until_found(NEEDS, found_after(3), lambda: (TOTAL, next(free)), said.append)
    begin = "no room yet for the learner: it needs 8 x {GPU: 1, learner: 1}; missing: "
    assert said == [
        begin + "GPU (3 of 4 free)",
        begin + "GPU (0 of 4 free), learner (7 of 8 free)",
        "room for the learner was found",
    ]


def test_where_the_sum_is_enough_it_lies_on_too_many_nodes() -> None:
    needs = Needs("replica-0", {"GPU": 2})
    assert needs.missing({"GPU": 2}, {"GPU": 2}).startswith("nothing in the sum")
