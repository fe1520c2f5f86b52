"""Work beside those who watch over it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def first_done(parts: Sequence[Coroutine[Any, Any, Any] | asyncio.Future[Any]]) -> Any:
    """What the first of them that ends returns or raises; the others are cancelled. The last is the work itself, the
    ones before it watch and end only by raising."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
