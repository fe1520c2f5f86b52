"""Tokens to text: the table against the library."""

from __future__ import annotations

import random
from array import array

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from deploy.toy.tokenizers import make_policy_tokenizer
from trainer.token_text import byte_letters, decoder_of


def small() -> PreTrainedTokenizerFast:
    """All bytes, tokens of parts of characters, holes between the ids, added tokens of both kinds."""
    letters = byte_letters()
    pieces = [bytes([0xE2, 0x82]), bytes([0xAC, 0xF0]), bytes([0x9F, 0x98, 0x80]), b" the", b"\n\n", b"</think>"]
    words = ["".join(letters[byte] for byte in piece) for piece in pieces]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {word: 300 + 2 * index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    backend.add_tokens([AddedToken("a b 中", special=False), AddedToken("éé", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("tokenizer", [make_policy_tokenizer(), small()], ids=["toy policy", "small"])
def test_the_table_says_what_the_library_says_of_any_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    rng, decode, beyond = random.Random(3), decoder_of(tokenizer), 400
    for num in [0, 1, 2, 3] * 200 + [50, 400] * 200:
        ids = array("i", (rng.randrange(beyond if rng.random() < 0.9 else 2000) for _ in range(num)))
        assert decode(ids) == tokenizer.decode(list(ids), skip_special_tokens=True)


def test_broken_utf8_is_replaced_as_the_library_replaces_it() -> None:
    tokenizer, rng = small(), random.Random(5)
    decode = decoder_of(tokenizer)
    for _ in range(4000):
        ids = [rng.choice([rng.randrange(256), rng.randrange(0x80, 0x100), 300, 302, 304]) for _ in range(12)]
        assert decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_letters_are_those_of_the_library() -> None:
    assert sorted(byte_letters()) == sorted(ByteLevel.alphabet())


def test_another_kind_of_tokenizer_decodes_by_itself() -> None:
    backend = Tokenizer(models.WordLevel({"yes": 0, "no": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    assert decoder_of(tokenizer)([0, 1, 0]) == "yes no yes"
