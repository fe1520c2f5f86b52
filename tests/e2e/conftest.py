"""Real servers for the end-to-end tests, each on a free port, all ended with the session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wire.process import free_port
from wire.token import read_or_create_token

ROOT = Path(__file__).parents[2]
TOY = ROOT / ".cache" / "toy"
TOY_CONFIG = ROOT / "configs" / "toy.yaml"
START_S = 420.0
# In a shell's background SIGINT is ignored, and so it would be by all that is started here: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder start servers, and are given the time for it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))


class Program:
    """One of our programs as a user would start it: its own session, its output in a file."""

    def __init__(self, module: str, *flags: str, output: Path, env: dict[str, str] | None = None) -> None:
        self.output = output
        command = [sys.executable, "-m", module, "--config", str(TOY_CONFIG), *flags]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | (env or {}), stdout=file, stderr=file, start_new_session=True
            )

    def text(self) -> str:
        """What it printed so far."""
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str, times: int = 1, deadline_s: float = START_S) -> str:
        """Wait until it has printed `text` so many times."""
        end = time.monotonic() + deadline_s
        while self.text().count(text) < times:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()[-3000:]}"
            assert time.monotonic() < end, f"no {text!r} within {deadline_s} s:\n{self.text()[-3000:]}"
            time.sleep(0.2)
        return self.text()

    def stop(self) -> None:
        """End it in good order, or else by force."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's programs write."""
    if not (TOY / "judge" / "config.json").exists():
        pytest.skip(f"no toy models in {TOY.relative_to(ROOT)}: run `make toy`")
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def token_file(folder: Path) -> Path:
    """The session's access token."""
    read_or_create_token(folder / "token")
    return folder / "token"


@pytest.fixture(scope="session")
def start(folder: Path, token_file: Path) -> Iterator[Callable[..., Program]]:
    """Start a program with the session's token; it is stopped at the end of the session at the latest."""
    programs: list[Program] = []

    def start_program(module: str, *flags: str, name: str, env: dict[str, str] | None = None) -> Program:
        flags = (*flags, "--token_file", str(token_file), "--log_dir", str(folder / f"{name}-logs"))
        programs.append(Program(module, *flags, output=folder / f"{name}.out", env=env))
        return programs[-1]

    yield start_program
    for program in reversed(programs):
        if program.process.poll() is None:
            program.stop()


@pytest.fixture(scope="session")
def reward_url(start: Callable[..., Program]) -> str:
    """A reward service started by hand, with its judge behind it."""
    port = free_port("127.0.0.1")
    start("reward_server.main", "--reward_port", str(port), name="reward").wait_for("reward service http")
    return f"http://127.0.0.1:{port}"
