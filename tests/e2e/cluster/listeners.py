"""Run on a host: which of its sockets listen, and whose they are.

    python -m tests.e2e.cluster.listeners

Prints a line of JSON a socket: `address`, `port`, `program` (its command line) and `owner`: `host` (sshd), `ray`, or
`ours`.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

# Ray's own programs, and the ports that `ray start` gives to the gRPC servers within workers and drivers unless told
# otherwise: in a process that has Ray's core loaded these are Ray's, all others are ours.
RAY = re.compile(
    r"raylet/raylet|gcs/gcs_server|/ray/(dashboard|autoscaler|_private)/|ray\.util\.client|^ray::(IDLE|Dashboard|Runtime)"
)
WORKER_PORTS = range(10002, 20000)
CORE = "_raylet.so"
ROW = re.compile(r"^(?P<address>\S+):(?P<port>\d+)\s+\S+(?:\s+users:\(\(.*?pid=(?P<pid>\d+))?")


def rows() -> list[str]:
    """`ss` on listening sockets: `ADDRESS:PORT PEER users:(("NAME",pid=N,fd=M))`, a line each."""
    found = subprocess.run(["ss", "-Hltunp"], capture_output=True, text=True, check=True, timeout=20)
    return [" ".join(line.split()[4:]) for line in found.stdout.splitlines()]


def owner_of(program: str, maps: str, port: int) -> str:
    """Whose a socket is, by the process that holds it."""
    if "sshd" in program:
        return "host"
    if RAY.search(program) or (port in WORKER_PORTS and CORE in maps):
        return "ray"
    return "ours"


def listener(row: str) -> dict[str, object]:
    """One row of `ss` as it is printed here."""
    found = ROW.match(row)
    assert found is not None, row
    process = Path("/proc") / (found["pid"] or "none")
    try:
        program = (process / "cmdline").read_text().replace("\0", " ").strip()
        maps = (process / "maps").read_text()
    except OSError:  # ended meanwhile
        program = maps = ""
    address = found["address"].strip("[]").removeprefix("::ffff:")
    port = int(found["port"])
    return {"address": address, "port": port, "program": program, "owner": owner_of(program, maps, port)}


def main() -> None:
    """Print them."""
    for row in rows():
        print(json.dumps(listener(row)))


if __name__ == "__main__":
    main()
