"""The cloud that makes hosts: a process that is alone in its namespaces, and answers at a door (a Unix socket).

    python -m tests.e2e.cluster.cloud FOLDER

`World` starts it. It ends when its standard input does, so it outlives nobody; and being the first process of its own
process namespace, it takes every host with it.
"""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.e2e.cluster.hosts import ROOT, Host
from tests.e2e.cluster.network import Network

MNT = Path("/mnt")
# vLLM's of models and PyTorch's of kernels, where root has them: the first request to a server waits for the kernels.
CACHES = (Path("/root/.cache/vllm"), Path("/tmp/torchinductor_root"))
SSHD = """
HostKey /root/.ssh/host_key
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""


class Cloud:
    """Machines by id, and what the provider noted of each. An id is given once."""

    def __init__(self) -> None:
        self._network = Network()
        self._lock = threading.Lock()
        self._num_made = 0
        self._hosts: dict[str, Host] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        self._cut: set[str] = set()
        self._namespaces: list[str] = list(_own_namespaces())

    def create(self, cluster: str, tags: dict[str, str], count: int = 1) -> list[str]:
        """New machines that belong to `cluster`: their ids."""
        made = []
        for _ in range(count):
            with self._lock:
                self._num_made += 1
                number = self._num_made
            host = Host(number, self._network)
            with self._lock:
                self._hosts[host.name] = host
                self._notes[host.name] = {"cluster": cluster, "tags": dict(tags), "address": host.address}
                self._namespaces += host.namespaces().values()
            made.append(host.name)
        return made

    def machines(self, cluster: str) -> dict[str, dict[str, Any]]:
        """Every machine of `cluster` that has not been ended, by id: its tags and address."""
        with self._lock:
            return {name: note for name, note in self._notes.items() if note["cluster"] == cluster}

    def tag(self, name: str, tags: dict[str, str]) -> None:
        """Add to a machine's tags."""
        with self._lock:
            self._notes[name]["tags"].update(tags)

    def end(self, name: str) -> None:
        """Power a machine off for good; one that is off already is no error, for two may ask.

        The order does not reach one whose cable is cut: it belongs to nobody any more, and runs on.
        """
        with self._lock:
            self._notes.pop(name, None)
            host = None if name in self._cut else self._hosts.pop(name, None)
        if host is not None:
            host.end()

    def run(self, name: str, command: str, timeout_s: float) -> dict[str, Any]:
        """Run a shell command on a machine."""
        code, output = self._hosts[name].run(command, timeout_s)
        return {"code": code, "output": output}

    def cut(self, name: str) -> None:
        """Cut a machine's cable."""
        with self._lock:
            self._cut.add(name)
        self._hosts[name].cut()

    def restore(self, name: str) -> None:
        """Mend it."""
        self._hosts[name].restore()
        with self._lock:
            self._cut.discard(name)

    def namespaces(self) -> list[str]:
        """Every namespace that was ever made here, the ended ones' too: what nobody may hold afterwards."""
        with self._lock:
            return list(self._namespaces)


def _own_namespaces() -> set[str]:
    return {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid")}


class _Question(socketserver.StreamRequestHandler):
    """One line of JSON in, `{"verb": ..., "of": {...}}`; one line out, `{"answer": ...}` or `{"error": ...}`."""

    cloud: Cloud

    def handle(self) -> None:
        try:
            question = json.loads(self.rfile.readline())
            answer = {"answer": getattr(self.cloud, question["verb"])(**question["of"])}
        except Exception as error:  # noqa: BLE001 - the asker is told, whatever it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class _Door(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def _lay_out(door: Path) -> None:
    """Fill /mnt, a tmpfs that only this world sees, with what hosts take from it as they start."""
    kept = _kept_paths()
    handles = [os.open(path, os.O_PATH) for path in (*kept, door)]
    subprocess.run(["mount", "-t", "tmpfs", "world", str(MNT)], check=True)
    targets = [MNT / "keep" / str(number) for number in range(len(kept))]
    for handle, target in zip(handles, (*targets, MNT / "door"), strict=True):
        target.mkdir(parents=True)
        subprocess.run(["mount", "--rbind", f"/proc/self/fd/{handle}", str(target)], check=True, pass_fds=[handle])
    for target, path in zip(targets, kept, strict=True):
        target.with_suffix(".path").write_text(str(path))
    _make_keys(MNT / "home" / ".ssh")


def _kept_paths() -> list[Path]:
    """The checkout, the virtual environment with the interpreter under it, and what libraries keep so as not to find or
    compile it anew; outer folders come before inner ones."""
    for cache in CACHES:
        cache.mkdir(parents=True, exist_ok=True)
    paths = {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), *CACHES}
    return sorted(path for path in paths if path != Path("/usr"))


def _make_keys(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    for name in ("host_key", "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "id_ed25519.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(SSHD)


def main() -> None:
    """Serve until standard input ends."""
    door = Path(sys.argv[1])
    _lay_out(door)
    _Question.cloud = Cloud()
    server = _Door(str(door / "socket"), _Question)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("open", flush=True)
    sys.stdin.read()
    shutil.rmtree(door, ignore_errors=True)  # its owner may have been killed
    os._exit(0)  # not one thread is waited for: the kernel ends what this process namespace holds


if __name__ == "__main__":
    main()
