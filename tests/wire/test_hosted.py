"""A host does what its owner says, and without one ends its server and itself."""

from __future__ import annotations

import threading

import pytest

import wire.hosted
from tests.wire.fake_cluster import IDENTITY, Clock, FakeHost, FakeProcess
from wire.claim import LEASE_S, NotYours, Owner
from wire.errors import ServiceError

FIRST, SECOND = Owner("/runs/a", "1", "01", 100.0), Owner("/runs/a", "2", "02", 100.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(wire.hosted, "WATCH_S", 0.01)
    return FakeHost(FakeProcess("http://a"), clock, IDENTITY, 3, FIRST)


def test_it_says_what_it_has_and_whose_that_is(host: FakeHost, clock: Clock) -> None:
    assert host.held().url is None
    assert host.start("1") == "http://a"
    clock.now += 7.0
    held = host.held()
    assert (held.identity, held.index, held.owner, held.url) == (IDENTITY, 3, FIRST, "http://a")
    assert (held.silent_s, held.ends_in_s) == (7.0, 93.0)


def test_a_driver_that_was_followed_can_neither_use_nor_end_it(host: FakeHost) -> None:
    host.start("1")
    assert host.take(SECOND, "1", is_dead=True)
    for call in (host.start, host.check, host.renew, host.stop):
        with pytest.raises(NotYours):
            call("1")
    assert host.process.is_alive()
    host.check("2")
    host.stop("2")
    assert host.process.is_ended


def test_a_start_that_a_driver_did_not_live_to_see_is_waited_for_and_not_made_again(host: FakeHost) -> None:
    host.process.answers.clear()
    first = threading.Thread(target=host.start, args=("1",))
    first.start()
    assert host.take(SECOND, "1", is_dead=True)
    found: list[str] = []
    second = threading.Thread(target=lambda: found.append(host.start("2")))
    second.start()
    host.process.answers.set()
    first.join(5)
    second.join(5)
    assert found == ["http://a"] and host.process.num_starts == 1


def test_one_whose_server_has_died_says_so_to_whoever_starts_it_again(host: FakeHost) -> None:
    host.start("1")
    host.process.is_dead = True
    assert host.take(SECOND, "1", is_dead=True)
    with pytest.raises(ServiceError, match="ended with exit code 1"):
        host.start("2")
    assert host.process.num_starts == 1


def test_without_a_driver_the_server_and_then_the_host_end(host: FakeHost, clock: Clock) -> None:
    host.start("1")
    clock.now = 99.0
    assert not host.has_left.wait(0.1)
    clock.now = 101.0
    assert host.has_left.wait(5.0)
    assert host.process.is_ended


def test_a_host_whose_driver_died_before_the_start_ends_soon(host: FakeHost, clock: Clock) -> None:
    clock.now = LEASE_S + 1.0
    assert host.has_left.wait(5.0)
