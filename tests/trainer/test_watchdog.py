"""What is waited for too long is said, once and again; a run in which nothing moves ends, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from reward_server.asking import DOES_NOT_ANSWER, JUDGES, QUEUE_IS_FULL
from rollout_server.client import HAS_NO_ROOM, WRITES
from rollout_server.fleet import HAS_TOO_FEW, TAKES_WEIGHTS
from rollout_server.push import LOADS
from rollout_server.started import STARTS
from trainer.chains import Chains, described
from trainer.pipeline import IN_THE_MAKING
from trainer.ranks import EXPORTS, SAVES, STEPS
from trainer.watchdog import Watchdog
from wire.errors import ServiceError
from wire.waits import Wait, Waits

GENRM = "genrm http://g:1"


class Watched:
    """Waits, a watchdog over them, and the loop's clock in the test's hands."""

    def __init__(self, warn_s: float = 300.0, stop_s: float = 3600.0) -> None:
        self.now, self.waits, self.said = 1000.0, Waits(), list[str]()
        self.watchdog = Watchdog(warn_s, stop_s, self.said.append, self.waits)

    def pass_s(self, seconds: float) -> list[str]:
        """What is said meanwhile; a look a second."""
        self.said.clear()
        for _ in range(int(seconds)):
            self.now += 1
            self.watchdog.look()
        return list(self.said)

    def begin(self, who: str, peer: str, reason: str) -> Wait:
        return self.waits.begin(peer, reason, who=who)

    def chain(self) -> Wait:
        """The driver waits for a group, which waits for a GenRM server."""
        self.begin("driver", "group 12", IN_THE_MAKING)
        self.now += 30
        return self.begin("group 12", GENRM, JUDGES)


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return held(Watched(), monkeypatch)


def held(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: watched.now, raising=False)
    watched.watchdog.__enter__()
    return watched


@pytest.fixture(autouse=True)
async def real_clock_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()


# --- reports


async def test_a_wait_is_reported_with_its_whole_chain_once_and_again_when_its_age_has_doubled(watched) -> None:
    watched.chain()
    assert watched.pass_s(269) == []
    line = f"waiting: driver -> group 12 (is in the making, {{}} s) -> {GENRM} (judges, {{}} s)"
    assert watched.pass_s(30) == [line.format(300, 270)]
    assert watched.pass_s(240) == []
    assert watched.pass_s(1) == [line.format(570, 540)]  # the verdict is twice as old as when it was named
    assert watched.pass_s(2400) == [line.format(1110, 1080), line.format(2190, 2160)]


async def test_a_young_link_of_an_old_chain_is_reported_when_it_is_old_itself(watched) -> None:
    watched.begin("driver", "group 12", IN_THE_MAKING)
    watched.pass_s(290)
    watched.begin("group 12", GENRM, JUDGES)
    assert len(watched.pass_s(299)) == 1
    assert watched.pass_s(1) == [f"waiting: driver -> group 12 (is in the making, 590 s) -> {GENRM} (judges, 300 s)"]


async def test_waits_of_one_reason_share_a_line_that_names_the_oldest_and_some_of_the_others(watched) -> None:
    for number in range(6):
        watched.begin(f"group {number}", f"replica http://r{number}", WRITES)
    (line,) = watched.pass_s(300)
    assert line == (
        "waiting: group 0 -> replica http://r0 (writes, 300 s); as long for the same reason: 5 more, for "
        "replica http://r1, replica http://r2, replica http://r3, ..."
    )
    late = watched.begin("group 7", "replica http://r7", WRITES)
    assert watched.pass_s(299) == []
    assert "replica http://r0 (writes, 600 s); as long for the same reason: 6 more" in watched.pass_s(1)[0]
    assert late in watched.waits.current


async def test_waits_that_end_in_time_are_not_reported(watched) -> None:
    for _ in range(5):
        wait = watched.chain()
        assert watched.pass_s(250) == []
        watched.waits.end(wait)
        watched.waits.end(watched.waits.current[0])


def test_a_chain_ends_where_two_wait_for_each_other_and_goes_through_the_oldest_wait() -> None:
    one, two = Wait("group 1", "fleet", HAS_NO_ROOM, 0.0), Wait("fleet", "group 1", "sleeps", 1.0)
    assert Chains([one, two]).through(one) == [two, one]
    old, new = Wait("fleet", "replica a", LOADS, 2.0), Wait("fleet", "replica b", LOADS, 3.0)
    driver = Wait("driver", "fleet", TAKES_WEIGHTS, 1.0)
    chains = Chains([driver, old, new])
    assert chains.through(driver) == [driver, old] and chains.through(new) == [driver, new]
    assert described([driver, new], 5.0) == "driver -> fleet (takes weights, 4 s) -> replica b (loads weights, 2 s)"


# --- the end


async def test_a_run_in_which_nothing_moves_ends_with_the_name_and_the_remedy(watched) -> None:
    watched.chain()
    watched.pass_s(3600)  # the first look has nothing to compare with
    with pytest.raises(ServiceError) as error:
        watched.pass_s(1)
    assert str(error.value) == (
        f"nothing has moved for 3600 s: driver -> group 12 (is in the making, 3631 s) -> {GENRM} (judges, 3601 s); "
        "where that is how long it takes, raise stall_stop_s (3600), or set it to 0"
    )


async def test_a_group_that_takes_for_ever_stops_nobody_while_others_come(watched) -> None:
    watched.chain()
    for _ in range(4):
        wait = watched.begin("group 13", "replica http://r", WRITES)
        watched.pass_s(3000)
        watched.waits.end(wait)
    watched.pass_s(3599)


@pytest.mark.parametrize("reason", [DOES_NOT_ANSWER, QUEUE_IS_FULL])
async def test_a_service_that_turns_its_callers_away_is_no_progress(watched, reason: str) -> None:
    watched.chain()
    with pytest.raises(ServiceError, match="nothing has moved for 3600 s"):
        for _ in range(40):
            wait = watched.begin("group 13", "judge http://j", reason)
            watched.pass_s(100)
            watched.waits.end(wait)


async def test_groups_that_end_and_the_fleet_that_has_room_now_are_no_progress_by_themselves(watched) -> None:
    with pytest.raises(ServiceError, match="nothing has moved"):
        for number in range(40):
            waits = [
                watched.begin("driver", f"group {number}", IN_THE_MAKING),
                watched.begin(f"group {number}", "fleet", HAS_NO_ROOM),
                watched.begin("driver", f"held-out {number}", IN_THE_MAKING),
            ]
            watched.pass_s(100)
            for wait in waits:
                watched.waits.end(wait)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [("learner", SAVES), ("learner", EXPORTS), ("replica 3", STARTS), ("fleet", HAS_TOO_FEW), ("learner", LOADS)],
)
async def test_time_under_a_longer_deadline_does_not_count(watched, peer: str, reason: str) -> None:
    watched.chain()
    watched.pass_s(2000)
    wait = watched.begin("driver", peer, reason)
    watched.pass_s(20_000)
    watched.waits.end(wait)  # no work of the pipeline's own, or it would begin anew
    quiet_s = watched.watchdog.quiet_s
    assert quiet_s in (1999.0, 0.0)
    watched.pass_s(1500)
    with pytest.raises(ServiceError):
        watched.pass_s(3600)


async def test_a_replica_that_starts_again_does_not_hide_a_stall(watched) -> None:
    watched.chain()
    watched.begin("fleet", "replica 3", STARTS)
    with pytest.raises(ServiceError, match="group 12"):
        watched.pass_s(3601)


async def test_a_held_up_program_and_an_idle_one_do_not_count(watched) -> None:
    watched.pass_s(5000)
    watched.chain()
    watched.pass_s(10)
    watched.now += 9000  # the process was stopped, or its loop blocked
    watched.pass_s(10)
    assert watched.watchdog.quiet_s < 30


async def test_with_0_no_run_ends_and_the_reports_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = held(Watched(stop_s=0.0), monkeypatch)
    watched.chain()
    assert watched.pass_s(10_000)


async def test_watching_ends_with_the_error_and_hears_no_more() -> None:
    waits = Waits()
    watchdog = Watchdog(1e-9, 1e-9, lambda _: None, waits)
    waits.begin("learner", STEPS)
    watching = asyncio.create_task(watchdog.watch())
    with pytest.raises(ServiceError, match=r"driver -> learner \(steps"):
        await asyncio.wait_for(watching, 20)
    assert waits._listeners == []
