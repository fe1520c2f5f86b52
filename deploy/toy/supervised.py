"""Supervised training of a tiny model: cross-entropy on what it shall write, none on what it reads.

Letters: B examples of a batch, T tokens of its longest example, N written tokens of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Example:
    """Token ids of a rendered prompt, and of what follows it up to and including the end-of-sequence token."""

    prompt: list[int]
    output: list[int]


def pad_right(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: ids [B, T]; flat positions [N] in B x T whose hidden states predict a written token; those tokens [N].

    Padding stands on the right and attention is causal, so no real token ever sees a pad and no mask is needed.
    """
    length = max(len(e.prompt) + len(e.output) for e in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    positions, targets = [], []
    for row, example in enumerate(examples):
        tokens = example.prompt + example.output
        ids[row, : len(tokens)] = torch.tensor(tokens)
        # The hidden state at position t predicts token t + 1: the last prompt token predicts the first written one.
        positions += range(row * length + len(example.prompt) - 1, row * length + len(tokens) - 1)
        targets += example.output
    return ids, torch.tensor(positions), torch.tensor(targets)


def train(model: PreTrainedModel, draw: Callable[[float], list[Example]], *, steps: int, lr: float, what: str) -> float:
    """Train in place for `steps` batches; the rate warms up and falls along a cosine to a tenth.

    `draw` makes a batch, given the share of the steps that are done.

    Returns:
        The mean loss, in nats per written token, over the last twentieth of the steps.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    bar = tqdm(range(steps), desc=what, unit="step", mininterval=1.0)
    for step in bar:
        warm, fall = min(1.0, (step + 1) / 20), 0.55 + 0.45 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = lr * warm * fall
        ids_BT, positions_N, targets_N = pad_right(draw(step / steps))
        hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        logits_NV = model.get_output_embeddings()(hidden_BTH.flatten(0, 1)[positions_N])
        loss = F.cross_entropy(logits_NV, targets_N)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    model.eval()
    recent = losses[-max(1, steps // 20) :]
    return sum(recent) / len(recent)
