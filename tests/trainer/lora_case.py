"""One learner rank with adapters under real DeepSpeed.

A program: `rank world port folder`. The folder holds the model and `samples.json`; rank 0 of a world writes
`world-N.pt`, {stage: what was found}, and exports beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

import trainer.learner
from tests.ranks import run_rank
from trainer.batch import Sample, build_batch
from trainer.config import RunSettings
from trainer.learner import LearnerRank
from trainer.lora import served_weights
from trainer.optimizer import deepspeed_config
from trainer.publish import ZeroWeightSource

ROOT = Path(__file__).parents[2]
RATE, RANK, ALPHA, TEMPERATURE = 0.5, 4, 12, 0.8

Tensors = dict[str, torch.Tensor]


class Rank(LearnerRank):
    """A learner rank that keeps its last gradients and counts the references it loads; its group outlives it."""

    gradients: Tensors
    num_loaded = 0

    def _join(self, host: str, port: int) -> None:
        if not dist.is_initialized():
            super()._join(host, port)

    def _load_scorer(self) -> Any:
        self.num_loaded += 1
        return super()._load_scorer()

    def _build_engine(self, config: dict[str, Any]) -> Any:
        engine = super()._build_engine(config)
        take_step = engine.step

        def step() -> None:
            self.gradients = {name: safe_get_full_grad(p).clone() for name, p in self.trained()}
            take_step()

        engine.step = step
        return engine

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self._engine.module.policy.named_parameters() if p.requires_grad]

    def adapters(self) -> Tensors:
        """A and B, whole."""
        return {name: safe_get_full_fp32_param(p).clone() for name, p in self.trained()}

    def served(self, dtype: torch.dtype) -> Tensors:
        """What a push would send, in buckets of a few matrices."""
        weights = served_weights(self._engine.module.policy)
        source = ZeroWeightSource(weights, dtype, 2**16, is_sender=self._rank == 0)
        tensors = dict(source)
        if self._rank == 0:
            assert [(m.name, m.dtype, m.shape) for m in source.metadata()] == [
                (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
            ]
        return tensors

    def train_on(self, samples: list[Sample]) -> None:
        world = self._settings.num_learner_ranks
        self.step(build_batch(samples, num_ranks=world, num_mini_batches=1, token_budget=60)[self._rank])


def sgd(settings: RunSettings, _zero: dict[str, Any], *, is_cuda: bool) -> dict[str, Any]:
    """In place of AdamW: its update is the gradient, so nothing hides a small difference."""
    assert not is_cuda
    return {"type": "SGD", "params": {"lr": settings.learning_rate}}


def untested(settings: RunSettings) -> dict[str, Any]:
    return deepspeed_config(settings) | {"zero_allow_untested_optimizer": True}


def settings_for(folder: Path, stage: int, world: int, **changes: Any) -> RunSettings:
    defaults: dict[str, Any] = {"use_peft": True, "bf16": False, "learning_rate": RATE}
    return RunSettings(
        model_name_or_path=str(folder / "model"),
        device="cpu",
        num_learner_ranks=world,
        deepspeed=str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json"),
        max_grad_norm=1e9,
        importance_weights="none",
        lr_scheduler_type="constant",
        gradient_checkpointing=stage == 3,
        lora_r=RANK,
        lora_alpha=ALPHA,
        temperature=TEMPERATURE,
        **defaults | changes,
    )


def findings(folder: Path, samples: list[Sample], stage: int, rank: int, world: int, port: int) -> dict[str, Any]:
    """Everything that is tried at one stage and number of ranks."""

    def made(**changes: Any) -> Rank:
        learner = Rank(settings_for(folder, stage, world, **changes), rank)
        learner.setup("127.0.0.1", port)
        return learner

    def scored(learner: Rank) -> Tensors:
        rows = learner.reference([[sample] for sample in samples])
        own, reference = ([value for (row,) in rows for value in row[which]] for which in (0, 1))
        return {"own": torch.tensor(own), "reference": torch.tensor(reference)}

    found: dict[str, Any] = {}
    out = folder / f"zero{stage}-{world}"
    with mock.patch.multiple(trainer.learner, adamw=sgd, deepspeed_config=untested):
        learner = made()
        found["adapters, before"], found["scores, before"] = learner.adapters(), scored(learner)
        learner.train_on(samples)
        found["adapters"] = learner.adapters()  # before the first step B is 0, and so is the gradient of A
        learner.train_on(samples)
        found["gradients"], found["adapters, after"] = learner.gradients, learner.adapters()
        found["served"], found["served in bf16"] = learner.served(torch.float32), learner.served(torch.bfloat16)
        found["scores"], found["num_loaded"] = scored(learner), learner.num_loaded
        learner.export(str(out / "policy"))
        learner.export_adapter(str(out / "adapter"))
    learner = made(learning_rate=0.01)
    learner.train_on(samples)
    learner.save(str(out / "checkpoint"))
    learner.train_on(samples)
    found["went on"] = learner.adapters()
    learner = made(learning_rate=0.01, seed=7)
    learner.load(str(out / "checkpoint"))
    learner.train_on(samples)
    found["resumed"], found["scores, resumed"] = learner.adapters(), scored(learner)
    learner = made(bf16=True, learning_rate=0.01)
    learner.train_on(samples)
    found["in bf16"] = {name: tensor.to(torch.bfloat16) for name, tensor in learner.adapters().items()}
    found["served of bf16"] = learner.served(torch.bfloat16)
    learner = made(use_peft=False, kl_coef=0.0, learning_rate=0.01)
    learner.train_on(samples)
    found["without adapters"] = learner.served(torch.float32)
    learner.export(str(out / "without-adapters"))
    return found


if __name__ == "__main__":
    run_rank(findings)
