"""`python -m benchmarks.judge`: what the reward service costs, and what its routing saves.

Three questions, answered in one run of a few minutes on two cores without a GPU:

    throughput_ratio      verdicts a second through service and client, over those of a bare HTTP client that sends
                          the very same requests to the same two real vLLM servers (toy judge), 256 in flight in a
                          closed loop. All share the cores, so it weighs the CPU time that the service takes from the
                          judge.
    standin_ratio         the same ratio where the judge takes its time and no CPU: stand-in GenRM servers whose
    added_p99_ms          verdicts take 10..60 s, divided by --speedup, with 1,000 in flight. A verdict's overhead is
                          its latency as the asker sees it minus the time that its seed makes the stand-in sleep; the
                          added overhead is the 99th percentile through the service minus that of the bare client.
    prefix_hit_sticky     share of the prompts' tokens that vLLM's prefix caches held, by the servers' own counters, for
    prefix_hit_random     rings of four over long conversations, routed by conversation and at random

The two sides of a ratio take turns (A B B A) and get the same questions; prefix caches are emptied before every turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import aiohttp
import uvloop

from benchmarks.loads import (
    Ask,
    Question,
    Sample,
    ask_service,
    ask_straight,
    closed_loop,
    full_question,
    long_conversation,
    straight_session,
    toy_question,
)
from benchmarks.servers import cpu_seconds, genrms, reward_service, running, standins, toy_settings
from benchmarks.standin_genrm import MEDIAN_S, verdict_seconds
from deploy.toy.answers import good_answer
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.figures import read_figures
from reward_server.group import judge_group
from reward_server.instruments import Instruments
from reward_server.judge import Judge
from reward_server.main import GC_THRESHOLDS
from reward_server.peer import Peer, Reply, open_session
from reward_server.pool import Pool, PooledCall
from reward_server.prefix_cache import PrefixCache
from reward_server.scheme import Scheme
from wire.errors import ServiceError
from wire.judgement import Verdict
from wire.process import ServerProcess
from wire.settings import run_program
from wire.token import read_or_create_token

SIDES = ("service", "straight")
STARTUP_S, PART_S = 180.0, 540.0  # deadlines of the servers' start and of each question
RESET_TIMEOUT_S = 30.0
RAMP_S = 3.0  # until 256 requests are with the real judges and their batches are full
K, GROUPS_AT_ONCE = 4, 48


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--in_flight", type=int, default=256, help="Verdicts with the real judges at once.")
    parser.add_argument("--standin_in_flight", type=int, default=1000, help="Verdicts with the stand-ins at once.")
    parser.add_argument("--speedup", type=float, default=2.0, help="Divides the stand-ins' verdict times.")
    parser.add_argument("--window_s", type=float, default=7.0, help="Seconds of a turn that count, with real judges.")
    parser.add_argument("--standin_window_s", type=float, default=12.0, help="The same, with stand-ins.")
    parser.add_argument("--groups", type=int, default=144, help="Rings of four for each way of routing.")
    parser.add_argument("--parts", default="tpa", help="t: throughput, p: prefix caches, a: added latency.")
    parser.add_argument("--log_dir", help="Keep the servers' logs in this folder.")
    parser.add_argument("--profile", help="File for cProfile's statistics of the service; its figures then mislead.")
    return parser.parse_args()


def show(**figures: Any) -> None:
    """One line of detail."""
    print("  ".join(f"{name} {_rounded(value)}" for name, value in figures.items()), flush=True)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- throughput with real judges


async def throughput(
    flags: argparse.Namespace,
    settings: RewardSettings,
    token: str,
    judges: Sequence[ServerProcess],
    service: ServerProcess,
) -> dict[str, float]:
    """`throughput_ratio`.

    The details also give the CPU time of judges, service and asker together. On cores that are all busy throughput is
    its inverse, and it hears less of what else runs on the machine than the clock does.
    """
    urls = [judge.url for judge in judges]
    # Medians over the turns, for a machine is seldom one's own.
    rates, cpu = {side: list[float]() for side in SIDES}, {side: list[float]() for side in SIDES}
    texts = [toy_question(seed) for seed in range(8192)]  # drawn before any clock runs

    def questions_of(worker: int) -> Iterator[Question]:
        return cycle(texts[worker :: flags.in_flight])

    async def cpu_in_window() -> tuple[float, float, float]:
        await asyncio.sleep(RAMP_S)
        before = cpu_seconds(judges), cpu_seconds([service]), time.process_time()
        await asyncio.sleep(flags.window_s)
        after = cpu_seconds(judges), cpu_seconds([service]), time.process_time()
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    async with straight_session() as session, RewardClient(service.url, token, PART_S) as client:
        sides = _sides(client, session, urls, token, settings)
        for ask in sides.values():  # threads, connections and compiled kernels
            await closed_loop(ask, questions_of, flags.in_flight, RAMP_S, 0.0)
        for side in SIDES + SIDES[::-1] + SIDES + SIDES[::-1]:
            await reset_prefix_caches(urls, token)
            load = closed_loop(sides[side], questions_of, flags.in_flight, RAMP_S, flags.window_s)
            samples, used = await asyncio.gather(load, cpu_in_window())
            found = [sample.answer for sample in samples if RAMP_S <= sample.answered < RAMP_S + flags.window_s]
            rates[side].append(len(found) / flags.window_s)
            cpu[side].append(sum(used) / len(found))
            show(
                real_judges=side,
                answers=len(found),
                given=sum(answer.given for answer in found) / len(found),
                tokens=sum(answer.num_tokens for answer in found) / len(found),
                a_second=rates[side][-1],
                judges_cpu_ms=1e3 * used[0] / len(found),
                service_cpu_ms=1e3 * used[1] / len(found),
                asker_cpu_ms=1e3 * used[2] / len(found),
            )
    show(straight_cpu_over_service_cpu=median(cpu["straight"]) / median(cpu["service"]))
    return {"throughput_ratio": median(rates["service"]) / median(rates["straight"])}


def _sides(
    client: RewardClient, session: aiohttp.ClientSession, urls: Sequence[str], token: str, settings: RewardSettings
) -> dict[str, Ask]:
    return dict(zip(SIDES, (ask_service(client), ask_straight(session, urls, token, settings)), strict=True))


async def reset_prefix_caches(urls: Sequence[str], token: str) -> None:
    """Empty the servers' prefix caches.

    Raises:
        ServiceError: a server refuses.
    """
    async with open_session() as session:
        for url in urls:
            async with asyncio.timeout(RESET_TIMEOUT_S):
                reply = await Peer(session, url, token).send("POST", "/reset_prefix_cache")
            if reply.status != 200:
                raise ServiceError(f"{url} does not reset its prefix cache: HTTP {reply.status} {reply.text[:200]}")


# --- prefix caches


class RandomPool(Pool):
    """The same pool, but a call's conversation does not decide where it goes."""

    def __init__(self, session: aiohttp.ClientSession, token: str, *, max_in_flight: int) -> None:
        super().__init__(session, token, max_in_flight=max_in_flight)
        self._rng = Random(0)

    async def post(self, path: str, message: Any, affinity: int, call: PooledCall) -> Reply:
        """As `Pool.post`, with an affinity of chance."""
        return await super().post(path, message, self._rng.getrandbits(63), call)


async def prefix_hits(
    flags: argparse.Namespace, settings: RewardSettings, token: str, urls: list[str]
) -> dict[str, float]:
    """`prefix_hit_sticky` and `prefix_hit_random`."""
    shares = {}
    for name, pool_class in {"sticky": Pool, "random": RandomPool}.items():
        await reset_prefix_caches(urls, token)
        async with (
            open_session() as session,
            pool_class(session, token, max_in_flight=settings.judge_max_in_flight) as pool,
        ):
            for url in urls:
                pool.add(url)
            while pool.num_ready < len(urls):
                await asyncio.sleep(0.05)
            caches = [PrefixCache() for _ in urls]
            peers = [Peer(session, url, token) for url in urls]
            before = await _counters(caches, peers)
            await _judge_rings(flags.groups, Judge(pool, settings, Instruments(pool)), Scheme.of(settings))
            after = await _counters(caches, peers)
        queries, hits = after[0] - before[0], after[1] - before[1]
        show(routing=name, groups=flags.groups, prompt_tokens=queries / flags.groups / K, hit_share=hits / queries)
        shares[f"prefix_hit_{name}"] = hits / queries
    return shares


async def _counters(caches: list[PrefixCache], peers: list[Peer]) -> tuple[float, float]:
    for cache, peer in zip(caches, peers, strict=True):
        cache.update(await read_figures(peer))
    return sum(cache.queries for cache in caches), sum(cache.hits for cache in caches)


async def _judge_rings(num: int, judge: Judge, scheme: Scheme) -> None:
    """Judge `num` groups, `GROUPS_AT_ONCE` at a time, each as the service judges one."""
    places = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def ring(seed: int) -> None:
        rng = Random(seed)
        conversation = long_conversation(rng, 5, 130)
        completions = [_given(good_answer(rng, "sea") + f" {place}") for place in range(K)]

        async def judge_pair(first: str, second: str | None, pair_seed: int, vote: int) -> Verdict:
            return await judge.judge(conversation, (first, second or ""), pair_seed, vote)

        async with places:
            await judge_group(judge_pair, completions, seed, scheme)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(num):
            tasks.create_task(ring(seed))


async def _given(text: str) -> str:
    return text


# --- latency and throughput with stand-ins


async def added_latency(
    flags: argparse.Namespace, settings: RewardSettings, token: str, urls: list[str], service: ServerProcess
) -> dict[str, float]:
    """`standin_ratio` and `added_p99_ms`."""
    answers, overheads = dict.fromkeys(SIDES, 0), {side: list[float]() for side in SIDES}
    texts = [full_question(seed) for seed in range(64)]  # few texts, many seeds: drawing texts is no part of the load
    ramp_s, window_s, num = MEDIAN_S / flags.speedup, flags.standin_window_s, flags.standin_in_flight

    def questions_of(worker: int) -> Iterator[Question]:
        for i in count():
            seed = worker * 1000 + i
            yield replace(texts[seed % len(texts)], seed=seed)

    async with straight_session() as session, RewardClient(service.url, token, PART_S) as client:
        sides = _sides(client, session, urls, token, settings)
        for ask in sides.values():
            await closed_loop(ask, questions_of, num, ramp_s, 0.0)
        for side in SIDES + SIDES[::-1]:
            used, began = cpu_seconds([service]), time.perf_counter()
            samples = await closed_loop(sides[side], questions_of, num, ramp_s, window_s)
            cores = (cpu_seconds([service]) - used) / (time.perf_counter() - began)
            num_answers = sum(ramp_s <= sample.answered < ramp_s + window_s for sample in samples)
            found = [_overhead_ms(sample, flags.speedup) for sample in samples if sample.sent >= ramp_s]
            answers[side] += num_answers
            overheads[side] += found
            show(
                standins=side,
                a_second=num_answers / window_s,
                overhead_p50_ms=quantiles(found, n=100)[49],
                overhead_p99_ms=quantiles(found, n=100)[98],
                service_cores=cores,
            )
    p99 = {side: quantiles(found, n=100)[98] for side, found in overheads.items()}
    return {
        "standin_ratio": answers["service"] / answers["straight"],
        "added_p99_ms": p99["service"] - p99["straight"],
    }


def _overhead_ms(sample: Sample, speedup: float) -> float:
    return 1e3 * (sample.answered - sample.sent - verdict_seconds(sample.question.genrm_seed, speedup))


# --- the whole


def measure(flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Answer the questions of `flags.parts`, with all servers' files in `folder`."""
    figures: dict[str, float] = {}
    log_dir = ["--log_dir", flags.log_dir] if flags.log_dir else []
    settings = toy_settings(folder, "--judge_max_model_len", "1024", *log_dir)
    token = read_or_create_token(settings.token_file)
    if {"t", "p"} & set(flags.parts):
        judges = genrms(settings, 2)
        with running(judges, STARTUP_S) as urls:
            if "t" in flags.parts:
                service = reward_service(settings, urls, profile=flags.profile)
                with running([service], STARTUP_S):
                    figures |= _within(throughput(flags, settings, token, judges, service))
            if "p" in flags.parts:
                # Where a prompt's prefix lies does not depend on what is written after it.
                short = toy_settings(folder, "--judge_max_model_len", "1024", "--judge_max_tokens", "24")
                figures |= _within(prefix_hits(flags, short, token, urls))
    if "a" in flags.parts:
        with running(standins(2, flags.speedup, settings.log_dir), STARTUP_S) as urls:
            room = ["--judge_max_in_flight", str(flags.standin_in_flight)]
            service = reward_service(settings, urls, *room, profile=flags.profile)
            with running([service], STARTUP_S):
                figures |= _within(added_latency(flags, settings, token, urls, service))
    return figures


def _within(part: Any) -> dict[str, float]:
    """Run one part, with uvloop on both sides' askers, within its deadline."""

    async def bounded() -> dict[str, float]:
        async with asyncio.timeout(PART_S):
            return dict(await part)

    # As the service does: without it, collections of what was imported would be counted as latency.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    flags = arguments()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(flags, Path(folder))
    print(json.dumps({name: _rounded(value) for name, value in figures.items()}))


if __name__ == "__main__":
    run_program(main)
