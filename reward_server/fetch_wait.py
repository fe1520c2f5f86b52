"""Whoever started a reward service elsewhere waits here for its files, and hears how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from reward_server.fetch_state import FetchState
from reward_server.fetch_teller import LineTeller
from wire.errors import ServiceError
from wire.waits import waiting

LOOK_EVERY_S = 2.0
LOOK_TIMEOUT_S = 60.0
FETCHES = "fetches its files"


async def until_fetched(
    look: Callable[[], Awaitable[FetchState | None]], model: str, say: Callable[[str], None]
) -> None:
    """Return when the judge's files are on its node. No deadline of its own: a fetch without news ends itself.

    Args:
        look: begins it with the first call; how far it is, None where nothing is fetched.
        model: as lines call it.
        say: told now and then.

    Raises:
        ConfigError, ServiceError: as `look` does; or it did not answer.
    """
    teller = LineTeller(model, say)
    with waiting("judge", FETCHES):
        while True:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    state = await look()
            except TimeoutError:
                raise ServiceError(
                    f"the host of the reward service did not say within {LOOK_TIMEOUT_S:.0f} s how far its files are"
                ) from None
            if state is not None and (state.is_under_way or state.fetched_bytes):
                teller.tell(state)
            if state is None or not state.is_under_way:
                return
            await asyncio.sleep(LOOK_EVERY_S)
