"""A run's last steps on a real learner, and one of them replayed on another: a program, `train|replay folder`.

The policy and the prompts are the toy's; completions and verdicts are made up. `train` writes the ledger and the
checkpoints, `replay` writes lines.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tests.trainer.test_audit import SETTINGS, made
from trainer.advantages import assemble_rewards, step_advantages
from trainer.batch import Sample, build_batch
from trainer.checkpoint import Checkpoints
from trainer.config import RunSettings
from trainer.group import Group
from trainer.learner import LearnerRank
from trainer.ledger import Ledger
from trainer.material import training_material
from trainer.prompts import PromptStream
from trainer.ranks import Learner
from trainer.record import recorded
from trainer.replay import KeptGroup, Plan, compared, replayed
from wire.generation import PolicyVersion
from wire.settings import parse_settings

ROOT = Path(__file__).parents[2]
NUM_GROUPS, STEPS = 3, 3


class Here:
    """A rank in this process, called as if Ray held it."""

    def __init__(self, rank: LearnerRank) -> None:
        self._rank = rank

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._rank, name)

        class Method:
            remote: Callable[..., Awaitable[Any]] = staticmethod(lambda *arguments: _called(method, arguments))

        return Method


async def _called(method: Any, arguments: tuple[Any, ...]) -> Any:
    return method(*arguments)


def settings_in(folder: Path) -> RunSettings:
    settings, _ = parse_settings(
        RunSettings, ["--config", str(ROOT / "configs" / "toy.yaml"), "--output_dir", str(folder)], strict_file=True
    )
    return replace(settings, **(SETTINGS | {"save_steps": 1, "save_total_limit": 2, "num_ppo_epochs": 2}))


async def train(settings: RunSettings, learner: Learner) -> None:
    stream = PromptStream(training_material(settings).prompts, settings.seed)
    checkpoints = Checkpoints(settings)
    await learner.setup(settings.bind_address)
    async with Ledger.open(settings, None, lambda _: None) as ledger:
        version = PolicyVersion(0, 0)
        for _ in range(STEPS):
            groups = []
            for _ in range(NUM_GROUPS):
                prompt = next(stream)
                group = replace(await made(ledger, prompt.occurrence, version.label, settings), prompt=prompt)
                groups.append(await scored(group, learner, settings))
            groups = step_advantages(groups, settings)
            samples = [sample for group in groups for sample in group.samples()]
            stats = await learner.step(
                build_batch(samples, num_ranks=1, num_mini_batches=1, token_budget=settings.microbatch_tokens)
            )
            version = PolicyVersion(0, version.step + 1)
            await ledger.record_step(version, groups, stats, dropped=[])
            await checkpoints.save(learner, version, NUM_GROUPS * version.step)
            await ledger.prune(checkpoints.first_needed())


async def scored(group: Group, learner: Learner, settings: RunSettings) -> Group:
    logprobs = await learner.reference(
        [Sample(group.prompt.token_ids, c.token_ids, c.logprobs) for c in group.completions]
    )
    kl = [sum(own) - sum(reference) for own, reference in logprobs]
    finished = [c.finished for c in group.completions]
    scores, rewards = assemble_rewards(group.verdict.scores, finished, kl, group.length_terms_K, settings)
    return replace(group, kl_K=kl, scores_K=scores, rewards_K=rewards)


async def replay(settings: RunSettings, learner: Learner, folder: Path) -> None:
    """As it was, and with one token of one completion altered."""
    with recorded(folder) as record:
        plan, version = Plan.of(record, folder, STEPS), PolicyVersion(0, STEPS)
        await learner.setup(settings.bind_address)
        found = [(await replayed(record, plan, learner))[version]]
        await learner.load(str(plan.checkpoint))
        altered = [_with_another_token(plan.kept[version][0]), *plan.kept[version][1:]]
        found.append(await compared(learner, version, altered, record.step_numbers()[version] or {}, settings))
    lines = [[comparison.line(version.label, 1e-5) for comparison in comparisons] for comparisons in found]
    (folder / "lines.json").write_text(json.dumps(lines))


def _with_another_token(group: KeptGroup) -> KeptGroup:
    first, *others = group.completions
    ids = (first.token_ids[0], first.token_ids[1] + 1, *first.token_ids[2:])
    return replace(group, completions=[msgspec.structs.replace(first, token_ids=ids), *others])


async def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    settings = settings_in(folder)
    learner = Learner([Here(LearnerRank(settings, 0))], settings)
    await (train(settings, learner) if what == "train" else replay(settings, learner, folder))
    await learner.close()


if __name__ == "__main__":
    asyncio.run(main())
