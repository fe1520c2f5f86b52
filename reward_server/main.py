"""`python -m reward_server.main --config FILE`: start GenRM servers under vLLM and serve the scoring API before them.

A judge on the Hub is fetched first, which is told as it goes on. The API is open at once, /health answers 503 until a
GenRM does, and then one line with the URL is printed. SIGINT or SIGTERM ends all that was started. A GenRM server that
ends is started again. One that never answered, or that dies again and again, is given up; when no other is left the
service ends with its last words on stderr, exit code 1.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from reward_server.announce import announced
from reward_server.app import build_app
from reward_server.config import RewardSettings
from reward_server.fetch_teller import teller_for
from reward_server.genrm import check_genrm, genrm_process
from reward_server.instruments import Instruments
from reward_server.judge import Judge
from reward_server.peer import open_session
from reward_server.pool import Pool
from reward_server.remote import Host, Say
from reward_server.started import StartedServers
from reward_server.startup import GenrmProcess
from wire.address import settled
from wire.channel import LARGEST_FRAME
from wire.errors import ConfigError, ServiceError
from wire.ports import bound_in_range
from wire.process import url_of
from wire.room import Needs
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token

POLL_S = 0.25
# Objects that come to be, less those that go, between two collections; and how many of these go to one of older ones.
# A verdict in flight is about 300 objects, and to go through a thousand verdicts takes 0.2 s.
GC_THRESHOLDS = 50_000, 20
LAST_ANSWERS_S = 2  # what was asked by POST when the service stops may still be answered for so long


class _Api(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` has its own, which end the GenRM too."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen(settings: RewardSettings) -> socket.socket:
    """The API's open socket.

    Raises:
        ConfigError: the address is not this host's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in settings.bind_address else socket.AF_INET

    def bind(port: int) -> socket.socket:
        return socket.create_server((settings.bind_address, port), family=family)

    try:
        if not settings.reward_port and settings.port_range is not None:
            return bound_in_range(settings.bind_address, settings.port_range, bind)
        return bind(settings.reward_port)
    except OSError as error:
        raise ConfigError(
            f"bind_address {settings.bind_address} with reward_port {settings.reward_port} cannot be listened on: "
            f"{error.strerror}; choose another, or port 0 for a free one"
        ) from error


async def serve(
    settings: RewardSettings,
    token: str,
    listener: socket.socket,
    make: Callable[[RewardSettings, int], GenrmProcess] = genrm_process,
    place: Callable[[int, Say], Host] | None = None,
) -> None:
    """Run the pool of GenRM servers and the API until a signal comes; what was started is ended on the way out.

    Args:
        settings: the service's.
        token: the access token.
        listener: the API's socket, see `listen`.
        make: makes the process of GenRM server `index` on this host.
        place: makes the host of one beyond `judge_servers` in the cluster, where there is one.

    Raises:
        ConfigError: the host has no room for `judge_servers`, or the judge cannot be fetched.
        ServiceError: the last GenRM server died too often, or none answered within `startup_timeout_s`.
    """
    stop = _stop_event()
    async with (
        open_session() as session,
        Pool(
            session,
            token,
            max_in_flight=settings.judge_max_in_flight,
            adaptive=settings.judge_adaptive_in_flight,
            health_timeout_s=settings.judge_health_timeout_s,
        ) as pool,
    ):
        instruments = Instruments(pool)
        started = StartedServers(settings, pool, make, place)
        app = build_app(settings, Judge(pool, settings, instruments), pool, started, instruments, token)
        try:
            for url in settings.judge_urls:
                pool.add(url)
            started.resize(settings.judge_servers)
            async with _api(app, listener):
                if await _until_ready(settings, pool, started, stop):
                    url = url_of(settings.bind_address, listener.getsockname()[1])
                    print(f"reward service {url}", flush=True)
                    with announced(settings, url):
                        while not await _stopped(started, stop):
                            pass
        finally:
            await started.stop()


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return stop


def api_config(app: Callable[..., Any]) -> uvicorn.Config:
    """How uvicorn serves the API."""
    return uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
        ws="websockets-sansio",
        ws_max_size=LARGEST_FRAME,
        ws_per_message_deflate=False,
        ws_ping_timeout=None,  # an asker that stands still for a while keeps what it asked for
    )


@asynccontextmanager
async def _api(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    """The API, served while the context is open."""
    server = _Api(api_config(app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _until_ready(settings: RewardSettings, pool: Pool, started: StartedServers, stop: asyncio.Event) -> bool:
    """Wait until a GenRM answers; False where a signal came first. Fetching the judge has a deadline of its own."""
    end = time.monotonic() + settings.startup_timeout_s
    teller = teller_for(sys.stdout, settings.judge_model_name_or_path)
    while not pool.num_ready:
        if (fetch := started.fetch) is not None:
            teller.tell(fetch)
            if fetch.is_under_way:
                end = time.monotonic() + settings.startup_timeout_s
        if time.monotonic() > end:
            servers = ", ".join(f"{server.url} ({server.state})" for server in pool.servers)
            raise ServiceError(
                f"no GenRM server answered within {settings.startup_timeout_s:.0f} s: {servers}; see judge-0.log in "
                f"{settings.log_dir}"
            )
        if await _stopped(started, stop):
            return False
    return True


async def _stopped(started: StartedServers, stop: asyncio.Event) -> bool:
    """Whether a signal came, after a short wait for one, in which the servers are tended."""
    await started.tend()
    try:
        async with asyncio.timeout(POLL_S):
            return await stop.wait()
    except TimeoutError:
        return False


def cluster_places(settings: RewardSettings) -> Callable[[int, Say], Host] | None:
    """Places for further GenRM servers in the cluster at `ray_address`; None where none is named."""

    def place(index: int, say: Say) -> Host:
        from reward_server.genrm_placement import PlacedGenrm  # Ray is not imported before it is needed

        return PlacedGenrm(settings, index, say)

    return place if settings.ray_address else None


def place_of(settings: RewardSettings) -> Needs | None:
    """What the service has of its node in a cluster; None where its place was found for it by who started it."""
    if not settings.reward_announce:
        return None
    return Needs("the reward service", {"reward": 1, "GPU": settings.judge_servers * settings.gpus_per_genrm})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, serve. `argv` is the process's own by default."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings, _ = parse_settings(RewardSettings, argv, strict_file=False)
    if settings.judge_servers:
        check_genrm(settings)
    token = read_or_create_token(settings.token_file)
    # What was imported is never garbage, and of thousands of verdicts in flight none leaves a cycle behind unless it is
    # cancelled. Collecting at Python's usual pace would stop the loop for a tenth of a second again and again.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with (
        settled(settings, announces=settings.reward_announce, takes=place_of(settings)) as settings,
        listen(settings) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(serve(settings, token, listener, place=cluster_places(settings)))


if __name__ == "__main__":
    run_program(main)
