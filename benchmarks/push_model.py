"""A random policy of a given size, for measuring what depends on bytes alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
BYTES_A_PARAMETER = 2  # bf16


def num_layers(num_bytes: int) -> int:
    """Layers of a model of at least `num_bytes` in bf16."""
    hidden, attention = SHAPE["hidden_size"], SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    keys = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    layer = hidden * (2 * attention + 2 * keys + 3 * SHAPE["intermediate_size"] + 2) + 2 * SHAPE["head_dim"]
    rest = hidden * (VOCABULARY + 1)
    return math.ceil((num_bytes / BYTES_A_PARAMETER - rest) / layer)


def write_policy(folder: Path, num_bytes: int) -> None:
    """A Qwen3 of at least so many bytes in Hugging Face format, bf16, with a tokenizer of one word a token."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE, num_hidden_layers=num_layers(num_bytes), max_position_embeddings=1024)
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    words = {str(token): token for token in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), eos_token="1")
    tokenizer.save_pretrained(folder)


def policy_of(folder: Path) -> Any:
    """The model in `folder`, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
