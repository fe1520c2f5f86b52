"""Seeds that come from other seeds, the same on every host and in every process."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A seed in 0..2**63-1 drawn from `parts`. Python's own `hash` differs between processes; this does not."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
