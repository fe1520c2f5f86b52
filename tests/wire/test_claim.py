"""One server, one driver: a claim goes to another only when its owner is dead or silent, and to one who asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.wire.fake_cluster import Clock
from wire.claim import LEASE_S, LEAST_ORPHAN_TIMEOUT_S, Claim, NotYours, Owner

FIRST, SECOND, THIRD = (Owner("/runs/a", life, f"0{life}", 100.0) for life in "123")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claim(clock: Clock) -> Claim:
    return Claim(FIRST, is_kept=True, clock=clock)


def test_an_owner_that_is_heard_of_keeps_it(claim: Claim, clock: Clock) -> None:
    for _ in range(10):
        clock.now += LEASE_S
        claim.renew("1")
        assert not claim.take(SECOND, "1", is_dead=False)
    assert claim.owner is FIRST and not claim.end_if_over(is_in_use=True)


def test_one_that_is_known_to_be_dead_is_followed_at_once(claim: Claim) -> None:
    assert claim.take(SECOND, "1", is_dead=True)
    claim.renew("2")
    with pytest.raises(NotYours, match="taken over by the driver of /runs/a"):
        claim.renew("1")


def test_one_that_is_silent_is_followed_when_its_lease_has_run_out(claim: Claim, clock: Clock) -> None:
    clock.now = LEASE_S
    assert not claim.take(SECOND, "1", is_dead=False)
    clock.now = LEASE_S + 0.1
    assert claim.take(SECOND, "1", is_dead=False)
    assert claim.silent_s == 0.0


def test_of_two_that_know_the_owner_to_be_dead_one_has_it(claim: Claim) -> None:
    assert claim.take(SECOND, "1", is_dead=True)
    assert not claim.take(THIRD, "1", is_dead=True)
    assert claim.owner is SECOND


def test_it_is_over_when_nobody_was_heard_of_and_then_nobody_can_have_it(claim: Claim, clock: Clock) -> None:
    clock.now = 100.0
    assert not claim.end_if_over(is_in_use=True) and claim.ends_in_s == 0.0
    clock.now = 100.1
    assert claim.end_if_over(is_in_use=True)
    assert not claim.take(SECOND, "1", is_dead=True)
    with pytest.raises(NotYours, match="by nobody, and ends"):
        claim.renew("1")


def test_a_server_that_was_never_started_is_not_kept_for_longer_than_a_lease(claim: Claim, clock: Clock) -> None:
    clock.now = LEASE_S + 0.1
    assert not claim.end_if_over(is_in_use=True)
    assert claim.end_if_over(is_in_use=False)


def test_the_patience_is_that_of_the_owner_and_never_none(claim: Claim, clock: Clock) -> None:
    assert claim.take(replace(SECOND, orphan_timeout_s=500.0), "1", is_dead=True) and claim.ends_in_s == 500.0
    assert claim.take(replace(THIRD, orphan_timeout_s=0.0), "2", is_dead=True)
    assert claim.ends_in_s == LEAST_ORPHAN_TIMEOUT_S


def test_where_ray_ends_it_with_its_driver_it_is_never_over(clock: Clock) -> None:
    claim = Claim(FIRST, is_kept=False, clock=clock)
    clock.now = 1e9
    assert not claim.end_if_over(is_in_use=False) and claim.ends_in_s == float("inf")
