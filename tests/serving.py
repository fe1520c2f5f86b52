"""The scoring API on a loopback socket, in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from reward_server.config import RewardSettings
from reward_server.main import api_config, listen


@asynccontextmanager
async def running_app(app: Any, port: int = 0) -> AsyncIterator[str]:
    """Serve the ASGI application while the context is open, on a free port by default; yields its URL."""
    server = uvicorn.Server(api_config(app))
    with listen(RewardSettings(reward_port=port)) as listener:
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
