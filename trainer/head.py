"""The output head in fp32: hidden states and head weight are cast before they meet.

The logits of a bf16 head are rounded to 8 bits: one between 16 and 32 is a multiple of 0.125, which is most of the gap
between a learner's and a replica's log-probs (MiniMax-M1, arXiv 2506.13585, section 3.2). vLLM's counterpart is the
override `head_dtype`, which `rollout_server.replica` passes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def compute_head_in_fp32(model: nn.Module) -> None:
    """Make a causal LM's head answer with fp32 logits; its weight keeps its type and its owner.

    Only the head's `forward` is exchanged: the module is still called, so that ZeRO-3's hooks gather its weight, and
    tied weights stay tied. A forward or backward pass holds a copy of the weight in fp32.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]  # a method of Transformers' models
    head.forward = partial(_fp32_linear, head)


def _fp32_linear(head: Any, hidden: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.float()
    return F.linear(hidden.float(), head.weight.float(), bias)
