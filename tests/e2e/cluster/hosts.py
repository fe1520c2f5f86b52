"""One host of the cluster: namespaces for its mounts, network, processes, name and shared memory, and an sshd.

Its processes end with its first one, its mounts with its processes, its cable with its network namespace: whatever ends
the host's holder ends all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.cluster.network import Network

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("host.sh")
OWN = ("--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
NAMESPACES = ("mnt", "net", "pid_for_children", "uts", "ipc")


class HostFailed(RuntimeError):
    """A host did not come up; the message is what its first process said."""


class Host:
    """A running host. `number` is its place in the network, never given twice."""

    def __init__(self, number: int, network: Network) -> None:
        self.number = number
        self.network = network
        self.name = f"machine-{number}"
        self.address = network.address(number)
        first = ["bash", str(SCRIPT), self.name, self.address, sys.prefix, str(ROOT)]
        self._holder = subprocess.Popen(
            ["unshare", *OWN, "--uts", "--ipc", "--", *first],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = []
        for line in self._holder.stdout or ():
            said.append(line)
            if line == "ready\n":
                break
        else:
            raise HostFailed(f"{self.name} did not start: {''.join(said)}")
        network.connect(number, self._holder.pid)

    def namespaces(self) -> dict[str, str]:
        """The identity of each of its namespaces, as /proc/PID/ns shows it."""
        folder = Path(f"/proc/{self._holder.pid}/ns")
        return {kind: os.readlink(folder / kind) for kind in NAMESPACES}

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        """A shell command as root's login shell runs it: exit code, and output with errors among it.

        Code 124 where it was not done in time; everything it started that kept its process group is then ended.
        """
        pid = self._holder.pid
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--uts", "--ipc"]
        enter.append(f"--pid=/proc/{pid}/ns/pid_for_children")
        inside = ["timeout", "--kill-after=5", str(timeout_s), "bash", "--login", "-c", command]
        done = subprocess.run(
            [*enter, "env", "-i", "--chdir=/root", "HOME=/root", "USER=root", "TERM=dumb", *inside],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s + 30,
            check=False,
        )
        return done.returncode, done.stdout

    def cut(self) -> None:
        """Nothing reaches the host and nothing leaves it; it goes on running."""
        self.network.cut(self.number)

    def restore(self) -> None:
        """Its cable works again."""
        self.network.restore(self.number)

    def end(self) -> None:
        """Power off: its first process is killed, and with it all others."""
        self._holder.kill()
        self._holder.wait(30)
        if self._holder.stdout:
            self._holder.stdout.close()
