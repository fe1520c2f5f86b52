"""The cluster's network: one bridge in the world's own network namespace, one cable from it to each host.

    world:  bridge 10.77.0.1/24 ── to-1 ═══ eth0 10.77.0.11 :host 1
                                └─ to-2 ═══ eth0 10.77.0.12 :host 2

The machine's own network has no part in it, and no route leads out of it.
"""

from __future__ import annotations

import subprocess

PREFIX = "10.77.0"
FIRST = 10
MOST = 240  # hosts in one world's life: no address is given twice


def ip(*words: str) -> None:
    """Run `ip`; subprocess.CalledProcessError where it fails."""
    subprocess.run(["ip", *words], check=True, timeout=20)


class Network:
    """The bridge, made in the network namespace of the process that makes it."""

    def __init__(self) -> None:
        ip("link", "set", "lo", "up")
        ip("link", "add", "bridge", "type", "bridge")
        ip("address", "add", f"{PREFIX}.1/24", "dev", "bridge")
        ip("link", "set", "bridge", "up")

    def address(self, number: int) -> str:
        """The address of host `number`, counted from 1."""
        if not 1 <= number <= MOST:
            raise ValueError(f"host {number}: this network has addresses for hosts 1 to {MOST}")
        return f"{PREFIX}.{FIRST + number}"

    def connect(self, number: int, pid: int) -> None:
        """Lay the cable to the network namespace of process `pid`; it goes with that namespace."""
        ip("link", "add", f"to-{number}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        ip("link", "set", f"to-{number}", "master", "bridge", "up")
        inside = ("nsenter", "--target", str(pid), "--net", "ip")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address(number)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            subprocess.run([*inside, *words], check=True, timeout=20)

    def cut(self, number: int) -> None:
        """Nothing passes any more, and neither end is told: what a pulled cable at a switch far away looks like."""
        ip("link", "set", f"to-{number}", "nomaster")

    def restore(self, number: int) -> None:
        """Undo `cut`."""
        ip("link", "set", f"to-{number}", "master", "bridge")
