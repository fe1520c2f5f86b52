"""The test's end of the world that the cloud and its hosts live in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.cluster.door import ask
from tests.e2e.cluster.hosts import OWN, ROOT

TOOLS = ("ip", "ss", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter")


def why_not() -> str | None:
    """Why no world can be made on this machine, or None."""
    if os.geteuid() != 0:
        return "namespaces and their networks need root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class World:
    """A running cloud, and the door to it."""

    def __init__(self, door: Path) -> None:
        self.door = door
        self._socket = door / "socket"
        self._process = subprocess.Popen(
            ["unshare", *OWN, "--", sys.executable, "-m", "tests.e2e.cluster.cloud", str(door)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout and self._process.stdout.readline() == "open\n", "the cloud did not start"

    def ask(self, verb: str, *, deadline_s: float = 60.0, **of: Any) -> Any:
        """Ask the cloud."""
        return ask(verb, door=self._socket, deadline_s=deadline_s, **of)

    def run(self, name: str, command: str, timeout_s: float = 60.0) -> str:
        """What a command on a machine prints; AssertionError with all of it where it fails."""
        done = self.ask("run", name=name, command=command, timeout_s=timeout_s, deadline_s=timeout_s + 60)
        assert done["code"] == 0, f"{command!r} on {name} ended with {done['code']}:\n{done['output'][-6000:]}"
        return done["output"]

    def end(self) -> None:
        """Close the cloud's standard input, and see it go."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)


@contextlib.contextmanager
def a_world() -> Iterator[World]:
    """A world, ended however the block ends."""
    with tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as folder:
        world = World(Path(folder))
        try:
            yield world
        finally:
            world.end()


def holders(namespaces: list[str]) -> list[str]:
    """The processes of this machine that are in one of these namespaces: their command lines."""
    found, wanted = [], set(namespaces)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted & {os.readlink(link) for link in (process / "ns").iterdir()}:
                found.append((process / "cmdline").read_text().replace("\0", " ") or process.name)
    return found
