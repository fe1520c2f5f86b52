"""`python -m reward_server.main --config FILE`: start the GenRM under vLLM and serve the scoring API before it.

The API is open at once, /health answers 503 until the GenRM does, and then one line with the URL is printed. SIGINT or
SIGTERM ends both. When the GenRM ends by itself, so does the service: its last words on stderr, exit code 1.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from reward_server.app import build_app
from reward_server.config import RewardSettings
from reward_server.genrm import check_genrm, genrm_process, url_of
from reward_server.judge import Judge
from reward_server.peer import open_session
from wire.errors import ConfigError, ServiceError
from wire.process import ServerProcess
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token

POLL_S = 0.25
LAST_ANSWERS_S = 2  # what is in flight when the service stops may still be answered for so long


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
    try:
        return socket.create_server((settings.bind_address, settings.reward_port), family=family)
    except OSError as error:
        raise ConfigError(
            f"bind_address {settings.bind_address} with reward_port {settings.reward_port} cannot be listened on: "
            f"{error.strerror}; choose another, or port 0 for a free one"
        ) from error


async def serve(settings: RewardSettings, token: str, listener: socket.socket, genrm: ServerProcess) -> None:
    """Run the GenRM and the API until a signal comes; both are ended on the way out.

    Raises:
        ServiceError: the GenRM ended, or did not answer within `startup_timeout_s`.
    """
    stop = _stop_event()
    genrm.start()
    try:
        async with open_session() as session:
            judge = Judge(session, genrm.url, token, settings)
            async with _api(settings, judge, token, listener):
                if await _until_ready(genrm, judge, stop, settings.startup_timeout_s):
                    print(f"reward service {url_of(settings.bind_address, listener.getsockname()[1])}", flush=True)
                    await _until_stopped(genrm, stop)
    finally:
        genrm.stop()


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return stop


@asynccontextmanager
async def _api(settings: RewardSettings, judge: Judge, token: str, listener: socket.socket) -> AsyncIterator[None]:
    """The API, served while the context is open."""
    config = uvicorn.Config(
        build_app(settings, judge, token),
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    server = _Api(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _until_ready(genrm: ServerProcess, judge: Judge, stop: asyncio.Event, deadline_s: float) -> bool:
    """Wait until the GenRM answers; False where a signal came first."""
    end = time.monotonic() + deadline_s
    while not await judge.is_healthy():
        if time.monotonic() > end:
            raise ServiceError(
                f"the judge did not answer {genrm.url}/health within {deadline_s:.0f} s; {genrm.log_path}"
            )
        if await _stopped(genrm, stop):
            return False
    return True


async def _until_stopped(genrm: ServerProcess, stop: asyncio.Event) -> None:
    while not await _stopped(genrm, stop):
        pass


async def _stopped(genrm: ServerProcess, stop: asyncio.Event) -> bool:
    """Whether a signal came, after a short wait for one; ServiceError where the GenRM has ended."""
    if not genrm.is_alive():
        raise ServiceError(genrm.obituary())
    try:
        async with asyncio.timeout(POLL_S):
            return await stop.wait()
    except TimeoutError:
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, serve. `argv` is the process's own by default."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings, _ = parse_settings(RewardSettings, argv, strict_file=False)
    check_genrm(settings)
    token = read_or_create_token(settings.token_file)
    with listen(settings) as listener:
        asyncio.run(serve(settings, token, listener, genrm_process(settings)))


if __name__ == "__main__":
    run_program(main)
