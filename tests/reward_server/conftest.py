"""Hypothesis without its deadline per example: on a busy machine that measures the machine. And the real API."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import uvicorn
from hypothesis import settings

from reward_server.app import build_app
from reward_server.config import RewardSettings
from reward_server.instruments import Instruments
from reward_server.main import listen
from wire.token import read_or_create_token

settings.register_profile("reward_server", deadline=None)
settings.load_profile("reward_server")


@pytest.fixture
def token_file(tmp_path):
    read_or_create_token(tmp_path / "token")
    return str(tmp_path / "token")


@pytest.fixture
def serve(token_file):
    """The real application in front of a judge: an asynchronous context manager that gives the URL."""

    @asynccontextmanager
    async def running(judge, **changes):
        pool = SimpleNamespace(num_ready=1, num_waiting=0, lost_calls=0, servers=[])
        started = SimpleNamespace(count=1, owns=lambda url: False)
        token = read_or_create_token(token_file)
        app = build_app(RewardSettings(**changes), judge, pool, started, Instruments(pool), token)
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

    return running
