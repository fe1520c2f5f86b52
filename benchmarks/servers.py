"""The processes that a benchmark of the judge needs, each ended when its context closes."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from reward_server.config import RewardSettings
from reward_server.genrm import genrm_process
from wire.process import ServerProcess, free_port, url_of
from wire.settings import parse_settings

ADDRESS = "127.0.0.1"
STOP_GRACE_S = 20.0


def toy_settings(folder: Path, *flags: str) -> RewardSettings:
    """The toy judge's settings with the benchmark's own: token and logs in `folder`, one attempt a verdict.

    Another attempt would be a generation that the bare client does not ask for.
    """
    own = ["--token_file", str(folder / "token"), "--log_dir", str(folder), "--bind_address", ADDRESS]
    argv = ["--config", "configs/toy.yaml", *own, "--judge_retries", "0", *flags]
    return parse_settings(RewardSettings, argv, strict_file=False)[0]


@contextmanager
def running(processes: Sequence[ServerProcess], startup_timeout_s: float) -> Generator[list[str], None, None]:
    """Start the processes together; their URLs, once all answer.

    Raises:
        ServiceError: one ended or did not answer in time.
    """
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.wait_healthy(startup_timeout_s)
        yield [process.url for process in processes]
    finally:
        for process in processes:
            process.stop(STOP_GRACE_S)


def genrms(settings: RewardSettings, num: int) -> list[ServerProcess]:
    """Real GenRM servers. In vLLM's development mode, which has a route that empties the prefix cache."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    return [genrm_process(settings, index) for index in range(num)]


def standins(num: int, speedup: float, log_dir: str) -> list[ServerProcess]:
    """Stand-in GenRM servers."""
    return [_standin(index, free_port(ADDRESS), speedup, log_dir) for index in range(num)]


def _standin(index: int, port: int, speedup: float, log_dir: str) -> ServerProcess:
    command = [sys.executable, "-m", "benchmarks.standin_genrm", str(port), str(speedup)]
    log = Path(log_dir) / f"standin-{index}.log"
    return ServerProcess(f"standin-{index}", command, dict(os.environ), log, url_of(ADDRESS, port))


def reward_service(
    settings: RewardSettings, urls: Sequence[str], *flags: str, profile: str | None = None
) -> ServerProcess:
    """The reward service before the GenRM servers at `urls`; `profile` names a file for cProfile's statistics."""
    port = free_port(ADDRESS)
    command = [sys.executable, *(["-m", "cProfile", "-o", profile] if profile else []), "-m", "reward_server.main"]
    command += ["--config", "configs/toy.yaml", "--judge_servers", "0", "--judge_urls", *urls]
    command += ["--token_file", settings.token_file, "--log_dir", settings.log_dir, "--bind_address", ADDRESS]
    command += ["--reward_port", str(port), "--judge_retries", "0", *flags]
    log = Path(settings.log_dir) / "reward.log"
    return ServerProcess("reward service", command, dict(os.environ), log, url_of(ADDRESS, port))


def cpu_seconds(processes: Sequence[ServerProcess]) -> float:
    """CPU time that the processes and those they started have used, user and system."""
    family = [psutil.Process(process.pid) for process in processes]
    family += [child for process in family for child in process.children(recursive=True)]
    return float(sum(times.user + times.system for times in (process.cpu_times() for process in family)))
