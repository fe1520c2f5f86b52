"""What the driver itself costs: its CPU time a completion of 1,000 tokens, over real HTTP servers in other processes.

Replicas are `benchmarks.standin_replica`, the judge is the real reward service before `benchmarks.standin_genrm`.
The driver is the run's own: fleet, client, collector, pairing, pipeline, ledger, loop. The tokens are turned to text by
the toy policy's tokenizer. The learner is a stand-in rank in this process: what a call to a Ray actor costs is not
counted.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from benchmarks.servers import reward_service, running, standins, toy_settings
from benchmarks.standin_fleet import StandInFleet
from benchmarks.standin_services import StandInRank
from reward_server.client import RewardClient
from rollout_server.client import RolloutClient, Sampling
from rollout_server.fleet import Fleet
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import Ledger
from trainer.loop import train
from trainer.main import collect_rarely
from trainer.material import Material, load_tokenizer
from trainer.prompts import Prompt, PromptStream
from trainer.ranks import Learner
from trainer.stats import StepStats
from wire.generation import PolicyVersion
from wire.token import read_or_create_token

TOKENS = 1000
REPLICAS, SLOTS, K, PROMPTS_PER_STEP = 2, 64, 4, 32
# The load of a large fleet, 64 replicas that write 4,000 tokens a second each: 256 completions a second. Under a third
# of it, where the driver is idle most of the time, a completion costs a third more: both are in results/pipeline.md.
TOKEN_S = 0.00025
SPEEDUP = 160.0  # of the verdicts, whose median is 22 s
WARM_STEPS = 4
STARTUP_S = 120.0
STOP_TOKEN = 2
READINGS = 500
PROMPT = ({"role": "user", "content": "what is the sea?"},)


class Watch:
    """The journal of the run: CPU time of this process, all threads, from the end of the warm steps to the last."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self._profile = profile
        self._began = (0.0, 0.0, 0.0)
        self._num = 0
        self.cpu_s = self.loop_s = self.wall_s = 0.0
        self.num_completions = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Nothing is kept."""
        yield

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None:
        """Take the time."""
        self._num += 1
        if self._num > WARM_STEPS:
            self.num_completions += sum(len(group.completions) for group in groups)
            self.cpu_s = time.process_time() - self._began[0]
            self.wall_s = time.perf_counter() - self._began[1]
            self.loop_s = time.thread_time() - self._began[2]
            assert all(len(c.token_ids) == TOKENS for group in groups for c in group.completions)
        elif self._num == WARM_STEPS:
            self._began = (time.process_time(), time.perf_counter(), time.thread_time())
            if self._profile is not None:
                self._profile.enable()


def run_settings(folder: str, steps: int) -> RunSettings:
    """Of the measured run."""
    return RunSettings(
        device="cpu",
        model_name_or_path=".cache/toy/policy",
        output_dir=folder,
        rloo_k=K,
        per_device_train_batch_size=K,
        gradient_accumulation_steps=PROMPTS_PER_STEP,
        total_episodes=steps * K * PROMPTS_PER_STEP,
        rollout_max_num_seqs=SLOTS,
        response_length=2 * TOKENS,
    )


def plain_json_ms() -> float:
    """Milliseconds of CPU in which this machine's Python reads one such completion from JSON in the shape of vLLM's
    OpenAI routes, and nothing else: what the driver's figure is to be seen beside, as both grow on a slow machine."""
    words = [f"token {token}" for token in range(TOKENS)]
    logprobs = [-1.0 / (token + 1) for token in range(TOKENS)]
    content = {"tokens": words, "token_logprobs": logprobs, "text_offset": list(range(TOKENS))}
    text = json.dumps({"choices": [{"text": "".join(words), "logprobs": content, "token_ids": list(range(TOKENS))}]})
    started = time.process_time()
    for _ in range(READINGS):
        json.loads(text)
    return 1000 * (time.process_time() - started) / READINGS


async def driver_cost(num_completions: int, *, profile: str | None = None) -> float:
    """Milliseconds of CPU a completion.

    Args:
        num_completions: at least so many are measured.
        profile: file for cProfile's statistics.
    """
    collect_rarely()
    steps = WARM_STEPS + -(-num_completions // (K * PROMPTS_PER_STEP))
    profiler = cProfile.Profile() if profile else None
    with tempfile.TemporaryDirectory() as folder:
        judge_settings = toy_settings(Path(folder))
        token = read_or_create_token(judge_settings.token_file)
        with running(standins(1, SPEEDUP, folder), STARTUP_S) as urls:
            service = reward_service(judge_settings, urls, "--judge_max_in_flight", "1024")
            with running([service], STARTUP_S) as service_urls:
                watch = Watch(profiler)
                await _run(run_settings(folder, steps), token, service_urls[0], watch)
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile or "")
    print(
        f"driver             {watch.num_completions} completions of {TOKENS} tokens, {watch.cpu_s:.2f} s of CPU time "
        f"({watch.loop_s:.2f} s in the event loop's thread) in {watch.wall_s:.1f} s",
        flush=True,
    )
    return 1000 * watch.cpu_s / watch.num_completions


async def _run(settings: RunSettings, token: str, judge_url: str, watch: Watch) -> None:
    learner = Learner([StandInRank(token, step_s=0.05, reference_s=0.01)], settings)
    await learner.setup("127.0.0.1")
    sampling = Sampling(settings.response_length, settings.temperature, (STOP_TOKEN,))
    material = Material(load_tokenizer(settings), (STOP_TOKEN,), [], [], None, [])
    texts, live = count(), PolicyVersion(0, 0)

    def decode(token_ids: Sequence[int]) -> str:
        """All stand-ins write the same: the texts must differ, or one stands for all before the judge."""
        return f"{material.decode(token_ids)} {next(texts)}"

    async with (
        StandInFleet(REPLICAS, slots=SLOTS, mean_tokens=TOKENS, spread=0.0, token_s=TOKEN_S) as standins,
        Ledger.open(settings, None, print) as ledger,
        Fleet(settings, token) as fleet,
        RolloutClient(fleet, token, sampling, settings.rollout_timeout_s, room=SLOTS) as rollouts,
        RewardClient(judge_url, token, 60.0) as judge,
    ):
        for url in standins.urls:
            await fleet.add(url)

        async def publish(version: PolicyVersion) -> None:
            nonlocal live
            await fleet.publish(learner, version)
            live = version

        async def prune(version: PolicyVersion, pipeline: object) -> None:
            pass

        await publish(live)
        collector = Collector(
            settings,
            rollouts,
            judge,
            learner,
            decode,
            version=lambda: live,
            learner_version=lambda: learner.version,
            ledger=ledger,
        )
        tending = asyncio.create_task(fleet.tend())
        try:
            await train(
                settings,
                version=live,
                prompts=PromptStream([Prompt(0, PROMPT, (5, 6, 7))], seed=1),
                collect=collector,
                inspect=lambda groups: None,
                learner=learner,
                publish=publish,
                checkpoint=prune,
                ledger=ledger,
                journal=watch,
            )
        finally:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
