"""The toy policy: a tiny Qwen3, taught to answer with mediocre answers, so that RL has room and signal."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from deploy.toy.answers import good_answer, mediocre_answer
from deploy.toy.head_start import plant_families
from deploy.toy.prompts import ask, conversation_about
from deploy.toy.supervised import Example, train
from deploy.toy.tokenizers import END_OF_TEXT, IM_END
from deploy.toy.world import TOPICS, Turn

STEPS, BATCH, LR = 250, 32, 4e-3
GOOD_SHARE = 0.5
"""Share of the steps that teach good answers. They show which words belong to which topic far sooner than mediocre ones
do; the rest of the steps teaches the policy to be mediocre again."""


def new_policy(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights: 2 layers, 4 query heads on 2 key heads of 32, about 0.6 million parameters."""
    end_of_turn, end_of_text = tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=end_of_text,
            eos_token_id=end_of_turn,
            pad_token_id=end_of_text,
            dtype="float32",
        )
    )
    plant_families(model, tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text,
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=end_of_text,
        do_sample=True,
        top_k=0,  # off: samples come from the distribution that is trained
    )
    return model


def render(tokenizer: PreTrainedTokenizerFast, conversation: list[Turn]) -> str:
    """The prompt of the run: thinking off, so the empty thinking block belongs to the prompt."""
    return str(
        tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def teach_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A policy that answers training-style questions with mediocre answers and ends its turn."""
    torch.manual_seed(seed)
    rng = Random(seed)
    model = new_policy(tokenizer)

    def draw(progress: float) -> list[Example]:
        return [lesson(tokenizer, rng, good_answer if progress < GOOD_SHARE else mediocre_answer) for _ in range(BATCH)]

    train(model, draw, steps=STEPS, lr=LR, what="policy")
    return model


def lesson(tokenizer: PreTrainedTokenizerFast, rng: Random, answer: Callable[[Random, str], str]) -> Example:
    """One training conversation with an answer. None is long: one alone would make its batch three times so."""
    topic = rng.choice(list(TOPICS))
    prompt = render(tokenizer, conversation_about(rng, ask(rng, "train", topic), preambles=False))
    written = answer(rng, topic) + IM_END
    return Example(tokenizer(prompt)["input_ids"], tokenizer(written)["input_ids"])
