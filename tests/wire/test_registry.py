"""What is announced is found, until it is withdrawn or falls silent."""

from __future__ import annotations

import threading

from wire.announce import Announcer
from wire.claim import Owner
from wire.errors import ServiceError
from wire.registry import FORGET_AFTER_S, REPLICA, REWARD, Registry


def test_a_service_is_found_by_its_kind_until_it_is_withdrawn() -> None:
    registry = Registry()
    registry.announce(REWARD, "http://a", {"judge": "x"})
    registry.announce("other", "http://b", {})
    assert registry.found(REWARD) == {"http://a": {"judge": "x"}}
    registry.withdraw(REWARD, "http://a")
    registry.withdraw(REWARD, "http://a")
    assert registry.found(REWARD) == {}


def test_a_service_that_falls_silent_is_forgotten_and_one_that_goes_on_is_not() -> None:
    now = [0.0]
    registry = Registry(lambda: now[0])
    registry.announce(REWARD, "http://silent", {})
    registry.announce(REWARD, "http://alive", {})
    now[0] = FORGET_AFTER_S - 1
    registry.announce(REWARD, "http://alive", {})
    now[0] = FORGET_AFTER_S
    assert list(registry.found(REWARD)) == ["http://alive"]


def test_a_service_is_one_runs_until_that_is_silent_or_known_to_be_over() -> None:
    now = [0.0]
    registry = Registry(lambda: now[0])
    first, second = Owner("runs/a", "1", "job 1", 60.0), Owner("runs/b", "2", "job 2", 60.0)
    assert registry.take(REPLICA, "http://a", first) == first
    now[0] = FORGET_AFTER_S - 1
    assert registry.take(REPLICA, "http://a", second) == first
    assert registry.take(REPLICA, "http://b", second) == second
    assert registry.take(REPLICA, "http://a", first) == first
    now[0] += FORGET_AFTER_S - 1
    assert registry.take(REPLICA, "http://a", second) == first  # it was taken again
    now[0] += 1
    assert registry.take(REPLICA, "http://a", second) == second  # it was not
    assert registry.take(REPLICA, "http://a", first, instead_of="1") == second
    assert registry.take(REPLICA, "http://a", first, instead_of="2") == first


def test_an_entry_is_refreshed_though_the_registry_is_away_for_a_while_and_withdrawn_at_the_end(capsys) -> None:
    calls: list[str] = []
    three_times = threading.Event()

    def announce() -> None:
        calls.append("announce")
        if len(calls) >= 4:
            three_times.set()
        if len(calls) in (2, 3):
            raise ServiceError("the registry is away")

    with Announcer(announce, lambda: calls.append("withdraw"), every_s=0.01):
        assert three_times.wait(5)
    assert set(calls[:-1]) == {"announce"} and calls[-1] == "withdraw"
    assert capsys.readouterr().err.count("the registry is away; runs do not find this service") == 1
