"""Two real GenRM servers behind the real service, asked for 256 verdicts at once while its parts are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from deploy.toy.answers import any_answer
from deploy.toy.prompts import ask
from deploy.toy.world import TOPICS
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.dialects import dialect_named
from reward_server.genrm import genrm_process
from tests.e2e.conftest import ROOT, START_S, TOY_CONFIG, Program
from wire.judgement import GroupVerdict, Message, Verdict
from wire.process import ServerProcess, free_port
from wire.settings import parse_settings
from wire.token import auth_headers, read_token

K, GROUPS = 4, 64
FROZEN_S = 20.0


@pytest.fixture(scope="module")
def genrms(folder: Path, token_file: Path) -> Iterator[list[ServerProcess]]:
    """Two toy GenRM servers that no service has started."""
    flags = ["--config", str(TOY_CONFIG), "--token_file", str(token_file), "--log_dir", str(folder / "pool-logs")]
    settings, _ = parse_settings(RewardSettings, flags, strict_file=False)
    settings.judge_model_name_or_path = str(ROOT / settings.judge_model_name_or_path)
    servers = [genrm_process(settings, index) for index in range(2)]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_healthy(START_S)
        yield servers
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGCONT)
            server.stop()


def service_flags(port: int, genrms: list[ServerProcess]) -> list[str]:
    urls = [server.url for server in genrms]
    # The served name is the model's path, which the fixture made absolute.
    model = str(ROOT / ".cache" / "toy" / "judge")
    flags = ["--reward_port", str(port), "--judge_servers", "0", "--judge_urls", *urls]
    return [*flags, "--judge_model_name_or_path", model, "--judge_health_timeout_s", "5"]


def conversations(seed: int) -> list[tuple[tuple[Message, ...], list[str]]]:
    """Questions, each with K different answers."""
    rng = Random(seed)
    cases = []
    for _ in range(GROUPS):
        topic = rng.choice(list(TOPICS))
        answers: set[str] = set()
        while len(answers) < K:
            answers.add(any_answer(rng, topic) or "well")
        cases.append(((Message(role="user", content=ask(rng, "validation", topic)),), sorted(answers)))
    return cases


async def given_text(text: str) -> str:
    return text


async def judge_all(client: RewardClient, seed: int, done: list[GroupVerdict]) -> None:
    async def judge(conversation: tuple[Message, ...], answers: list[str], index: int) -> None:
        done.append(await client.group(conversation, [given_text(text) for text in answers], index))

    async with asyncio.TaskGroup() as tasks:
        for index, (conversation, answers) in enumerate(conversations(seed)):
            tasks.create_task(judge(conversation, answers, index))


def check_every_verdict(groups: list[GroupVerdict]) -> None:
    """As many verdicts as were asked for, each number the one its judge wrote, and no score of what nobody judged."""
    verdicts = [placed.verdict for group in groups for placed in group.verdicts]
    assert len(groups) == GROUPS and len(verdicts) == K * GROUPS
    dialect = dialect_named("boxed")
    for verdict in verdicts:
        if verdict.missing is None:
            reading = dialect.read(verdict.text, 2)
            assert (verdict.scores, verdict.ranking) == (reading.scores, reading.ranking)
        else:
            assert verdict.scores is None and verdict.ranking is None
    for group in groups:
        given = [placed for placed in group.verdicts if placed.verdict.missing is None]
        judged = {k for placed in given for k in (placed.first, placed.second)}
        if {placed.first for placed in given} & {placed.second for placed in given}:
            assert {k for k, score in enumerate(group.scores) if score is not None} == judged
        else:  # nobody stood in both places: what the judge likes in a place cannot be told from quality
            assert set(group.scores) == {None}
    lost = [verdict.missing for verdict in verdicts if verdict.missing not in (None, "unreadable", "too_long")]
    assert lost == []  # the toy judge may stumble over an answer; no verdict is lost to a server


async def service_counters(url: str, token: str) -> dict[str, float]:
    async with aiohttp.ClientSession(headers=auth_headers(token)) as session, session.get(f"{url}/metrics") as reply:
        lines = [line.rpartition(" ") for line in (await reply.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def test_no_verdict_is_asked_twice_when_the_service_itself_is_killed(
    genrms: list[ServerProcess], start: Callable[..., Program], token_file: Path
) -> None:
    port, token = free_port("127.0.0.1"), read_token(token_file)
    url, flags = f"http://127.0.0.1:{port}", service_flags(port, genrms)
    first = start("reward_server.main", *flags, name="killed-reward")
    await asyncio.to_thread(first.wait_for, "reward service http")
    async with RewardClient(url, token, timeout_s=150) as client:
        done: list[GroupVerdict] = []
        delivered = 0
        asked = client.judge

        async def counted(*arguments: Any) -> Verdict:
            nonlocal delivered
            verdict = await asked(*arguments)
            delivered += 1
            return verdict

        client.judge = counted
        work = asyncio.create_task(judge_all(client, 1, done))
        while delivered < 20:
            await asyncio.sleep(0.02)
        first.process.kill()
        first.process.wait()
        had = delivered
        second = start("reward_server.main", *flags, name="restarted-reward")
        await asyncio.to_thread(second.wait_for, "reward service http")
        await work
        counters = await service_counters(url, token)
    check_every_verdict(done)
    given = sum(value for name, value in counters.items() if name.startswith("reward_verdicts_total"))
    assert 20 <= had < K * GROUPS and given == K * GROUPS - had
    second.stop()


async def test_a_killed_and_a_frozen_judge_cost_no_verdict(
    genrms: list[ServerProcess], start: Callable[..., Program], token_file: Path
) -> None:
    port = free_port("127.0.0.1")
    program = start("reward_server.main", *service_flags(port, genrms), name="pooled-reward")
    await asyncio.to_thread(program.wait_for, "reward service http")
    async with RewardClient(f"http://127.0.0.1:{port}", read_token(token_file), timeout_s=150) as client:
        while sum(s["state"] == "ready" for s in (await client.call("GET", "/v1/servers"))["servers"]) < 2:
            await asyncio.sleep(0.1)
        done: list[GroupVerdict] = []
        work = asyncio.create_task(judge_all(client, 2, done))
        while sum(s["answers"] for s in (await client.call("GET", "/v1/servers"))["servers"]) < 10:
            await asyncio.sleep(0.05)
        os.killpg(genrms[0].pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        os.killpg(genrms[1].pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        states = set()
        while time.monotonic() < frozen_at + FROZEN_S:
            await asyncio.sleep(0.5)
            states |= {s["state"] for s in (await client.call("GET", "/v1/servers"))["servers"]}
        assert states == {"ready", "lost"} and not work.done()
        os.killpg(genrms[1].pid, signal.SIGCONT)
        await work
        state = await client.call("GET", "/v1/servers")
    check_every_verdict(done)
    assert [server["state"] for server in state["servers"]] == ["lost", "ready"]
    assert state["servers"][0]["losses"] > 0
