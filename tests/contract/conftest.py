"""The real application of the scoring API, before a fake judge."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from reward_server.app import build_app
from reward_server.config import RewardSettings
from reward_server.instruments import Instruments
from tests.contract.fake_judging import TOKEN, FakeJudge, FakePool, FakeStarted


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def app(judge: FakeJudge, pool: FakePool) -> FastAPI:
    return build_app(RewardSettings(judge_max_queue=2), judge, pool, FakeStarted(), Instruments(pool), TOKEN)
