"""The plan of a run: what the settings come to, printed by `--dry_run` and at the start of every run."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainer.config import RunSettings
from trainer.memory import GB, KNOWN_SHAPES, LearnerMemory, ModelShape, learner_memory, model_shape
from wire.engine import resolve_device
from wire.errors import ConfigError
from wire.models import check_model, is_hub_id

DEFAULT_DEEPSPEED = Path(__file__).parent.parent / "configs" / "deepspeed" / "zero2.json"


@dataclass(frozen=True)
class Plan:
    """What a run will do. `gpus` counts each part's GPUs; 0 on a CPU or where the part is joined by URL."""

    settings: RunSettings
    shape: ModelShape
    zero: dict[str, Any]
    memory: LearnerMemory
    gpus: dict[str, int]

    def lines(self) -> list[str]:
        """For people."""
        s, m, device = self.settings, self.memory, resolve_device(self.settings.device)
        adapted = f"{s.adapters} ({self.shape.num_adapter_parameters / 1e6:.3g} M parameters)"
        parts = f"{s.per_device_train_batch_size} a device x {s.gradient_accumulation_steps} accumulation"
        offloaded = [name for name in ("optimizer", "param") if f"offload_{name}" in self.zero]
        extra = f", {' and '.join(offloaded)} offloaded" if offloaded else ""
        precision = "bf16" if s.bf16 else "fp32"
        return [
            f"policy           {s.model_name_or_path} ({self.shape.num_parameters / 1e9:.3g} B parameters)",
            *([f"adapters         {adapted}"] if s.use_peft else []),
            f"judge            {s.reward_url or s.judge_model_name_or_path} ({s.judge_dialect})",
            f"data             {s.dataset_name} ({s.dataset_config}, {s.dataset_split}, {s.dataset_language or 'all'})",
            f"steps            {s.num_steps} of {s.completions_per_step} completions ({parts} x {s.num_mini_batches} "
            f"mini-batches x {s.num_learner_ranks} ranks) = {s.prompts_per_step} prompts x K {s.rloo_k}",
            f"episodes         {s.num_steps * s.completions_per_step} ({s.total_episodes} asked for), "
            f"{s.num_steps * s.prompts_per_step} prompts",
            f"lag              at most {s.max_lag} steps; {s.groups_alive} groups alive at once",
            f"optimizer        AdamW, lr {s.learning_rate:g}, {s.lr_scheduler_type}, "
            f"{round(s.warmup_ratio * s.num_steps * s.optimizer_steps_per_step)} of "
            f"{s.num_steps * s.optimizer_steps_per_step} steps warm up",
            f"learner          {s.num_learner_ranks} x {device}, ZeRO-{self.zero['stage']}{extra}, {precision}, "
            f"gradient checkpointing {'on' if s.gradient_checkpointing else 'off'}",
            f"fleet            {s.replicas} started + {len(s.rollout_urls)} joined"
            f"{' + those found in the cluster' if s.finds_replicas else ''}, tensor parallel "
            f"{s.rollout_tensor_parallel_size}, weights over {s.transfer_backend}",
            "GPUs             " + ", ".join(f"{name} {count}" for name, count in self.gpus.items()),
            f"learner memory   {m.total / GB:.1f} GB a rank: model states {m.model_states / GB:.1f}, reference "
            f"{m.reference / GB:.1f}, activations {m.activations / GB:.1f}, output head {m.output_head / GB:.1f}",
        ]

    def setting_lines(self) -> list[str]:
        """Every setting with its value."""
        return [f"{f.name}: {json.dumps(getattr(self.settings, f.name))}" for f in fields(self.settings)]


def make_plan(settings: RunSettings) -> Plan:
    """Work the plan out; loads no model.

    Raises:
        ConfigError: the model or the DeepSpeed file cannot be had, the device is not there, or `lora_target_modules`
            names no linear layers.
    """
    zero = _zero_section(settings)
    config = _model_config(settings)
    shape = model_shape(config)
    if settings.use_peft:
        from trainer.lora import num_adapter_parameters

        shape = replace(shape, num_adapter_parameters=num_adapter_parameters(config, settings))
    return Plan(settings, shape, zero, learner_memory(shape, settings, zero), _gpus(settings))


def _gpus(settings: RunSettings) -> dict[str, int]:
    if resolve_device(settings.device) != "cuda" and settings.device != "cuda":
        return {"learner": 0, "rollouts": 0, "judge": 0}
    return {
        "learner": settings.num_learner_ranks,
        "rollouts": settings.replicas * settings.rollout_tensor_parallel_size,
        "judge": 0 if settings.reward_url else settings.judge_tensor_parallel_size,
    }


def _zero_section(settings: RunSettings) -> dict[str, Any]:
    path = Path(settings.deepspeed) if settings.deepspeed else DEFAULT_DEEPSPEED
    try:
        zero = json.loads(path.read_text())["zero_optimization"]
        if zero["stage"] not in (2, 3):
            raise ConfigError(f"deepspeed {path}: stage {zero['stage']} is not supported; use 2 or 3")
        if settings.offload_reference and zero["stage"] != 3:
            raise ConfigError(f"offload_reference needs ZeRO-3, and deepspeed {path} is stage {zero['stage']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"deepspeed {path}: no JSON file with zero_optimization.stage ({error})") from error
    return dict(zero)


def _model_config(settings: RunSettings) -> Any:
    from transformers import AutoConfig

    name = settings.model_name_or_path
    check_model(name, "model_name_or_path")
    if is_hub_id(name) and name in KNOWN_SHAPES:
        return AutoConfig.for_model(**KNOWN_SHAPES[name])
    try:
        return AutoConfig.from_pretrained(name, revision=settings.model_revision or "main")
    except (OSError, ValueError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"model_name_or_path {name!r} cannot be had: {first_line}") from error
