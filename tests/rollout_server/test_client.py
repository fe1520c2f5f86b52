"""The real client against a fake of a replica's route, over a loopback socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from rollout_server.client import RequestRefused, RolloutClient, Sampling
from tests.rollout_server.roster import Roster
from wire.errors import ServiceError, Unauthorized
from wire.generation import Completion, VersionSpan, logprob_array, token_array
from wire.pieces import LOGPROB, PACKED_PATH, TOKEN_ID, Piece, framed

TOKEN = "correct-horse"
SAMPLING = Sampling(max_tokens=16, temperature=0.7, stop_token_ids=(2, 3))


def frame(
    index: int, ids: Sequence[int], finish: str | None = None, version: str | None = None, **changes: Any
) -> bytes:
    """A frame as `rollout_server.packed_route` writes it: token t has log-prob -t / 8."""
    spans = (VersionSpan(version, 0, 9),) if version else ()
    logprobs = np.array([-t / 8 for t in ids], LOGPROB).tobytes()
    piece = Piece(index, np.array(ids, TOKEN_ID).tobytes(), logprobs, finish, spans)
    return framed(msgspec.structs.replace(piece, **changes))


Script = Callable[["Reply"], Awaitable[None]]


class Reply:
    """What a script of the fake sees of one request."""

    def __init__(self, request: web.Request, body: dict[str, Any], stream: web.StreamResponse) -> None:
        self.request, self.body, self.stream = request, body, stream

    async def send(self, *events: bytes) -> None:
        for event in events:
            await self.stream.write(event)

    def drop(self) -> None:
        assert self.request.transport is not None
        self.request.transport.close()


class FakeReplica:
    """A server that plays one script a request, the last one again and again."""

    def __init__(self) -> None:
        self.scripts: list[Script | int] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_abandoned = 0
        app = web.Application()
        app.router.add_post(PACKED_PATH, self.generate)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def generate(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(script, int):
            return web.json_response({"error": f"status {script}"}, status=script)
        stream = web.StreamResponse()
        await stream.prepare(request)
        try:
            await script(Reply(request, self.bodies[-1], stream))
        except (ConnectionResetError, asyncio.CancelledError):
            self.num_abandoned += 1
            raise
        return stream


@pytest.fixture
async def replicas() -> AsyncIterator[list[FakeReplica]]:
    """Two of them."""
    fakes = [FakeReplica(), FakeReplica()]
    for fake in fakes:
        fake.scripts = [write_all]
        await fake.server.start_server()
    yield fakes
    for fake in fakes:
        await fake.server.close()


class Client(RolloutClient):
    """The real one, with its roster at hand."""

    def __init__(self, *urls: str, timeout_s: float = 10.0) -> None:
        self.roster = Roster(*urls)
        super().__init__(self.roster, TOKEN, SAMPLING, timeout_s)


def client(*fakes: FakeReplica, timeout_s: float = 10.0) -> Client:
    return Client(*(fake.url for fake in fakes), timeout_s=timeout_s)


async def write_all(reply: Reply) -> None:
    """A completion that is drawn with seed 1000 + i is the tokens 10 + i and 2."""
    drawn = reply.body["sampling_params"]
    for index in range(drawn["n"]):
        await reply.send(frame(index, [10 + drawn["seed"] % 1000 + index, 2], "stop", "0.7"))


async def ask(rollouts: RolloutClient, num: int = 2, salt: str = "0.7") -> list[Completion]:
    async with rollouts.generate((5, 6, 7), num, seed=1000, salt=lambda: salt) as futures:
        return list(await asyncio.gather(*futures))


async def test_a_completion_has_tokens_logprobs_versions_and_the_replicas_name(replicas) -> None:
    async with client(replicas[0]) as rollouts:
        first, second = await ask(rollouts)
    spans = (VersionSpan("0.7", 0, 9),)
    assert first == Completion(0, (10, 2), (-1.25, -0.25), True, spans, replicas[0].url)
    assert (second.index, second.token_ids) == (1, token_array((11, 2)))


async def test_the_request_says_how_to_draw_and_carries_token_seed_and_salt(replicas) -> None:
    async with client(replicas[0]) as rollouts:
        await ask(rollouts, num=3, salt="1.9")
    (body,), (headers,) = replicas[0].bodies, replicas[0].headers
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert (body["token_ids"], body["cache_salt"]) == ([5, 6, 7], "1.9")
    drawn = body["sampling_params"]
    assert (drawn["n"], drawn["seed"], drawn["max_tokens"], drawn["temperature"]) == (3, 1000, 16, 0.7)
    assert (drawn["top_p"], drawn["top_k"], drawn["logprobs"], drawn["stop_token_ids"]) == (1.0, 0, 0, [2, 3])
    assert drawn["detokenize"] is False


async def test_a_prompt_of_the_background_is_drawn_its_own_way_when_no_other_waits(replicas) -> None:
    go_on, order = asyncio.Event(), []

    async def held(reply: Reply) -> None:
        order.append(reply.body["sampling_params"]["top_p"])
        await go_on.wait()
        await write_all(reply)

    replicas[0].scripts = [held]
    own = Sampling(max_tokens=4, temperature=0.1, stop_token_ids=(2,), top_p=0.5)

    async def background(rollouts: RolloutClient) -> Completion:
        async with rollouts.generate((5,), 1, seed=1000, salt=str, sampling=own, background=asyncio.Event()) as futures:
            return await futures[0]

    async with RolloutClient(Roster(replicas[0].url), TOKEN, SAMPLING, 0.5, room=2) as rollouts:
        first = asyncio.create_task(ask(rollouts))  # it takes all the room
        while not order:
            await asyncio.sleep(0.01)
        low = asyncio.create_task(background(rollouts))
        await asyncio.sleep(0.05)
        later = [asyncio.create_task(ask(rollouts)) for _ in range(2)]
        await asyncio.sleep(0.2)
        go_on.set()
        await asyncio.gather(first, *later)
        assert (await low).token_ids == token_array((10, 2))
    assert order == [1.0, 1.0, 1.0, 0.5]
    drawn = replicas[0].bodies[-1]["sampling_params"]
    assert (drawn["max_tokens"], drawn["temperature"], drawn["top_p"]) == (4, 0.1, 0.5)


async def test_waiting_for_room_costs_a_prompt_of_the_background_none_of_its_time(replicas) -> None:
    async def slowly(reply: Reply) -> None:
        await asyncio.sleep(0.15)
        await write_all(reply)

    replicas[0].scripts = [slowly]
    async with RolloutClient(Roster(replicas[0].url), TOKEN, SAMPLING, 0.3, room=2) as rollouts:

        async def keep_busy() -> None:
            for _ in range(4):
                await ask(rollouts)

        busy = [asyncio.create_task(keep_busy())]
        await asyncio.sleep(0.05)
        with_room = rollouts.generate((5,), 1, seed=1000, salt=str, background=asyncio.Event())
        async with with_room as futures:
            assert (await futures[0]).token_ids == token_array((10, 2))
        await asyncio.gather(*busy)


async def test_a_prompt_that_loses_its_patience_comes_before_all_that_came_later(replicas) -> None:
    order: list[int] = []
    go_on = asyncio.Semaphore(0)

    async def held(reply: Reply) -> None:
        order.append(reply.body["token_ids"][0])
        await go_on.acquire()
        await write_all(reply)

    replicas[0].scripts = [held]
    patience = asyncio.Event()

    async def asked(rollouts: RolloutClient, prompt: int, background: asyncio.Event | None) -> None:
        async with rollouts.generate((prompt,), 1, seed=1000, salt=str, background=background) as futures:
            await futures[0]

    async with RolloutClient(Roster(replicas[0].url), TOKEN, SAMPLING, 5.0, room=1) as rollouts:
        tasks = []
        for prompt, background in ((1, None), (2, patience), (3, None), (4, asyncio.Event()), (5, None)):
            tasks.append(asyncio.create_task(asked(rollouts, prompt, background)))
            await asyncio.sleep(0.02)
        patience.set()
        await asyncio.sleep(0.02)
        for _ in tasks:
            go_on.release()
        await asyncio.gather(*tasks)
    assert order == [1, 2, 3, 5, 4]


async def test_the_background_gives_way_to_a_push_and_is_written_anew(replicas) -> None:
    begun = asyncio.Event()

    async def hangs(reply: Reply) -> None:
        begun.set()
        await asyncio.Event().wait()

    replicas[0].scripts = [hangs, write_all]
    async with client(replicas[0]) as rollouts:
        async with rollouts.generate((5,), 1, seed=1000, salt=str, background=asyncio.Event()) as futures:
            await begun.wait()
            rollouts.give_way()
            assert (await futures[0]).token_ids == token_array((10, 2))
        assert not rollouts.roster.suspects and len(replicas[0].bodies) == 2


async def test_a_completion_is_there_before_the_last_one_exists(replicas) -> None:
    go_on = asyncio.Event()

    async def slowly(reply: Reply) -> None:
        await reply.send(frame(1, [11, 2], "stop", "0.7"))
        await go_on.wait()
        await reply.send(frame(0, [10, 2], "stop", "0.8"))

    replicas[0].scripts = [slowly]
    async with client(replicas[0]) as rollouts, rollouts.generate((5,), 2, seed=0, salt=str) as futures:
        assert (await futures[1]).token_ids == token_array((11, 2))
        assert not futures[0].done() and rollouts.roster.in_flight == {replicas[0].url: 1}
        go_on.set()
        assert (await futures[0]).versions == (VersionSpan("0.8", 0, 9),)


async def test_the_pieces_of_completions_are_joined_however_they_interleave(replicas) -> None:
    async def in_pieces(reply: Reply) -> None:
        await reply.send(frame(0, [10]), frame(1, [20]))  # vLLM sends the first token alone
        await reply.send(frame(1, [21, 22], "length", "0.7"), frame(0, [11, 2], "stop", "0.8"))

    replicas[0].scripts = [in_pieces]
    async with client(replicas[0]) as rollouts:
        first, second = await ask(rollouts)
    assert (first.token_ids, first.logprobs) == (token_array((10, 11, 2)), logprob_array((-1.25, -1.375, -0.25)))
    assert first.finished
    assert (second.token_ids, second.finished) == (token_array((20, 21, 22)), False)
    assert (first.versions[0].version, second.versions[0].version) == ("0.8", "0.7")


async def test_a_frame_cut_over_network_packets_is_read_whole(replicas) -> None:
    async def bytewise(reply: Reply) -> None:
        event = frame(0, [10, 2], "stop", "0.7")
        for start in range(len(event)):
            await reply.send(event[start : start + 1])
            await asyncio.sleep(0.001)

    replicas[0].scripts = [bytewise]
    async with client(replicas[0]) as rollouts:
        assert (await ask(rollouts, num=1))[0].token_ids == token_array((10, 2))


async def test_a_completion_that_ended_at_once_is_empty_but_there(replicas) -> None:
    async def nothing(reply: Reply) -> None:
        await reply.send(frame(0, [], "stop", logprobs=b""))

    replicas[0].scripts = [nothing]
    async with client(replicas[0]) as rollouts:
        assert (await ask(rollouts, num=1))[0] == Completion(0, (), (), True, (), replicas[0].url)


async def test_prompts_go_to_the_replica_with_the_fewest_in_flight(replicas) -> None:
    release = asyncio.Event()

    async def held(reply: Reply) -> None:
        await release.wait()
        await write_all(reply)

    for fake in replicas:
        fake.scripts = [held]
    async with client(*replicas) as rollouts:
        tasks = [asyncio.create_task(ask(rollouts)) for _ in range(6)]
        while sum(len(fake.bodies) for fake in replicas) < 6:
            await asyncio.sleep(0.005)
        assert rollouts.roster.in_flight == {replicas[0].url: 3, replicas[1].url: 3}
        release.set()
        await asyncio.gather(*tasks)
        assert rollouts.roster.in_flight == {}


def all_but_last(reply: Reply) -> tuple[list[bytes], int]:
    """(the first completion of two, whole; the index of the last one, which goes wrong)."""
    last = reply.body["sampling_params"]["n"] - 1
    return [frame(0, [10, 2], "stop", "0.7")] * last, last


async def break_off(reply: Reply) -> None:
    """The first completion whole, half of the second, and gone."""
    whole, last = all_but_last(reply)
    await reply.send(*whole, frame(last, [90]), frame(last, [91])[:20])
    await asyncio.sleep(0.02)
    reply.drop()


async def end_early(reply: Reply) -> None:
    whole, _ = all_but_last(reply)
    await reply.send(*whole)


async def report_error(reply: Reply) -> None:
    whole, _ = all_but_last(reply)
    await reply.send(*whole, framed(Piece(0, error="EngineCore died")))


async def abort(reply: Reply) -> None:
    whole, last = all_but_last(reply)
    await reply.send(*whole, frame(last, [90]), frame(last, [], "abort"))


async def lose_logprobs(reply: Reply) -> None:
    whole, last = all_but_last(reply)
    await reply.send(*whole, frame(last, [90, 91, 2], "stop", "0.7", logprobs=b""))


async def write_noise(reply: Reply) -> None:
    whole, _ = all_but_last(reply)
    await reply.send(*whole, b"\0\0\0\4data")


@pytest.mark.parametrize(
    ("failure", "words"),
    [(500, "HTTP 500.*status 500"), (503, "HTTP 503"), (break_off, ""), (end_early, "ended before all"),
     (report_error, "EngineCore died"), (abort, "'abort'"), (lose_logprobs, "0 log-probs for 3 tokens"),
     (write_noise, "array")],
)  # fmt: skip
async def test_after_a_failure_another_replica_writes_what_is_missing_and_nothing_comes_twice(
    replicas, failure: Script | int, words: str
) -> None:
    failing, sound = replicas
    failing.scripts = [failure]
    async with client(failing, sound) as rollouts:
        first, second = await ask(rollouts)
        assert first.replica == (sound.url if isinstance(failure, int) else failing.url)
        assert (first.token_ids, second.token_ids) == (
            token_array((10, 2)),
            token_array((11, 2)),
        )  # no piece of the first attempt is left
        assert second.replica == sound.url
        assert len(failing.bodies) == len(sound.bodies) == 1
        again, before = sound.bodies[0]["sampling_params"], failing.bodies[0]["sampling_params"]
        missing = (0, 2) if isinstance(failure, int) else (1, 1)  # first that is missing, and how many
        assert (again["seed"], again["n"]) == (before["seed"] + missing[0], missing[1])
        assert rollouts.roster.in_flight == {}
    async with client(failing, timeout_s=0.3) as rollouts:
        with pytest.raises(ServiceError, match=rf"not answered within .*; last: {failing.url}: .*{words}"):
            await ask(rollouts)


async def test_a_lone_replica_is_asked_again_after_a_failure(replicas) -> None:
    replicas[0].scripts = [500, break_off, write_all]
    async with client(replicas[0]) as rollouts:
        first, second = await ask(rollouts)
    assert (first.token_ids, second.token_ids) == (token_array((10, 2)), token_array((11, 2)))
    assert len(replicas[0].bodies) == 3


async def test_a_replica_that_nobody_listens_for_is_passed_over(replicas) -> None:
    closed = f"http://127.0.0.1:{unused_port()}"
    async with Client(closed, replicas[0].url) as rollouts:
        assert (await ask(rollouts))[0].replica == replicas[0].url
        assert rollouts.roster.suspects == [closed]


async def test_a_refused_token_is_not_tried_elsewhere(replicas) -> None:
    replicas[0].scripts = [401]
    async with client(*replicas) as rollouts:
        with pytest.raises(Unauthorized, match=f"{replicas[0].url} refuses the token"):
            await ask(rollouts)
    assert replicas[1].bodies == []


async def test_a_deadline_names_the_replica_that_did_not_answer(replicas) -> None:
    async def hang(reply: Reply) -> None:
        await asyncio.sleep(60)

    replicas[0].scripts = [hang]
    async with client(replicas[0], timeout_s=0.2) as rollouts:
        with pytest.raises(ServiceError, match=rf"not answered within .*{replicas[0].url}"):
            await ask(rollouts)


async def test_without_members_a_prompt_waits_for_as_long_as_it_takes(replicas) -> None:
    async with client(timeout_s=0.05) as rollouts:  # the fleet, not the prompt, has a limit for that
        task = asyncio.create_task(ask(rollouts))
        await asyncio.sleep(0.1)
        assert not task.done()
        rollouts.roster.add(replicas[0].url)
        rollouts._timeout_s = 10.0
        assert len(await task) == 2


async def test_what_a_lost_replica_had_not_finished_is_written_by_another_with_the_same_seeds(replicas) -> None:
    frozen, sound = replicas

    async def freeze(reply: Reply) -> None:
        await reply.send(frame(1, [11, 2], "stop", "0.7"), frame(0, [90, 91]), frame(2, [92]))
        await asyncio.sleep(60)

    frozen.scripts = [freeze]
    async with client(frozen) as rollouts, rollouts.generate((5,), 3, seed=1000, salt=str) as futures:
        await futures[1]
        rollouts.roster.add(sound.url)
        rollouts.roster.membership.lose(rollouts.roster.membership.replicas[0], "its engine does not answer")
        completions = await asyncio.gather(*futures)
        assert [c.replica for c in completions] == [sound.url, frozen.url, sound.url]
        assert [c.index for c in completions] == [0, 1, 2]
        drawn = sorted((body["sampling_params"]["seed"], body["sampling_params"]["n"]) for body in sound.bodies)
        assert drawn == [(1000, 1), (1002, 1)]  # what completions 0 and 2 of a request for three are drawn with
        counts = rollouts.roster.membership.counts
        assert counts["rerouted_prompts"] == 1 and counts["tokens_discarded"] in (2, 3)  # the last piece may be lost
        assert rollouts.roster.suspects == []  # the fleet knows


async def test_a_request_names_the_boot_it_is_meant_for(replicas) -> None:
    async with client(replicas[0]) as rollouts:
        rollouts.roster.membership.replicas[0].boot_id = "b007"
        await ask(rollouts)
    assert replicas[0].headers[0]["x-boot-id"] == "b007"


async def test_leaving_the_context_cancels_the_request_at_the_replica(replicas) -> None:
    fake = replicas[0]

    async def hang(reply: Reply) -> None:
        await reply.send(frame(0, [10, 2], "stop", "0.7"))
        await asyncio.sleep(60)

    fake.scripts = [hang]
    async with client(fake) as rollouts:
        async with rollouts.generate((5,), 2, seed=0, salt=str) as futures:
            await futures[0]
        assert futures[1].cancelled() and futures[0].result().token_ids == token_array((10, 2))
        assert rollouts.roster.in_flight == {}
        async with asyncio.timeout(5):
            while not fake.num_abandoned:
                await asyncio.sleep(0.01)


async def test_a_failure_that_nobody_awaits_is_no_warning(replicas) -> None:
    replicas[0].scripts = [401]
    async with client(replicas[0]) as rollouts, rollouts.generate((5,), 2, seed=0, salt=str) as futures:
        await asyncio.wait(futures)
    assert all(isinstance(future.exception(), Unauthorized) for future in futures)


async def test_what_is_known_is_not_asked_for(replicas) -> None:
    known = Completion(1, (8, 2), (-0.3, -0.3), True, (VersionSpan("0.6", 0, 2),), "http://gone")
    async with client(replicas[0]) as rollouts:
        async with rollouts.generate((5,), 3, seed=1000, salt=str, known={1: known}) as futures:
            first, second, third = await asyncio.gather(*futures)
        assert second is known and (first.token_ids, third.token_ids) == (token_array((10, 2)), token_array((12, 2)))
        drawn = sorted((body["sampling_params"]["seed"], body["sampling_params"]["n"]) for body in replicas[0].bodies)
        assert drawn == [(1000, 1), (1002, 1)]
        async with rollouts.generate((5,), 1, seed=1000, salt=str, known={0: known}) as futures:
            assert await futures[0] is known
        assert len(replicas[0].bodies) == 2


async def test_a_stock_server_is_told_from_a_replica(replicas) -> None:
    replicas[0].scripts = [404]
    async with client(replicas[0], timeout_s=600.0) as rollouts, asyncio.timeout(5.0):
        with pytest.raises(RequestRefused, match="has no /inference/v1/packed: start it with"):
            await ask(rollouts)


async def test_what_one_replica_refuses_another_may_write(replicas) -> None:
    replicas[0].scripts = [400]
    async with client(*replicas) as rollouts:
        written = [await ask(rollouts) for _ in range(3)]
    assert {c.replica for completions in written for c in completions} == {replicas[1].url}
    assert replicas[0].bodies, "the one that refuses was never asked"


async def test_what_every_replica_refuses_ends_at_once_with_its_reason(replicas) -> None:
    for fake in replicas:
        fake.scripts = [422]
    async with client(*replicas, timeout_s=600.0) as rollouts, asyncio.timeout(5.0):
        with pytest.raises(RequestRefused, match=r"refuses a prompt of 3 tokens: HTTP 422.*status 422"):
            await ask(rollouts)
    assert [len(fake.bodies) for fake in replicas] == [1, 1]
