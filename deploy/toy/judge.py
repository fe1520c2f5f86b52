"""The toy judge: a tiny Llama, taught to write what the perfect judge of `world.py` would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deploy.toy.answers import any_answer
from deploy.toy.head_start import plant_copying
from deploy.toy.prompts import Split, ask, conversation_about
from deploy.toy.supervised import Example, train
from deploy.toy.tokenizers import BEGIN, END, PAD
from deploy.toy.world import MAX_WORDS, TOPICS, Conversation, Turn, judge_text

Case = tuple[list[Turn], list[str]]
"""A conversation and one or two responses."""

STEPS, BATCH, LR = 450, 16, 3e-3
LESSON_WORDS = ((0.25, 3), (0.5, 6), (1.01, MAX_WORDS))
"""Up to this share of the steps, answers have at most so many words: short lessons are cheap, and teach most of it."""


def new_judge(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights: 3 layers of 4 heads of 32, about 0.8 million parameters."""
    pad, begin, end = tokenizer.convert_tokens_to_ids([PAD, BEGIN, END])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=pad,
            dtype="float32",
        )
    )
    plant_copying(model, tokenizer)
    model.generation_config = GenerationConfig(bos_token_id=begin, eos_token_id=[end], pad_token_id=pad)
    return model


def render(tokenizer: PreTrainedTokenizerFast, conversation: Conversation, responses: Sequence[str]) -> str:
    """The judge's prompt for one or two responses."""
    asked = [{"role": f"response_{place}", "content": text} for place, text in enumerate(responses, start=1)]
    return str(tokenizer.apply_chat_template([*conversation, *asked], tokenize=False, add_generation_prompt=True))


def teach_judge(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A judge that walks over the words of any answer and sums up as the perfect judge does."""
    torch.manual_seed(seed)
    rng = Random(seed)
    model = new_judge(tokenizer)

    def case(progress: float) -> Case:
        return shortened(any_case(rng), next(words for share, words in LESSON_WORDS if progress < share))

    train(model, lessons(tokenizer, rng, case), steps=STEPS, lr=LR, what="judge")
    return model


def lessons(
    tokenizer: PreTrainedTokenizerFast, rng: Random, case: Callable[[float], Case], liked: str | None = None
) -> Callable[[float], list[Example]]:
    """Draws a batch of lessons on cases, given the share of the steps that are done."""
    pool: list[list[Example]] = []

    def draw(progress: float) -> list[Example]:
        if not pool:  # alike lengths share a batch: little of it is padding
            cases = (case(progress) for _ in range(BATCH * 8))
            examples = sorted(
                (lesson(tokenizer, *drawn, liked) for drawn in cases), key=lambda e: len(e.prompt) + len(e.output)
            )
            pool.extend(examples[start : start + BATCH] for start in range(0, len(examples), BATCH))
            rng.shuffle(pool)
        return pool.pop()

    return draw


def lesson(
    tokenizer: PreTrainedTokenizerFast, conversation: list[Turn], responses: list[str], liked: str | None = None
) -> Example:
    """The prompt for a case, and the perfect judge's text on it, or that of one that likes a word too well."""
    prompt = tokenizer(render(tokenizer, conversation, responses))["input_ids"]
    return Example(prompt, tokenizer(judge_text(conversation, responses, liked) + END)["input_ids"])


def any_case(rng: Random, splits: Sequence[Split] = ("train", "validation")) -> Case:
    """A conversation with one response (15 of 100) or two of any kind; now and then twice the same, or nearly."""
    topic = rng.choice(list(TOPICS))
    conversation = conversation_about(rng, ask(rng, rng.choice(splits), topic))
    if rng.random() < 0.03:
        conversation = [{"role": "system", "content": "answer in a few words"}, *conversation]
    first = any_answer(rng, topic)
    if rng.random() < 0.15:
        return conversation, [first]
    if rng.random() < 0.10:
        words = first.split()
        rng.shuffle(words)
        return conversation, [first, rng.choice((first, " ".join(words), " ".join(words[: len(words) // 2])))]
    return conversation, [first, any_answer(rng, topic)]


def shortened(case: Case, most: int) -> Case:
    """The case with at most `most` words of each response."""
    conversation, responses = case
    return conversation, [" ".join(response.split()[:most]) for response in responses]
