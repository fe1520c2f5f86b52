"""Seeded requests on a CPU server under pressure: prefills that overflow the budget, and preemption."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_server.client import RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_command
from tests.e2e.conftest import START_S, TOY
from tests.rollout_server.roster import Roster
from wire.engine import vllm_environment
from wire.generation import Completion
from wire.process import ServerProcess, free_port
from wire.token import auth_headers, read_token

NUM_PROMPTS, PROMPT_TOKENS, NUM_TOKENS = 60, 90, 96
# 60 prompts of 90 tokens are 5,400, more than the 2,048 that a CPU server prefills at once. 24 blocks of 32 tokens hold
# four finished sequences of 186 tokens, so of those that begin, many are preempted on the way.
ENGINE = "--num-gpu-blocks-override 24 --no-enable-prefix-caching --block-size 32"


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
    assert len({c.token_ids for c in pressed}) == 2 * NUM_PROMPTS, "no two may be drawn alike"
    calm = await write_all(replica, token, at_once=2)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(pressed, calm, strict=True))
    assert equal >= 0.95 * len(calm), f"only {equal} of {len(calm)} are the same with and without pressure"
