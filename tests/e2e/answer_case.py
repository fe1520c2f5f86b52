"""One step's weights as a run leaves them, a checkpoint and an export. A program: a JSON object as argument."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.e2e.conftest import TOY_CONFIG
from tests.e2e.push_case import samples_of
from trainer.batch import build_batch
from trainer.checkpoint import Checkpoints
from trainer.config import RunSettings
from trainer.environment import prepare_embedded_ray
from trainer.export import Exports
from trainer.supervisor import Supervised
from wire.generation import PolicyVersion
from wire.settings import parse_settings


async def leave(case: dict[str, Any]) -> None:
    """`checkpoint-1` and `export-1` in the case's output_dir."""
    from trainer.placement import place_learner, ray_cluster
    from trainer.ranks import Learner

    flags = ["--output_dir", case["output_dir"], "--token_file", case["token_file"], "--learning_rate", "3e-2"]
    settings, _ = parse_settings(
        RunSettings, ["--config", str(TOY_CONFIG), *flags, "--warmup_ratio", "0"], strict_file=True
    )
    samples = samples_of(16)
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    with ray_cluster(settings):
        ranks, meeting_host = await place_learner(settings, print)
        learner = Learner(ranks, settings)
        await learner.setup(meeting_host)
        batch = build_batch(samples, num_ranks=1, num_mini_batches=1, token_budget=settings.microbatch_tokens)
        await learner.step(batch)
        await Checkpoints(settings).save(learner, PolicyVersion(0, 1), next_prompt=16)
        await Exports(settings).save(learner, 1)
        await learner.close()


if __name__ == "__main__":
    prepare_embedded_ray()
    with Supervised():
        asyncio.run(leave(json.loads(sys.argv[1])))
