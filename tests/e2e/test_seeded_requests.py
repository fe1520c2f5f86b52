"""Seeded requests on a CPU server under pressure: prefills that overflow the budget, and preemption."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

import rollout_server.rooms
from rollout_server.client import RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_command
from rollout_server.rooms import Rooms
from tests.e2e.conftest import START_S, TOY
from tests.rollout_server.roster import Roster
from wire.engine import vllm_environment
from wire.generation import Completion
from wire.load import Load
from wire.pieces import PACKED_PATH
from wire.process import ServerProcess, free_port
from wire.token import auth_headers, read_token

NUM_PROMPTS, PROMPT_TOKENS, NUM_TOKENS = 60, 90, 96
# 60 prompts of 90 tokens are 5,400, more than the 2,048 that a CPU server prefills at once. 24 blocks of 32 tokens hold
# four finished sequences of 186 tokens, so of those that begin, many are preempted on the way.
ENGINE = "--num-gpu-blocks-override 24 --no-enable-prefix-caching"


@pytest.fixture(scope="module")
def replica(folder: Path, token_file: Path) -> Iterator[str]:
    """A replica with random weights, which seldom end a completion, no gate before them, and very little cache."""
    settings = RolloutSettings(
        model_name_or_path=str(TOY / "policy"),
        device="cpu",
        rollout_dtype="float32",
        max_prompt_length=PROMPT_TOKENS,
        response_length=NUM_TOKENS,
        rollout_max_num_seqs=64,
        rollout_extra_args=ENGINE,
        rollout_ports=[free_port("127.0.0.1")],
        token_file=str(token_file),
        log_dir=str(folder),
    )
    port = settings.rollout_ports[0]
    command = replica_command(settings, port)
    gate = command.index("rollout_server.gate.WeightGateMiddleware")
    env = vllm_environment(bind_address="127.0.0.1", token_file=str(token_file), device="cpu")
    command = [*command[: gate - 1], *command[gate + 1 :]]
    process = ServerProcess("pressed", command, env, folder / "pressed.log", f"http://127.0.0.1:{port}")
    process.start()
    try:
        process.wait_healthy(START_S)
        yield process.url
    finally:
        process.stop()


def num_preemptions(url: str, token: str) -> float:
    """The server's own count."""
    request = urllib.request.Request(f"{url}/metrics", headers=auth_headers(token))
    with urllib.request.urlopen(request, timeout=30) as reply:
        text = reply.read().decode()
    return sum(float(value) for value in re.findall(r"^vllm:num_preemptions_total\{.*\} (\S+)$", text, re.MULTILINE))


async def write_all(url: str, token: str, at_once: int) -> list[Completion]:
    """Every prompt's two completions, `at_once` prompts in flight."""
    places = asyncio.Semaphore(at_once)

    async def write(client: RolloutClient, index: int) -> list[Completion]:
        prompt = [5 + (index * 31 + i * 7) % 700 for i in range(PROMPT_TOKENS)]
        async with places, client.generate(prompt, 2, seed=10**12 + 1000 * index, salt=lambda: "x") as futures:
            return list(await asyncio.gather(*futures))

    async with RolloutClient(Roster(url), token, Sampling(NUM_TOKENS, 1.0, ()), timeout_s=240) as client:
        rows = await asyncio.gather(*(write(client, index) for index in range(NUM_PROMPTS)))
    return [completion for row in rows for completion in row]


async def test_an_overfull_prefill_and_preemption_neither_crash_it_nor_change_what_is_drawn(
    replica: str, token_file: Path
) -> None:
    token = read_token(token_file)
    pressed = await write_all(replica, token, at_once=NUM_PROMPTS)
    assert num_preemptions(replica, token) > 0
    assert all(len(c.token_ids) == len(c.logprobs) > 0 for c in pressed)
    assert sum(len(c.token_ids) for c in pressed) > 0.8 * NUM_TOKENS * len(pressed)
    assert len({tuple(c.token_ids) for c in pressed}) == 2 * NUM_PROMPTS, "no two may be drawn alike"
    calm = await write_all(replica, token, at_once=2)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(pressed, calm, strict=True))
    assert equal >= 0.95 * len(calm), f"only {equal} of {len(calm)} are the same with and without pressure"


async def test_the_packed_route_gives_what_vllms_own_gives(replica: str, token_file: Path) -> None:
    """Tokens, log-probs to the last bit of the engine's, how it ended, and who wrote what; and the same refusals."""
    token, prompt, sampling = read_token(token_file), [5, 6, 7], Sampling(NUM_TOKENS, 1.0, (2,))
    async with (
        aiohttp.ClientSession(headers=auth_headers(token)) as session,
        RolloutClient(Roster(replica), token, sampling, timeout_s=120) as client,
    ):
        async with client.generate(prompt, 2, seed=77, salt=lambda: "x") as futures:
            found = await asyncio.gather(*futures)
        drawn = {"n": 2, "seed": 77, "max_tokens": NUM_TOKENS, "temperature": 1.0, "top_k": 0, "logprobs": 0}
        drawn |= {"stop_token_ids": [2], "detokenize": False}
        body = {"token_ids": prompt, "cache_salt": "x", "sampling_params": drawn}
        async with session.post(f"{replica}/inference/v1/generate", json=body) as reply:
            choices = sorted((await reply.json())["choices"], key=lambda choice: int(choice["index"]))
        refused = body | {"sampling_params": drawn | {"temperature": -1.0}}
        statuses = []
        for path in ("/inference/v1/generate", PACKED_PATH):
            async with session.post(replica + path, json=refused) as reply:
                statuses.append((reply.status, "temperature" in await reply.text()))
    for completion, choice in zip(found, choices, strict=True):
        assert [*completion.token_ids] == choice["token_ids"]
        assert [*completion.logprobs] == [token["logprob"] for token in choice["logprobs"]["content"]]
        assert completion.finished == (choice["finish_reason"] == "stop")
        assert [msgspec.to_builtins(span) for span in completion.versions] == choice["weight_versions"]
    assert statuses[0] == statuses[1] and statuses[0][0] == 400


MOST = 32  # completions in flight at first; the cache holds four to eight, by how far they are


async def load_of(session: aiohttp.ClientSession, url: str) -> Load:
    async with session.get(f"{url}/metrics") as reply:
        load = Load.read(await reply.text())
    assert load is not None, "the server's page lacks a figure"
    return load


async def test_a_room_comes_down_to_what_the_cache_holds_and_then_no_prompt_waits_in_the_server(
    replica: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_server.rooms, "LOOK_INTERVAL_S", 0.5)
    token = read_token(token_file)
    roster, sampling = Roster(replica), Sampling(NUM_TOKENS, 1.0, ())
    (member,) = roster.ready()
    async with (
        aiohttp.ClientSession(headers=auth_headers(token)) as session,
        RolloutClient(roster, token, sampling, timeout_s=240, room=MOST) as client,
    ):

        async def write_for_ever(index: int) -> None:
            while True:
                prompt = [5 + (index * 31 + i * 7) % 700 for i in range(PROMPT_TOKENS)]
                async with client.generate(prompt, 2, seed=10**12 + 1000 * index, salt=lambda: "x") as futures:
                    await asyncio.gather(*futures)

        rooms = Rooms(session, roster, client._places, least=2, most=MOST)
        work = [asyncio.create_task(write_for_ever(index)) for index in range(MOST)]
        following = asyncio.create_task(rooms.follow())
        most_waiting, load = 0.0, await load_of(session, replica)
        try:
            async with asyncio.timeout(300):
                while not (0 < member.room <= 8 and load.waiting < 2 and load.running > 0):
                    assert not following.done()
                    await asyncio.sleep(0.2)
                    load = await load_of(session, replica)
                    most_waiting = max(most_waiting, load.waiting)
        finally:
            for task in [*work, following]:
                task.cancel()
            await asyncio.gather(*work, following, return_exceptions=True)
    assert most_waiting > 8
