"""Replicas that tell the cluster of themselves are joined by the one run that takes them."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_server.announce import Finder, facts_of
from rollout_server.config import RolloutSettings
from wire.claim import Owner
from wire.errors import ConfigError, ServiceError
from wire.registry import FORGET_AFTER_S, REPLICA, Registry

FACTS = facts_of(RolloutSettings(device="cpu", rollout_dtype="float32"))
A, B = "http://127.0.0.2:1", "http://127.0.0.3:1"


class Fleet:
    def __init__(self) -> None:
        self.joined: list[str] = []
        self.away: set[str] = set()

    async def add(self, url: str) -> None:
        if url in self.away:
            raise ServiceError(f"{url} does not answer")
        self.joined.append(url)

    async def remove(self, url: str) -> None:
        self.joined.remove(url)


class World:
    """A registry, and the runs that look into it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry = Registry(lambda: self.now)
        self.is_away = False
        self.said: dict[str, list[str]] = {}

    def announce(self, *urls: str, **other: Any) -> None:
        for url in urls:
            self.registry.announce(REPLICA, url, FACTS | other)

    def run(self, name: str) -> tuple[Finder, Fleet]:
        fleet, owner, said = Fleet(), Owner(name, name, "", 60.0), self.said.setdefault(name, [])

        def found() -> dict[str, Any]:
            if self.is_away:
                raise ServiceError("the registry is away")
            return self.registry.found(REPLICA)

        def take(url: str) -> str | None:
            holder = self.registry.take(REPLICA, url, owner)
            return None if holder == owner else holder.run

        return Finder(FACTS, fleet, found, take, said.append), fleet


async def test_who_comes_is_joined_once_and_said() -> None:
    world = World()
    finder, fleet = world.run("a")
    await finder.look()
    assert fleet.joined == []
    world.announce(A)
    await finder.look()
    world.announce(B)
    await finder.look()
    await finder.look()
    assert fleet.joined == [A, B]
    assert world.said["a"] == [f"found in the cluster: replica {A}", f"found in the cluster: replica {B}"]


async def test_who_does_not_fit_is_not_joined_and_the_difference_is_said_once() -> None:
    world = World()
    finder, fleet = world.run("a")
    world.announce(A, rollout_dtype="bfloat16", max_model_len=7)
    await finder.look()
    await finder.look()
    assert fleet.joined == []
    assert world.said["a"] == [
        f"found in the cluster, and not joined: replica {A} has rollout_dtype 'bfloat16', max_model_len 7"
    ]
    world.announce(A)  # started again, with other settings
    await finder.look()
    assert fleet.joined == [A]


async def test_one_that_does_not_answer_yet_is_joined_when_it_does() -> None:
    world = World()
    finder, fleet = world.run("a")
    world.announce(A)
    fleet.away.add(A)
    await finder.look()
    await finder.look()
    assert fleet.joined == [] and len(world.said["a"]) == 1 and world.said["a"][0].endswith("does not answer")
    fleet.away.clear()
    await finder.look()
    assert fleet.joined == [A]


async def test_a_replica_is_one_runs_until_that_is_silent() -> None:
    world = World()
    (first, fleet), (second, other) = world.run("a"), world.run("b")
    world.announce(A)
    await first.look()
    await second.look()
    assert (fleet.joined, other.joined) == ([A], [])
    assert world.said["b"] == [f"found in the cluster, and not joined: replica {A} writes for a"]
    world.now = FORGET_AFTER_S - 1
    world.announce(A)
    await first.look()
    world.now += FORGET_AFTER_S - 1
    world.announce(A)
    await second.look()
    assert other.joined == []
    world.now += 2
    await second.look()
    assert other.joined == [A]
    await first.look()  # it was frozen, say
    assert world.said["a"][-1] == f"found in the cluster, and not joined: replica {A} writes for b"
    await first.look()
    assert fleet.joined == []


async def test_one_that_was_let_go_is_free_for_others_and_not_joined_again() -> None:
    world = World()
    (first, fleet), (second, other) = world.run("a"), world.run("b")
    world.announce(A)
    await first.look()
    await fleet.remove(A)
    world.now = FORGET_AFTER_S
    world.announce(A)
    await first.look()
    await second.look()
    assert (fleet.joined, other.joined) == ([], [A])


async def test_one_that_was_withdrawn_and_comes_again_is_joined_again() -> None:
    world = World()
    finder, fleet = world.run("a")
    world.announce(A)
    await finder.look()
    await fleet.remove(A)
    world.registry.withdraw(REPLICA, A)
    await finder.look()
    world.announce(A)
    await finder.look()
    assert fleet.joined == [A]


async def test_a_registry_that_is_away_changes_nothing() -> None:
    world = World()
    finder, fleet = world.run("a")
    world.announce(A)
    await finder.look()
    world.is_away = True
    with pytest.raises(ServiceError):
        await finder.look()
    assert fleet.joined == [A]


def test_a_run_without_replicas_of_its_own_needs_a_cluster_in_which_it_finds_some() -> None:
    RolloutSettings(device="cpu", replicas=0, ray_address="auto").check()
    for lacks in ({}, {"ray_address": "auto", "rollout_discovery": False}):
        with pytest.raises(ConfigError, match="leaves nobody to write"):
            RolloutSettings(device="cpu", replicas=0, **lacks).check()  # type: ignore[arg-type]
