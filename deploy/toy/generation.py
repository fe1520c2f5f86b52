"""Batched generation with a tiny model, to measure what was trained."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    *,
    max_new_tokens: int,
    sample: bool,
    batch_size: int = 128,
) -> list[str]:
    """The text written after each rendered prompt, without special tokens; greedy, or sampled at temperature 1.

    An answer that `max_new_tokens` cut off comes back as it stands.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True, return_token_type_ids=False)
        ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=sample)
        written = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, written, strict=True):
            texts[i] = text
    return texts
