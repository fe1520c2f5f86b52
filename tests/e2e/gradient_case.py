"""One learner rank under real DeepSpeed: gradients and updates of one batch, cut and sharded in many ways.

A program: `rank world port folder`. The folder holds the model and `samples.json`; rank 0 of a world writes
`world-N.pt`: {stage: {what was tried: {parameter: tensor}}}, gradients in full and weights as they are after the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

import trainer.learner
from tests.e2e.conftest import ROOT
from tests.ranks import run_rank
from trainer.batch import MiniBatch, Sample, build_batch
from trainer.config import RunSettings
from trainer.learner import LearnerRank
from trainer.optimizer import deepspeed_config

BUDGETS = (1, 60, 10_000)  # tokens of a micro-batch: a completion each, a few, all of a rank's
SGD_RATE, REUSE_RATE, ADAM_RATE = 0.05, 0.003, 1e-3
DECAY, CAP, CLIP, NORM, TEMPERATURE = 0.5, 1.2, 0.2, 2.0, 0.8

Tensors = dict[str, torch.Tensor]


class Rank(LearnerRank):
    """A learner rank that keeps the whole gradient of its last backward pass; its group outlives it."""

    gradients: Tensors

    def _join(self, host: str, port: int) -> None:
        if not dist.is_initialized():
            super()._join(host, port)

    def _build_engine(self, config: dict[str, Any]) -> Any:
        engine = super()._build_engine(config)
        take_step = engine.step

        def step() -> None:
            named = engine.module.policy.named_parameters()
            self.gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in named}
            take_step()

        engine.step = step
        return engine

    @property
    def policy(self) -> torch.nn.Module:
        """The model of Transformers."""
        policy: torch.nn.Module = self._engine.module.policy
        return policy

    def weights(self) -> Tensors:
        """All weights, whole."""
        named = self.policy.named_parameters()
        return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in named}

    def train_on(self, samples: list[Sample], budget: int, rate: float | None = None) -> None:
        """One step of the loop, at a learning rate of its own where one is given."""
        settings = self._settings
        if rate is not None:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = rate
        parts = settings.num_mini_batches
        batch = build_batch(samples, num_ranks=settings.num_learner_ranks, num_mini_batches=parts, token_budget=budget)
        self.step(batch[self._rank])

    def train_in_parts(self, parts: list[list[Sample]], budget: int) -> None:
        """One step of the loop that is begun early, with passes without a gradient in between. Nothing changes."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        ranks, num = self._settings.num_learner_ranks, sum(map(len, parts))
        shares = [
            build_batch(part, num_ranks=ranks, num_mini_batches=1, token_budget=budget, denominator=num)[self._rank]
            for part in parts
        ]
        for share in shares[:-1]:
            self.accumulate(share[0])
            self.reference([parts[0][:1]])
        self.step(shares[-1] or [MiniBatch([[]], num)])


@contextmanager
def plain_descent() -> Iterator[None]:
    """SGD in place of AdamW: its update is the gradient, so nothing hides a small difference or blows one up."""

    def sgd(settings: RunSettings, _zero: dict[str, Any], *, is_cuda: bool) -> dict[str, Any]:
        assert not is_cuda
        return {"type": "SGD", "params": {"lr": settings.learning_rate}}

    def config(settings: RunSettings) -> dict[str, Any]:
        return deepspeed_config(settings) | {"zero_allow_untested_optimizer": True}

    with mock.patch.multiple(trainer.learner, adamw=sgd, deepspeed_config=config):
        yield


def settings_for(folder: Path, stage: int, world: int, **changes: Any) -> RunSettings:
    defaults: dict[str, Any] = {
        "bf16": False, "kl_coef": 0.0, "max_grad_norm": 1e9, "learning_rate": SGD_RATE, "weight_decay": 0.0,
    }  # fmt: skip
    return RunSettings(
        model_name_or_path=str(folder / "model"),
        device="cpu",
        num_learner_ranks=world,
        deepspeed=str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json"),
        temperature=TEMPERATURE,
        importance_weight_cap=CAP,
        cliprange=CLIP,
        lr_scheduler_type="constant",
        gradient_checkpointing=stage == 3,
        **defaults | changes,
    )


def findings(folder: Path, samples: list[Sample], stage: int, rank: int, world: int, port: int) -> dict[str, Tensors]:
    """Everything that is tried at one stage and number of ranks."""

    def made(**changes: Any) -> Rank:
        learner = Rank(settings_for(folder, stage, world, **changes), rank)
        learner.setup("127.0.0.1", port)
        return learner

    found: dict[str, Tensors] = {}
    with plain_descent():
        learner = made()
        for budget in BUDGETS:
            learner.train_on(samples, budget, rate=0.0)
            found[f"gradient, {budget}"] = learner.gradients
        learner.train_on(samples[::-1], BUDGETS[1], rate=0.0)
        found["gradient, other order"] = learner.gradients
        learner.train_in_parts([samples[:2], samples[2:7], samples[7:]], BUDGETS[1])
        found["gradient, in parts"] = learner.gradients
        learner.train_in_parts([samples, []], BUDGETS[1])
        found["gradient, nothing left"] = learner.gradients
        learner.train_on(samples, BUDGETS[1])
        found["sgd"] = learner.weights()
        learner = made(num_ppo_epochs=2, num_mini_batches=2, max_grad_norm=NORM, learning_rate=REUSE_RATE)
        learner.train_on(samples, BUDGETS[1])
        found["reused"] = learner.weights()
    learner = made(learning_rate=ADAM_RATE, weight_decay=DECAY)
    learner.train_on(samples, BUDGETS[1])
    found["adamw"] = learner.weights()
    learner = made(bf16=True, fp32_lm_head=True, max_grad_norm=1.0)
    logprobs = [torch.tensor(own) for [(own, _)] in learner.reference([[sample] for sample in samples])]
    learner.train_on(samples, BUDGETS[1])
    found["fp32 head"] = {"logprobs": torch.cat(logprobs)} | learner.gradients
    found["buffers"] = dict(learner.policy.named_buffers())
    return found


if __name__ == "__main__":
    run_rank(findings)
