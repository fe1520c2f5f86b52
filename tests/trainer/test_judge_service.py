"""How a run comes by its reward service, over fake hosts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import trainer.judge_service
from reward_server.config import RewardSettings
from reward_server.placement import KIND, reward_plan
from tests.wire.fake_cluster import FakeActor, FakeCluster
from trainer.judge_service import JudgeService
from wire.claim import Owner

BEFORE, MINE = Owner("/runs/a", "1", "01", 100.0), Owner("/runs/a", "2", "02", 100.0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardSettings:
    monkeypatch.setattr(trainer.judge_service, "announced_services", lambda kind: {})
    return RewardSettings(device="cpu", ray_address="auto", token_file=str(tmp_path / "token"))


@pytest.fixture
async def left(settings: RewardSettings) -> tuple[FakeCluster, FakeActor]:
    """A cluster with the service of a driver that died."""
    cluster = FakeCluster()
    cluster.dead.add(BEFORE.life)
    actor = cluster.launch(reward_plan(settings), BEFORE)
    await cluster.ask(actor, "start", BEFORE.life)
    return cluster, actor


async def test_where_nothing_was_left_one_is_started_and_ended(settings: RewardSettings) -> None:
    cluster = FakeCluster()
    service = JudgeService(settings, cluster, MINE, print)
    await service.inherit()
    assert await service.start() == service.url == f"http://{KIND}-0-0"
    assert not service.is_adopted
    await service.stop()
    assert [actor.is_killed for actor in cluster.actors.values()] == [True]


async def test_what_a_dead_driver_left_is_used_and_ended_with_the_run(
    settings: RewardSettings, left: tuple[FakeCluster, FakeActor]
) -> None:
    cluster, actor = left
    said: list[str] = []
    service = JudgeService(settings, cluster, MINE, said.append)
    await service.inherit()
    assert await service.start() == actor.host.process.url and service.is_adopted
    assert said[-1] == f"adopted: {service.url}" and actor.host.process.num_starts == 1
    await service.stop()
    assert actor.host.process.is_ended and actor.is_killed


async def test_one_that_has_ended_meanwhile_is_replaced(
    settings: RewardSettings, left: tuple[FakeCluster, FakeActor]
) -> None:
    cluster, actor = left
    actor.host.process.is_dead = True
    said: list[str] = []
    service = JudgeService(settings, cluster, MINE, said.append)
    await service.inherit()
    assert await service.start() == f"http://{KIND}-0-1" and not service.is_adopted
    assert actor.is_killed and "is not used: " in " ".join(said)
    await service.stop()


async def test_a_run_that_joins_another_ends_what_its_driver_left(
    settings: RewardSettings, left: tuple[FakeCluster, FakeActor]
) -> None:
    cluster, actor = left
    service = JudgeService(replace(settings, reward_url="http://joined"), cluster, MINE, print)
    await service.inherit()
    assert actor.is_killed
    assert await service.start() == "http://joined" and not service.is_adopted
    await service.watch()  # there is nothing to look after
    await service.stop()


async def test_one_that_is_announced_while_the_runs_own_waits_for_room_is_joined_and_the_own_one_is_not_placed(
    settings: RewardSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a service by hand has the node's place, and still loads."""
    looks = 0

    async def choose(found: object, wanted: object, say: Callable[[str], None]) -> str | None:
        nonlocal looks
        looks += 1
        say("another is not joined")
        return "http://announced" if looks > 3 else None

    monkeypatch.setattr(trainer.judge_service, "choose", choose)
    monkeypatch.setattr(trainer.judge_service, "LOOK_EVERY_S", 0.01)
    cluster = FakeCluster()
    cluster.has_room = False
    said: list[str] = []
    service = JudgeService(settings, cluster, MINE, said.append)
    await service.inherit()
    assert await service.start() == "http://announced"
    assert [actor.is_killed for actor in cluster.actors.values()] == [True]
    assert said == ["another is not joined"]
    await service.watch()  # it is not this run's to look after
    await service.stop()


async def test_one_that_was_announced_is_joined_where_nothing_was_left(
    settings: RewardSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def choose(*_: object) -> str:
        return "http://announced"

    monkeypatch.setattr(trainer.judge_service, "choose", choose)
    cluster = FakeCluster()
    service = JudgeService(settings, cluster, MINE, print)
    await service.inherit()
    assert await service.start() == "http://announced" and cluster.actors == {}
    await service.stop()
