"""Tokens to text, for the judge.

The tokenizers library looks each token up, maps each of its letters to a byte, and joins the bytes. Where the tokenizer
is byte-level, as those of nearly all policies are, a token's bytes are always the same, and a table of them does the
same in a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers.decoders import ByteLevel

Decode = Callable[[Sequence[int]], str]


def decoder_of(tokenizer: Any) -> Decode:
    """What turns token ids into text without special tokens, as the tokenizer's own `decode` does."""
    # Past Transformers' wrapper, which looks at every id twice before it does the same.
    is_plain = not getattr(tokenizer, "clean_up_tokenization_spaces", True)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer) if is_plain else tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(list(ids), skip_special_tokens=True))

    if not is_plain or type(getattr(backend, "decoder", None)) is not ByteLevel:
        return decode
    table = np.array(bytes_of_tokens(backend), object)  # `take` looks ids up without making an integer of each

    def joined(ids: Sequence[int]) -> str:
        try:
            return b"".join(table.take(np.asarray(ids, np.intp)).tolist()).decode(errors="replace")
        except IndexError:  # beyond the vocabulary, where a model has room for more tokens than the tokenizer
            return decode(ids)

    return joined


def bytes_of_tokens(backend: Any) -> list[bytes]:
    """The bytes of each token of a byte-level tokenizer, by id; none of a special token, or of an id without one."""
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    special = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
    table = [b""] * (1 + max(vocabulary.values()))
    for token, id_ in vocabulary.items():
        if id_ not in special:
            try:
                table[id_] = bytes(byte_of[letter] for letter in token)
            except KeyError:  # an added token's text is what it is
                table[id_] = token.encode()
    return table


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary.

    It is the byte's own where that can be seen, else the next beyond the bytes. Source: Radford et al., GPT-2
    (`bytes_to_unicode`).
    """
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
