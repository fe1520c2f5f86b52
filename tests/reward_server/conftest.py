"""The real scoring API in front of a judge of the test's own."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from reward_server.app import build_app
from reward_server.config import RewardSettings
from reward_server.instruments import Instruments
from tests.serving import running_app
from wire.token import read_or_create_token


@pytest.fixture
def token_file(tmp_path):
    read_or_create_token(tmp_path / "token")
    return str(tmp_path / "token")


@pytest.fixture
def serve(token_file):
    """The real application in front of a judge: an asynchronous context manager that gives the URL."""

    @asynccontextmanager
    async def running(judge, **changes):
        pool = SimpleNamespace(num_ready=1, num_waiting=0, num_in_flight=0, room=256, lost_calls=0, servers=[])
        judge.num_entering = 0
        started = SimpleNamespace(count=1, owns=lambda url: False, unplaced=[])
        token = read_or_create_token(token_file)
        app = build_app(RewardSettings(**changes), judge, pool, started, Instruments(pool), token)
        async with running_app(app) as url:
            yield url

    return running
