"""The scoring API on a loopback socket, in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from reward_server.config import RewardSettings
from reward_server.main import listen


@asynccontextmanager
async def running_app(app: FastAPI) -> AsyncIterator[str]:
    """Serve `app` while the context is open; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", timeout_graceful_shutdown=1))
    with listen(RewardSettings()) as listener:
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
