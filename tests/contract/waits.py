"""Every wait of the driver brought about: stand-ins that never come to an end of what is asked of them.

Each scenario is an asynchronous context manager: while it is open, something waits. `SCENARIOS` has them by the module
that waits and the reason, with the peer that is waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

import reward_server.asking
import reward_server.client
import reward_server.fetch_wait
import rollout_server.client
import rollout_server.fleet
import rollout_server.push
import rollout_server.started
import trainer.answering
import trainer.checkpoint
import trainer.contest
import trainer.evaluate
import trainer.judge_service
import trainer.ledger_writer
import trainer.pipeline
import trainer.ranks
import trainer.services
import wire.room
from reward_server.client import RewardClient
from rollout_server.client import RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.started import StartedReplicas
from tests.contract.silence import SilentActor, SilentCluster, silent_server
from tests.rollout_server.roster import Roster
from tests.rollout_server.world import TOKEN, World
from tests.wire.fake_cluster import plan
from trainer.answer_files import Question
from trainer.answering import Answers, AnswerSettings
from trainer.batch import MiniBatch, Sample
from trainer.checkpoint import Checkpoints
from trainer.config import RunSettings
from trainer.contest import Contest
from trainer.evaluate import evaluate_held_out
from trainer.judge_service import JudgeService
from trainer.ledger import Ledger
from trainer.ledger_past import LEDGER_FILE
from trainer.ledger_writer import connect
from trainer.pipeline import Pipeline
from trainer.prompts import Prompt
from trainer.ranks import Learner
from wire.claim import Owner
from wire.estate import IS_SEARCHED, inherited
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import Message
from wire.membership import Member, Outcome, TransferReport
from wire.pieces import PACKED_PATH
from wire.room import HAS_NO_ROOM, Needs, until_found

OWNER = Owner("/runs/a", "1", "01", 100.0)
LONG_S = 60.0  # every deadline: none is met
V1 = PolicyVersion(0, 1)
TALK = (Message(role="user", content="sea?"),)
SAMPLE = Sample((1,), (2,), (-0.5,), 1.0)


@asynccontextmanager
async def under_way(*works: Awaitable[Any]) -> AsyncIterator[None]:
    """Works that go on while the context is open."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def forever(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """A server that has only this to say; yields its URL."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "1"})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


# --- the driver and the replicas that write


async def ask(rollouts: RolloutClient) -> None:
    async with rollouts.generate((5, 6), 2, seed=1, salt=lambda: "0.1") as futures:
        await asyncio.gather(*futures)


@asynccontextmanager
async def completions(*urls: str, prompts: int = 1, room: int = 0) -> AsyncIterator[None]:
    sampling = Sampling(max_tokens=16, temperature=1.0, stop_token_ids=(2,))
    async with (
        RolloutClient(Roster(*urls), TOKEN, sampling, LONG_S, room=room) as rollouts,
        under_way(*(ask(rollouts) for _ in range(prompts))),
    ):
        yield


@asynccontextmanager
async def completions_of_a_silent_replica(**changes: Any) -> AsyncIterator[None]:
    async with silent_server(PACKED_PATH.strip("/")) as url, completions(url, **changes):
        yield


@asynccontextmanager
async def completions_of_a_broken_replica() -> AsyncIterator[None]:
    async with answering(500) as url, completions(url):
        yield


# --- the fleet


class SlowToOpen(World):
    """A world whose learner never forms a transfer group."""

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        await forever()
        raise AssertionError


@asynccontextmanager
async def push(world: World, hanging: str = "", *, keep: bool = True) -> AsyncIterator[None]:
    """A push to one replica, which never answers the route `hanging`."""
    settings = RolloutSettings(
        device="cpu",
        transfer_timeout_s=LONG_S,
        probe_timeout_s=LONG_S,
        rollout_timeout_s=LONG_S,
        inflight_updates=keep,
    )
    async with world.serving() as server, Fleet(settings, TOKEN) as fleet:
        await fleet.add(server.url)
        server.hanging.add(hanging)
        async with under_way(fleet.publish(world, V1)):
            yield
            server.hanging.clear()  # a push that is cancelled still resumes its members


@asynccontextmanager
async def slow_transfer() -> AsyncIterator[None]:
    world = World()
    world.gate.clear()
    async with push(world):
        yield
        world.gate.set()


@asynccontextmanager
async def failed_transfer() -> AsyncIterator[None]:
    world = World()
    world.failures = [{0: Outcome.FAILED}]
    async with push(world, "is_paused"):
        yield


@asynccontextmanager
async def joining() -> AsyncIterator[None]:
    settings = RolloutSettings(device="cpu", probe_timeout_s=LONG_S)
    async with silent_server("get_world_size") as url, Fleet(settings, TOKEN) as fleet, under_way(fleet.add(url)):
        yield


@asynccontextmanager
async def nobody_ready() -> AsyncIterator[None]:
    settings = RolloutSettings(device="cpu", replica_wait_s=LONG_S, probe_interval_s=0.01)
    async with Fleet(settings, TOKEN) as fleet:
        await fleet.publish(World(), V1)
        async with under_way(fleet.tend()):
            yield


class StartingHost:
    """It never has started."""

    async def start(self) -> str:
        return str(await forever())

    async def check(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@asynccontextmanager
async def starting() -> AsyncIterator[None]:
    settings = RolloutSettings(device="cpu")

    def place(_: int) -> StartingHost:
        return StartingHost()

    async with Fleet(settings, TOKEN) as fleet:
        replicas = StartedReplicas(settings, fleet, place, lambda _: None)
        async with under_way(replicas.start(1)):
            yield


# --- the reward service


@asynccontextmanager
async def verdicts(url: str, num: int = 1, **changes: Any) -> AsyncIterator[None]:
    async with (
        RewardClient(url, TOKEN, LONG_S, **changes) as client,
        under_way(*(client.judge(TALK, ("a", "b"), seed) for seed in range(num))),
    ):
        yield


@asynccontextmanager
async def verdicts_of_a_silent_service(**changes: Any) -> AsyncIterator[None]:
    async with silent_server("v1/judgement") as url, verdicts(url, **changes):
        yield


@asynccontextmanager
async def verdicts_of_a_full_service() -> AsyncIterator[None]:
    async with answering(429) as url, verdicts(url):
        yield


def verdicts_of_nobody() -> AbstractAsyncContextManager[None]:
    return verdicts(f"http://127.0.0.1:{unused_port()}")


# --- the learner, and the services' start


def learner_call(method: str, call: Callable[[Learner], Awaitable[Any]]) -> Callable[[], Any]:
    """Two ranks never come back from `method`."""

    @asynccontextmanager
    async def scenario() -> AsyncIterator[None]:
        settings = RunSettings(device="cpu", num_learner_ranks=2, learner_timeout_s=LONG_S)
        learner = Learner([SilentActor(method, facts={}) for _ in range(2)], settings)
        before = asyncio.all_tasks()
        async with under_way(call(learner)):
            yield
        calls = asyncio.all_tasks() - before  # a rank goes on with what nobody waits for any more
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    return scenario


def judge_service(folder: Path, **changes: Any) -> JudgeService:
    settings = RunSettings(device="cpu", startup_timeout_s=LONG_S, token_file=str(folder / "token"), **changes)
    return JudgeService(settings, SilentCluster("start"), OWNER, lambda _: None)


@asynccontextmanager
async def judge_start(folder: Path) -> AsyncIterator[None]:
    service = judge_service(folder)
    async with under_way(service.start()):
        yield
    await service.stop()


def judge_in_the_cluster(patches: pytest.MonkeyPatch, folder: Path) -> AbstractAsyncContextManager[None]:
    """A service was announced, and never says whether it is ready."""
    patches.setattr(trainer.judge_service, "announced_services", lambda _: {})
    patches.setattr(trainer.judge_service, "choose", forever)
    return under_way(judge_service(folder, ray_address="auto").start())


@asynccontextmanager
async def searching() -> AsyncIterator[None]:
    cluster = SilentCluster("held")
    cluster.launch(plan(), OWNER)
    async with under_way(inherited(cluster, OWNER, "replica", plan, lambda _: None)):
        yield


def fetching_the_judge() -> AbstractAsyncContextManager[None]:
    return under_way(reward_server.fetch_wait.until_fetched(forever, "toys/judge", lambda _: None))


@asynccontextmanager
async def services(placing: Callable[[Any], Any], patches: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[None]:
    """The start of a run that joins its reward service, which never says who judges there."""
    patches.setattr(trainer.services, "ray_cluster", lambda _: nullcontext(OWNER))
    patches.setattr(trainer.services, "place_learner", placing)
    async with silent_server("v1/info") as url:
        settings = RunSettings(device="cpu", replicas=0, reward_url=url, output_dir=str(folder))

        async def start() -> None:
            async with trainer.services.running_services(settings, TOKEN, lambda _: None):
                pass

        async with under_way(start()):
            yield


@asynccontextmanager
async def placing(patches: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[None]:
    has_room = asyncio.Event()

    async def place(*_: Any) -> tuple[list[Any], str]:
        await has_room.wait()
        return [], ""

    try:
        async with services(place, patches, folder):
            yield
            has_room.set()
    finally:
        has_room.set()


def asking_who_judges(patches: pytest.MonkeyPatch, folder: Path) -> AbstractAsyncContextManager[None]:
    facts = {"num_parameters": 1}

    async def place(*_: Any) -> tuple[list[Any], str]:
        return [SilentActor(facts=facts)], "127.0.0.1"

    return services(place, patches, folder)


def no_room(patches: pytest.MonkeyPatch) -> AbstractAsyncContextManager[None]:
    patches.setattr(wire.room, "SAY_AFTER_S", 0.01)
    needs = Needs("replica-7", {"rollout": 1})
    return under_way(until_found(needs, lambda _: False, lambda: ({"rollout": 2}, {}), lambda _: None))


# --- groups


def prompt(occurrence: int) -> Prompt:
    return Prompt(occurrence, ({"role": "user", "content": "sea?"},), (5, 6))


@asynccontextmanager
async def taking_groups() -> AsyncIterator[None]:
    async with (
        Pipeline(map(prompt, itertools.count(7)), forever, capacity=2) as pipeline,
        under_way(pipeline.take(1)),
    ):
        yield


def held_out() -> AbstractAsyncContextManager[None]:
    collector: Any = SimpleNamespace(judged=forever)
    return under_way(evaluate_held_out(collector, [prompt(3)], None, "held-out"))


def benchmark() -> AbstractAsyncContextManager[None]:
    tokenizer: Any = SimpleNamespace(apply_chat_template=lambda *_, **__: [1])
    client: Any = SimpleNamespace(generate=lambda *_, **__: under_way_for_ever())
    questions = [Question("question_id 81", ({"role": "user", "content": "sea?"},), (), {})]
    return under_way(Answers(AnswerSettings(device="cpu"), tokenizer, questions).ask_all(client, "salt"))


@asynccontextmanager
async def under_way_for_ever() -> AsyncIterator[list[asyncio.Future[Any]]]:
    """A completion that does not come."""
    yield [asyncio.get_running_loop().create_future()]


@asynccontextmanager
async def finishing_an_evaluation() -> AsyncIterator[None]:
    """A fleet that answers what it is asked at first, and then nothing more."""
    completion = Completion(0, (5,), (-0.5,), True, (VersionSpan("0.0", 0, 1),))
    calls = itertools.count()

    @asynccontextmanager
    async def generate(*_: Any, **__: Any) -> AsyncIterator[list[asyncio.Future[Completion]]]:
        future = asyncio.get_running_loop().create_future()
        if not next(calls):
            future.set_result(completion)
        yield [future]

    rollouts: Any = SimpleNamespace(generate=generate)
    contest = Contest(
        RunSettings(device="cpu", eval_wait_s=LONG_S),
        [prompt(3)],
        rollouts,
        [],
        decode=str,
        stop_token_ids=(),
        version=lambda: PolicyVersion(0, 0),
        say=print,
    )
    async with contest:
        await contest.meet()
        async with under_way(contest.finish(7)):
            yield


# --- files


@asynccontextmanager
async def syncing_a_checkpoint(patches: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[None]:
    """A disk that does not come to an end with what it was given."""
    is_synced = threading.Event()
    patches.setattr(trainer.checkpoint, "replace_folder", lambda *_: is_synced.wait(LONG_S))
    saver: Any = SimpleNamespace(save=at_once)
    checkpoints = Checkpoints(RunSettings(device="cpu", output_dir=str(folder)))
    try:
        async with under_way(checkpoints.save(saver, V1, next_prompt=4)):
            yield
            is_synced.set()
    finally:
        is_synced.set()


@asynccontextmanager
async def writing_the_ledger(patches: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[None]:
    """A database that another connection holds."""
    settings = RunSettings(device="cpu", output_dir=str(folder))
    async with Ledger.open(settings, None, lambda _: None) as ledger:
        other = connect(folder / LEDGER_FILE)
        try:
            other.execute("BEGIN IMMEDIATE")
            async with under_way(ledger.prune(3)):
                yield
        finally:
            other.close()


async def at_once(*_: Any) -> None:
    pass


SCENARIOS: dict[tuple[str, str], tuple[str, Callable[..., AbstractAsyncContextManager[None]]]] = {
    ("rollout_server.client", rollout_server.client.WRITES): ("replica http", completions_of_a_silent_replica),
    ("rollout_server.client", rollout_server.client.HAS_NOBODY): ("fleet", completions),
    ("rollout_server.client", rollout_server.client.HAS_NO_ROOM): (
        "fleet", lambda: completions_of_a_silent_replica(prompts=2, room=2)
    ),
    ("rollout_server.client", rollout_server.client.RESTS): ("fleet", completions_of_a_broken_replica),
    ("rollout_server.fleet", rollout_server.fleet.TAKES_WEIGHTS): ("fleet", slow_transfer),
    ("rollout_server.fleet", rollout_server.fleet.HAS_TOO_FEW): ("fleet", nobody_ready),
    ("rollout_server.fleet", rollout_server.fleet.IS_MET): ("replica http", joining),
    ("rollout_server.push", rollout_server.push.PAUSES): ("replica http", lambda: push(World(), "pause")),
    ("rollout_server.push", rollout_server.push.FINISHES): ("replica http", lambda: push(World(), "pause", keep=False)),
    ("rollout_server.push", rollout_server.push.JOINS): ("replica http", lambda: push(SlowToOpen())),
    ("rollout_server.push", rollout_server.push.LOADS): ("replica http", slow_transfer),
    ("rollout_server.push", rollout_server.push.RESUMES): ("replica http", lambda: push(World(), "resume")),
    ("rollout_server.push", rollout_server.push.IS_PROBED): ("replica http", failed_transfer),
    ("rollout_server.started", rollout_server.started.STARTS): ("replica 0", starting),
    ("reward_server.client", reward_server.client.HAS_NO_PLACE): (
        "judge http", lambda: verdicts_of_a_silent_service(num=2, most_at_once=1)
    ),
    ("reward_server.asking", reward_server.asking.JUDGES): ("judge http", verdicts_of_a_silent_service),
    ("reward_server.asking", reward_server.asking.QUEUE_IS_FULL): ("judge http", verdicts_of_a_full_service),
    ("reward_server.asking", reward_server.asking.DOES_NOT_ANSWER): ("judge http", verdicts_of_nobody),
    ("reward_server.fetch_wait", reward_server.fetch_wait.FETCHES): ("judge", fetching_the_judge),
    ("trainer.services", trainer.services.PLACES_LEARNER): ("ray", placing),
    ("wire.room", HAS_NO_ROOM): ("ray for replica-7: 1 x {rollout: 1} needed", no_room),
    ("trainer.judge_service", trainer.judge_service.STARTS): ("judge", judge_start),
    ("trainer.judge_service", trainer.judge_service.IS_ASKED): ("judge", judge_in_the_cluster),
    ("wire.estate", IS_SEARCHED): ("ray", searching),
    ("trainer.services", trainer.services.IS_ASKED): ("judge http", asking_who_judges),
    ("trainer.pipeline", trainer.pipeline.IN_THE_MAKING): ("group 7", taking_groups),
    ("trainer.evaluate", trainer.evaluate.IN_THE_MAKING): ("held-out 3", held_out),
    ("trainer.answering", trainer.answering.IN_THE_MAKING): ("question 0", benchmark),
    ("trainer.contest", trainer.contest.IN_THE_MAKING): ("evaluation 7", finishing_an_evaluation),
    ("trainer.checkpoint", trainer.checkpoint.SYNCS): ("disk", syncing_a_checkpoint),
    ("trainer.ledger_writer", trainer.ledger_writer.TAKES_LEDGER): ("disk", writing_the_ledger),
}  # fmt: skip

RANKS: dict[str, Callable[[Learner], Awaitable[Any]]] = {
    "pick_port": lambda learner: learner.setup("127.0.0.1"),
    "setup": lambda learner: learner.setup("127.0.0.1"),
    "accumulate": lambda learner: learner.accumulate([MiniBatch([[]], 1)] * learner.num_ranks),
    "step": lambda learner: learner.step([[], []]),
    "reference": lambda learner: learner.reference([SAMPLE]),
    "open_transfer": lambda learner: learner.open_transfer([Member("http://a", 1, "")], LONG_S),
    "send_weights": lambda learner: learner.send_weights(learner.version, "push-7", LONG_S),
    "save": lambda learner: learner.save("folder"),
    "load": lambda learner: learner.load("folder"),
    "export": lambda learner: learner.export("folder"),
    "export_adapter": lambda learner: learner.export_adapter("folder"),
}
SCENARIOS |= {
    ("trainer.ranks", trainer.ranks.REASONS[method]): ("learner", learner_call(method, call))
    for method, call in RANKS.items()
}
