"""The reward service for the length of one program: the one that `reward_url` names, or one that is started for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.fetch_wait import until_fetched
from reward_server.genrm import check_genrm
from reward_server.scheme import Scheme
from reward_server.weights import Weights
from wire.address import settled
from wire.process import ServerProcess, free_port, url_of
from wire.token import read_or_create_token, read_token

CLIENT_MARGIN_S = 30.0  # the service's own deadline comes first, so that it can say why a verdict is missing
STOP_GRACE_S = 30.0  # the service ends its own GenRM servers first; killed before that, it would leave them behind


def service_flags(settings: RewardSettings) -> list[str]:
    """The reward settings as flags of `reward_server.main`."""
    flags: list[str] = []
    for name in (field.name for field in fields(RewardSettings)):
        value = getattr(settings, name)
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def service_process(settings: RewardSettings) -> ServerProcess:
    """The service's process on this host, not yet started. Its log is `reward.log` in `log_dir`."""
    # Who asked for it knows its address; it asks the cluster only for room for further GenRM servers.
    settings = replace(settings, reward_announce=False)
    port = settings.reward_port or free_port(settings.bind_address, settings.port_range)
    command = [sys.executable, "-m", "reward_server.main", *service_flags(settings), "--reward_port", str(port)]
    log, advice = Path(settings.log_dir) / "reward.log", "see judge-0.log beside reward.log"
    return ServerProcess("reward service", command, dict(os.environ), log, url_of(settings.bind_address, port), advice)


@asynccontextmanager
async def reward_client(settings: RewardSettings) -> AsyncIterator[RewardClient]:
    """A client of the service; a service that was started for it ends with it.

    Raises:
        ConfigError: the token or the judge's model cannot be had.
        ServiceError: the service did not start, or nobody answers at `reward_url`.
    """
    if settings.reward_url:
        async with _client(settings, settings.reward_url, read_token(settings.token_file)) as client:
            yield client
        return
    if settings.judge_servers:
        check_genrm(settings)
    token = read_or_create_token(settings.token_file)
    with settled(settings) as here:
        process = service_process(here)
        weights = Weights(here)
        print(f"starting a reward service; its log: {process.log_path}", flush=True)
        try:
            await until_fetched(partial(asyncio.to_thread, weights.look), settings.judge_model_name_or_path, print)
            process.start()
            await asyncio.to_thread(process.wait_healthy, settings.startup_timeout_s + CLIENT_MARGIN_S)
            async with _client(settings, process.url, token) as client:
                yield client
        finally:
            weights.stop()
            process.stop(STOP_GRACE_S)


@asynccontextmanager
async def _client(settings: RewardSettings, url: str, token: str) -> AsyncIterator[RewardClient]:
    timeout_s = settings.judge_timeout_s + CLIENT_MARGIN_S
    async with RewardClient(url, token, timeout_s, scheme=Scheme.of(settings)) as client:
        await client.info()
        yield client
