"""A program that runs on a host of the cluster as its user started it: its output, its exit code, its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.e2e.cluster.world import World

POLL_S = 0.5
FOLDER = "~/disaggregated-rloo"  # where `ray up` put the project's files


class Program:
    """`command` in the background of `host`, in the project's folder; its files are `~/NAME.out`, `.pid`, `.code`."""

    def __init__(self, world: World, host: str, name: str, command: str) -> None:
        self.host, self.name = host, name
        self._world = world
        words = f"{command} > ~/{name}.out 2>&1 < /dev/null & echo $! > ~/{name}.pid; wait $!; echo $? > ~/{name}.code"
        world.run(host, f"cd {FOLDER}; touch ~/{name}.out; ( {words} ) > /dev/null 2>&1 &")

    def text(self) -> str:
        """What it printed so far."""
        return self._world.run(self.host, f"cat ~/{self.name}.out")

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        found = self._world.run(self.host, f"cat ~/{self.name}.code 2> /dev/null || true").strip()
        return int(found) if found else None

    def wait_for(self, text: str, deadline_s: float, times: int = 1) -> str:
        """Wait until it has printed `text` so many times; returns all that it printed."""
        self.wait_until(lambda: self.text().count(text) >= times, deadline_s, f"{text!r} from {self.name}")
        return self.text()

    def wait_until(self, is_so: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for something that comes about only while it runs."""
        end = time.monotonic() + deadline_s
        while not is_so():
            assert self.code() is None, f"no {what}: {self.name} ended with {self.code()}:\n{self.text()[-6000:]}"
            assert time.monotonic() < end, f"no {what} within {deadline_s:.0f} s:\n{self.text()[-6000:]}"
            time.sleep(POLL_S)

    def wait(self, deadline_s: float) -> int:
        """Its exit code, once it has ended by itself."""
        end = time.monotonic() + deadline_s
        while (code := self.code()) is None:
            assert time.monotonic() < end, f"{self.name} did not end within {deadline_s:.0f} s:\n{self.text()[-6000:]}"
            time.sleep(POLL_S)
        return code

    def stop(self, deadline_s: float) -> int:
        """Its exit code, after SIGTERM."""
        self._world.run(self.host, f"kill -TERM $(cat ~/{self.name}.pid)")
        return self.wait(deadline_s)
