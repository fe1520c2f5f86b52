"""How much memory a learner GPU needs, before any model is loaded.

Model states follow DeepSpeed's own estimators (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_...`), restated
here so that a plan needs no DeepSpeed; a test holds the two together. All results are in bytes; GB is 10^9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import RunSettings

GB = 1e9

# Shapes of models that the shipped configurations name, so that a plan needs no network. Source: the model's config.
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
}


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on. `largest_layer` is the parameters of the biggest module that ZeRO-3 gathers at once;
    `num_adapter_parameters` those of the adapters, which alone are trained where there are any."""

    num_parameters: int
    largest_layer: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_adapter_parameters: int = 0


def model_shape(config: Any) -> ModelShape:
    """Shape of a Transformers configuration; the model is built on the meta device, without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    return ModelShape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        largest_layer=largest,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
    )


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes on one learner GPU, by use."""

    model_states: float
    reference: float
    activations: float
    output_head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.model_states + self.reference + self.activations + self.output_head


def learner_memory(shape: ModelShape, settings: RunSettings, zero: dict[str, Any]) -> LearnerMemory:
    """The plan for one GPU of the learner.

    Args:
        shape: of the policy.
        settings: ranks, micro-batch tokens, chunk, checkpointing, kl_coef.
        zero: the `zero_optimization` section of the DeepSpeed configuration.
    """
    ranks, width = settings.num_learner_ranks, 2 if settings.bf16 else 4
    stage_3 = zero["stage"] == 3
    whole = float(width * shape.num_parameters)
    states, reference = _model_states(shape, ranks, zero, num_trained=shape.num_parameters), 0.0
    if settings.use_peft:  # the frozen weights are trained nowhere, and are the reference too
        states = _model_states(shape, ranks, zero, num_trained=shape.num_adapter_parameters)
        states += whole if not stage_3 else (0.0 if _is_offloaded(zero, "param") else whole / ranks)
    elif settings.kl_coef:
        reference = whole if not stage_3 else (0.0 if settings.offload_reference else whole / ranks)
    tokens = settings.microbatch_tokens
    # A layer in work: hidden states in and out of attention and MLP (about 16 of them), the MLP's three inner ones.
    working = tokens * (16 * shape.hidden_size + 3 * shape.intermediate_size) * width
    kept = tokens * shape.hidden_size * width * shape.num_layers
    activations = kept + working if settings.gradient_checkpointing else working * shape.num_layers
    # A tile of logits, and the gradient of the head: summed in fp32, then cast to the weights' type; a frozen head
    # has none.
    logit_width = 4 if settings.fp32_lm_head else width
    tile = logit_width * min(settings.logprob_chunk_tokens, tokens) * shape.vocab_size
    head = tile + (0 if settings.use_peft else (4 + width) * shape.hidden_size * shape.vocab_size)
    return LearnerMemory(states, reference, activations, head)


def _is_offloaded(zero: dict[str, Any], what: str) -> bool:
    return bool(zero.get(f"offload_{what}", {}).get("device", "none") != "none")


def _model_states(shape: ModelShape, ranks: int, zero: dict[str, Any], *, num_trained: int) -> float:
    """Of the parameters that are trained; under ZeRO-3 with the gathered layer, whoever trains it."""
    offload_optimizer = _is_offloaded(zero, "optimizer")
    if zero["stage"] != 3:
        return zero2_states(num_trained, ranks, offload_optimizer=offload_optimizer)
    return zero3_states(
        num_trained,
        shape.largest_layer,
        ranks,
        offload_optimizer=offload_optimizer,
        offload_param=_is_offloaded(zero, "param"),
    )


def zero2_states(num_parameters: int, ranks: int, *, offload_optimizer: bool) -> float:
    """DeepSpeed's estimate for ZeRO-2: weights whole, gradients and optimizer states sharded or on the host."""
    return 2.0 * num_parameters if offload_optimizer else 2.0 * num_parameters + 18.0 * num_parameters / ranks


def zero3_states(
    num_parameters: int, largest_layer: int, ranks: int, *, offload_optimizer: bool, offload_param: bool
) -> float:
    """DeepSpeed's estimate for ZeRO-3: a gathered layer, and the shards that are not on the host."""
    gathered = 4.0 * largest_layer
    if offload_optimizer and offload_param:  # DeepSpeed counts on offloaded weights only beside offloaded states
        return gathered
    return gathered + (2.0 if offload_optimizer else 18.0) * num_parameters / ranks
