"""What both sides of a comparison train on: a model's shape, and completions of given lengths with their scores.

Token ids, scores and weights are random: how long a step takes depends on shapes alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

K = 4
MIN_LENGTH, MAX_LENGTH = 16, 1024  # of a completion in the tail
EQUAL_LENGTH = 512
MEDIAN, SIGMA = 200, 1.0
PROMPT_LENGTHS = (32, 160)
KL_COEF = 0.05


@dataclass(frozen=True)
class Shape:
    """A Qwen3. The defaults are a small one with the real vocabulary, which two cores can train."""

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    vocab_size: int = 151_936
    tie_word_embeddings: bool = True  # as Qwen3 up to 4B


@dataclass(frozen=True)
class Workload:
    """One step's completions, K a prompt, those of a prompt beside each other; a score for each."""

    prompts: list[list[int]]
    completions: list[list[int]]
    scores: list[float]

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens, padding not counted."""
        return sum(map(len, self.completions)) + K * sum(map(len, self.prompts))


def make_workload(lengths: list[int], seed: int, vocab_size: int) -> Workload:
    """Completions of these lengths, a multiple of K of them."""
    rng = random.Random(seed)

    def draw(size: int) -> list[int]:
        return [rng.randrange(1, vocab_size) for _ in range(size)]

    prompts = [draw(rng.randrange(*PROMPT_LENGTHS)) for _ in range(len(lengths) // K)]
    return Workload(prompts, [draw(size) for size in lengths], [rng.uniform(1, 5) for _ in lengths])


def lengths_of(distribution: str, num_completions: int, seed: int) -> list[int]:
    """`equal`, or `tail`: log-normal, cut to MIN_LENGTH..MAX_LENGTH, at evenly spaced quantiles in a drawn order. So a
    few completions have the distribution's shape too, instead of a seed's luck."""
    if distribution == "equal":
        return [EQUAL_LENGTH] * num_completions
    quantiles = [NormalDist().inv_cdf((i + 0.5) / num_completions) for i in range(num_completions)]
    lengths = [min(max(round(MEDIAN * math.exp(SIGMA * z)), MIN_LENGTH), MAX_LENGTH) for z in quantiles]
    random.Random(seed).shuffle(lengths)
    return lengths


def write_model(folder: Path, shape: Shape, seed: int, device: str = "cpu", dtype: str = "float32") -> None:
    """Random weights in Hugging Face format, made on a device."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen3ForCausalLM(Qwen3Config(**asdict(shape)))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
