"""LoRA through PEFT: adapters inside the policy, and the weights that policy and adapters come to.

A target layer computes W x + s B (A x) (Hu et al., arXiv 2106.09685, section 4.1). W is frozen, A and B are trained;
B starts at 0, so that training starts from the base model exactly. The replicas know nothing of adapters: what they get
is the matrix W + s B A under the base model's name.

Symbols: W [out, in]; A [r, in], "down"; B [out, r], "up"; s = lora_alpha / r.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import RunSettings
from trainer.config_checks import ALL_LINEAR
from wire.errors import ConfigError

NAME = "default"  # PEFT's own for the only adapter of a model


@dataclass(frozen=True)
class ServedWeight:
    """A parameter under the name that the base model's checkpoint gives it, with the adapter on top of it, if any."""

    name: str
    base: nn.Parameter
    down: nn.Parameter | None = None
    up: nn.Parameter | None = None
    scale: float = 0.0

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters it is made of."""
        return [part for part in (self.base, self.down, self.up) if part is not None]

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """A copy in `dtype`; the live parameters are read only. Call it where all parts are whole.

        The sum is taken in fp32 and rounded once. In bf16 a W + s B A keeps nothing of a change smaller than half the
        spacing of W, about 0.2 % of it: this is what replicas that serve bf16 lose.
        """
        if self.down is None or self.up is None:
            return self.base.detach().to(dtype, copy=True)
        change = (self.up.detach().float() @ self.down.detach().float()) * self.scale
        return change.add_(self.base.detach()).to(dtype)


def served_weights(policy: nn.Module) -> list[ServedWeight]:
    """All weights of a policy, with adapters or without, in the order of its parameters."""
    weights = []
    for name, parameter in policy.named_parameters():
        path, _, leaf = name.rpartition(".base_layer.")
        if leaf == "weight":
            layer: Any = policy.get_submodule(path)
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            weights.append(ServedWeight(f"{path}.weight", parameter, down, up, layer.scaling[NAME]))
        elif ".lora_A." not in name and ".lora_B." not in name:
            weights.append(ServedWeight(f"{path}.{leaf}" if path else name, parameter))
    return weights


class Adapters:
    """The adapters of one policy, put into it in place: the policy stays what it is, only some of its layers change.

    Args:
        policy: a Transformers model; its own weights are frozen, and A and B are of their type.
        settings: use_peft's.

    Raises:
        ConfigError: a name of `lora_target_modules` that fits no layer, or a layer that is not a linear one of the
            blocks. The scorer reads the head's matrix itself, so an adapter there would train nothing.
    """

    def __init__(self, policy: nn.Module, settings: RunSettings) -> None:
        from peft import LoraConfig, get_peft_model

        targets = settings.lora_target_modules
        _check_targets(policy, targets)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
            revision=settings.model_revision,
        )
        # In the type of the base: DeepSpeed holds the fp32 masters, and under ZeRO-3 it refuses a model of two types.
        self._model: Any = get_peft_model(policy, config, autocast_adapter_dtype=False)

    def off(self) -> AbstractContextManager[None]:
        """Within it the policy is the base model, to the bit.

        The adapters are weighed with 0 rather than left out: the layers run in the same order, on which ZeRO-3 relies
        for fetching the next one early.
        """
        from peft.helpers import rescale_adapter_scale

        context: AbstractContextManager[None] = rescale_adapter_scale(self._model, 0.0)
        return context

    def weights(self) -> list[ServedWeight]:
        """A and B of each layer, under PEFT's names."""
        named = self._model.named_parameters()
        return [ServedWeight(name, p) for name, p in named if ".lora_A." in name or ".lora_B." in name]

    def save(self, folder: str, tensors: dict[str, Tensor]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, for `PeftModel.from_pretrained`.

        Args:
            folder: made where it is not there.
            tensors: whole, under the names of `weights`.
        """
        self._model.save_pretrained(folder, state_dict=tensors, save_embedding_layers=False)


def num_adapter_parameters(config: Any, settings: RunSettings) -> int:
    """Parameters of the adapters of a Transformers configuration; models on the meta device take no memory.

    Raises:
        ConfigError: as for `Adapters`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config)
        adapters = Adapters(policy, settings)
    return sum(weight.base.numel() for weight in adapters.weights())


def _check_targets(policy: Any, targets: list[str]) -> None:
    if targets == [ALL_LINEAR]:
        return
    modules = dict(policy.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    linear -= {name for name, module in modules.items() if module is policy.get_output_embeddings()}
    for target in targets:
        fitting = {name for name in modules if name == target or name.endswith(f".{target}")}
        if not fitting or not fitting <= linear:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"lora_target_modules: {target!r} names no linear layers of the policy's blocks; "
                f"give {ALL_LINEAR}, or some of {', '.join(known)}"
            )
