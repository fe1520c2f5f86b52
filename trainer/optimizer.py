"""What DeepSpeed is told: the JSON file, and what follows from the flags filled in. Imports no DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from trainer.config import RunSettings
from trainer.plan import DEFAULT_DEEPSPEED
from wire.engine import resolve_device

CPU_BUCKET = 1_000_000  # elements


def deepspeed_config(settings: RunSettings) -> dict[str, Any]:
    """The file's content with batch sizes, clipping and precision filled in; the optimizer is added for the policy."""
    config: dict[str, Any] = json.loads(Path(settings.deepspeed or DEFAULT_DEEPSPEED).read_text())
    config.update(
        train_micro_batch_size_per_gpu=1,  # a micro-batch is one packed row; how many there are varies by step
        gradient_accumulation_steps=1,  # the boundary is set by hand for the same reason
        gradient_clipping=settings.max_grad_norm,
        bf16={"enabled": settings.bf16},
        data_types={"grad_accum_dtype": "fp32"},
    )
    if resolve_device(settings.device) == "cpu":
        # Buckets spare a GPU many small messages; here they are a second copy of all gradients. A parameter larger
        # than the bucket is reduced where it is.
        config["zero_optimization"]["reduce_bucket_size"] = CPU_BUCKET
    return config


def adamw(settings: RunSettings, zero: dict[str, Any], *, is_cuda: bool) -> dict[str, Any]:
    """The optimizer's section. DeepSpeed's own CPU Adam is built only where a GPU run keeps its states on the host;
    elsewhere it is PyTorch's, fused: one pass, and no temporary as large as all weights."""
    is_torch = not (is_cuda and zero.get("offload_optimizer", {}).get("device", "none") != "none")
    return {
        "type": "AdamW",
        "params": {
            "lr": settings.learning_rate,
            "betas": [settings.adam_beta1, settings.adam_beta2],
            "weight_decay": settings.weight_decay,
            "torch_adam": is_torch,
            **({"fused": True} if is_torch else {}),
        },
    }


def schedule(settings: RunSettings) -> Callable[[torch.optim.Optimizer], Any]:
    """Makes the learning-rate schedule of an optimizer, counted in optimizer steps."""
    num_steps = settings.num_steps * settings.optimizer_steps_per_step
    num_warmup = round(settings.warmup_ratio * num_steps)
    return lambda optimizer: get_scheduler(settings.lr_scheduler_type, optimizer, num_warmup, num_steps)


def weight_decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (biases and norms) do not, what is frozen is left out. A partitioned parameter keeps its
    shape as `ds_shape`."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (matrices if len(shape) > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
