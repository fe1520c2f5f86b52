"""Seeds and names that come from other things, the same on every host and in every process."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A seed in 0..2**63-1 drawn from `parts`. Python's own `hash` differs between processes; this does not."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def digest(*parts: object) -> str:
    """A name for `parts`, 32 hexadecimal digits; equal parts, equal name. Parts are told apart by their `repr`."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
