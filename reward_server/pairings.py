"""Who is compared with whom: a ring, in which each completion stands once in place 1 and once in place 2."""

from __future__ import annotations

import random

from reward_server.seeds import derived_seed


def ring(num: int, seed: int) -> list[int]:
    """A random cyclic order of 0..num-1; each is compared with the one after it, the last with the first.

    Drawn from `seed` alone. An order of arrival would pair completions of like length.
    """
    order = list(range(num))
    random.Random(derived_seed("ring", seed)).shuffle(order)
    return order
