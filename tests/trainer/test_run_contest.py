"""A run's own driver, from its first push to its summary, with evaluations beside it.

The client, the fleet and the journal are the real ones, over replicas that take their time and a judge that knows the
truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.standin_fleet import StandInFleet
from benchmarks.standin_replica import length_of
from benchmarks.standin_services import StandInRank
from reward_server.group import judge_group
from reward_server.scheme import Scheme
from rollout_server.fleet import Fleet
from trainer.config import RunSettings
from trainer.journal import open_trace
from trainer.ledger import Ledger
from trainer.material import Material
from trainer.prompts import Prompt, hash_seed
from trainer.ranks import Learner
from trainer.run import Run
from trainer.services import Services
from wire.judgement import GroupVerdict, Message, Verdict

TOKEN = "token"
NUM, STEPS = 12, 6
PROMPTS = [Prompt(number, ({"role": "user", "content": f"sea {number}?"},), (5, number)) for number in range(NUM)]


def truth(text: str) -> float:
    return float(int(text) % 5 + 1)


class Judge:
    """A text is the number of its completion's tokens, and its truth follows from that."""

    def __init__(self, settings: RunSettings) -> None:
        self._scheme = Scheme.of(settings)

    async def judge(
        self, conversation: Any, responses: Sequence[str], seed: int, vote: int = 0, *, background: Any = None
    ) -> Verdict:
        return Verdict(scores=tuple(truth(text) for text in responses), ranking=None)

    async def group(
        self, conversation: Sequence[Message], completions: Any, seed: int, memory: Any = None
    ) -> GroupVerdict:
        async def pair(first: str, second: str | None, pair_seed: int, vote: int) -> Verdict:
            return await self.judge(conversation, (first,) if second is None else (first, second), pair_seed)

        return await judge_group(pair, completions, seed, self._scheme)


class Rank(StandInRank):
    """Its policy is in no file."""

    def __init__(self) -> None:
        super().__init__(TOKEN, step_s=0.05, reference_s=0.0)
        self._methods |= {"export": self._write, "save": self._write}

    async def _write(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


async def summary_of(settings: RunSettings, standins: StandInFleet) -> dict[str, Any]:
    tokenizer = SimpleNamespace(decode=lambda ids, **_: str(len(ids)))
    material = Material(tokenizer, (2,), PROMPTS, PROMPTS, None, [])
    learner = Learner([Rank()], settings)
    await learner.setup("127.0.0.1")
    judge: Any = Judge(settings)
    unused: Any = SimpleNamespace(num_adopted=0, is_adopted=False)
    async with Fleet(settings, TOKEN) as fleet:
        for url in standins.urls:
            await fleet.add(url)
        services = Services(learner, fleet, unused, None, "127.0.0.1", judge, unused)
        with open_trace(settings, goes_on=False) as trace:
            run = Run(settings, material, TOKEN, services, print, unused, trace)
            async with Ledger.open(settings, None, print) as ledger:
                return await run._run(ledger, 0.0)


@pytest.mark.parametrize("inflight_updates", [True, False])
async def test_a_run_evaluates_beside_its_steps_and_its_summary_has_the_final_policys_rate(
    tmp_path: Path, inflight_updates: bool
) -> None:
    settings = RunSettings(
        device="cpu", output_dir=str(tmp_path), rloo_k=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        total_episodes=8 * STEPS, response_length=40, rollout_max_num_seqs=16, adaptive_in_flight=False, eval_steps=2,
        save_steps=0, trace_mib=1, picture_steps=0, kl_coef=0.0, probe_interval_s=0.1,
        inflight_updates=inflight_updates, max_first_logp_gap=9.0,
    )  # fmt: skip
    async with StandInFleet(2, mean_tokens=20, spread=0.5, token_s=0.002) as standins:
        summary = await summary_of(settings, standins)

    def length(prompt: int, version: str) -> int:
        return length_of(hash_seed(42, "eval", prompt, version), 20, 0.5, 40)

    pairs = [(length(prompt, f"0.{STEPS}"), length(prompt, "0.0")) for prompt in range(NUM)]
    wins = [(truth(str(ours)), truth(str(theirs))) for ours, theirs in pairs]
    found = summary["evaluation"]
    assert found["step"] == STEPS and found["oldest_version"] == found["newest_version"] == f"0.{STEPS}"
    assert found["win_rate"] == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in wins) / NUM)
    assert found["length"] == pytest.approx(sum(ours for ours, _ in pairs) / NUM)
    assert found["missing"] == 0 and len((tmp_path / "initial_answers.jsonl").read_text().splitlines()) == NUM
    events = EventAccumulator(str(settings.runs_dir))
    events.Reload()
    rates = events.Scalars("eval/win_rate")
    assert rates[-1].step == STEPS and rates[-1].value == pytest.approx(found["win_rate"])
    told = {event.value for event in events.Scalars("eval/step")}
    assert len(told) + summary["evaluations_skipped"] == STEPS // 2
