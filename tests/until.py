"""Waiting in a test for what is to come about by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LONGEST_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Return when it is so. Raises TimeoutError where it is not within `LONGEST_S` seconds."""
    async with asyncio.timeout(LONGEST_S):
        while not condition():
            await asyncio.sleep(0.005)
