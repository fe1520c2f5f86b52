"""One started server process: its log, its health, its end.

The process gets a session of its own, so that a signal to its group reaches the engine processes it forks, and so that
Ctrl-C in a terminal reaches the program that decides in which order things stop.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path

from wire.address import interface_of
from wire.errors import ServiceError
from wire.ports import claimed_port

OUT_OF_MEMORY = ("CUDA out of memory", "torch.OutOfMemoryError", "No available memory for the cache blocks")

ERROR_LINE = re.compile(r"[\w.]*(Error|Exception): ")


def free_port(address: str, port_range: str | None = None) -> int:
    """A TCP port that was free on `address` a moment ago. One of `port_range` is this process's to give away until it
    ends, or `wire.ports.release`.

    Raises:
        ConfigError: `port_range` has no free port, or the address is not this host's.
    """
    try:
        return claimed_port(address, port_range) if port_range is not None else _any_free_port(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            interface_of(address)  # there is none, and it says which there are
        raise


def _any_free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def url_of(address: str, port: int) -> str:
    """`http://address:port`, an IPv6 address in brackets."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _cause_in(log: str) -> str:
    """The last error in a log's tail that is not about another one; vLLM reports a worker's error twice over."""
    causes = [line for line in log.split(" | ") if ERROR_LINE.match(line) and "See root cause above" not in line]
    return f" {causes[-1][:300]}." if causes else ""


class ServerProcess:
    """A server started as a child process.

    Args:
        name: what a message calls it, such as `replica-0`.
        command: argv.
        env: its whole environment.
        log_path: file that receives stdout and stderr.
        url: `http://host:port`; `<url>/health` answers 200 once it serves.
        memory_advice: what to lower when the log shows that the server ran out of GPU memory.
    """

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], log_path: Path, url: str, memory_advice: str = ""
    ) -> None:
        self.name, self.url, self.log_path = name, url, log_path
        self._command, self._env, self._memory_advice = command, env, memory_advice
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before `start`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, on a leash that ends it with this one; returns at once."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        leashed = [sys.executable, "-m", "wire.leash", str(os.getpid()), *self._command]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                leashed, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def is_healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether `/health` answers 200 within `timeout_s`."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=timeout_s) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError, http.client.HTTPException):  # the last: something else has the port
            return False

    def wait_healthy(self, deadline_s: float) -> None:
        """Block until the server answers.

        Raises:
            ServiceError: the process ended, or `deadline_s` seconds passed; the message ends with the log's last lines.
        """
        end = time.monotonic() + deadline_s
        while not self.is_healthy():
            if not self.is_alive():
                raise ServiceError(self.obituary())
            if time.monotonic() > end:
                raise ServiceError(
                    f"{self.name} did not answer {self.url}/health within {deadline_s:.0f} s; {self._log_tail()}"
                )
            time.sleep(0.25)

    def obituary(self) -> str:
        """One message that says how the process ended and, if it ran out of memory, what to lower."""
        code = self._process.returncode if self._process else None
        text = self._log_tail(200)
        advice = (
            f" It ran out of GPU memory: {self._memory_advice}." if any(mark in text for mark in OUT_OF_MEMORY) else ""
        )
        return f"{self.name} ended with exit code {code}.{advice}{_cause_in(text)} {self._log_tail()}"

    def stop(self, grace_s: float = 10.0) -> None:
        """End the process and everything in its session: SIGTERM, and after `grace_s` seconds SIGKILL."""
        if self._process is None:
            return
        for sign, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                break
            try:
                self._process.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
            if sign == signal.SIGTERM:
                # The leader is gone; an engine process that outlived it still holds memory and perhaps a GPU.
                continue
        self._process.wait(5.0)

    def _log_tail(self, lines: int = 5) -> str:
        try:
            with self.log_path.open(errors="replace") as log:
                tail = deque(log, maxlen=lines)
        except OSError:
            return f"no log at {self.log_path}"
        return f"log {self.log_path} ends: " + " | ".join(line.strip() for line in tail)
