"""One replica of a push test, in a process of its own: four routes over our worker's engine, a model that remembers.

A program: `python -m tests.rollout_server.transfer_worker PORT TROUBLE`. TROUBLE is what befalls it: `kill` (it dies)
or `freeze` (it stops) when the first bucket has arrived, `kill-joining` when it is asked to join, `refuse` (HTTP 500 to
an update), `damage` (a bucket changes on the way), `load` (its model cannot load), or nothing. `GET /loaded` tells what
its model holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rollout_server import gloo_worker
from rollout_server.gloo_group import GlooGroup
from wire.membership import BOOT_HEADER, PUSH_HEADER

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def fingerprint(name: str, tensor: Tensor) -> str:
    """Name, type, shape and bytes in one line."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()[:16]}"


class Model(torch.nn.Module):
    """Remembers what it was given."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.trouble, self.loaded = trouble, list[str]()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        if self.trouble == "load":
            raise ValueError("this model cannot load")
        self.loaded += [fingerprint(name, tensor) for name, tensor in weights]


class TroubledGroup(GlooGroup):
    """A group whose process meets its fate at the first bucket."""

    trouble = ""

    def wait(self, work: Any, deadline: Any) -> None:
        super().wait(work, deadline)
        if self.trouble in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.trouble])


class Replica:
    """The engine and its model behind four routes."""

    def __init__(self, trouble: str) -> None:
        self.trouble, self.model = trouble, Model(trouble)
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self.engine = gloo_worker.GlooWeightTransferEngine(None, config, torch.device("cpu"), self.model)
        self.version, self.headers = "", list[list[str]]()

    def call(self, route: str, body: dict[str, Any]) -> None:
        """One route."""
        if route == "init_weight_transfer_engine":
            if self.trouble == "kill-joining":
                os.kill(os.getpid(), signal.SIGKILL)
            self.engine.init_transfer_engine(self.engine.parse_init_info(body["init_info"]))
        elif route == "start_weight_update":
            self.model.loaded = []
            self.engine.start_weight_update()
        elif route == "update_weights":
            if self.trouble == "refuse":
                raise ValueError("no update here")
            self.engine.update_weights(body["update_info"])
        elif route == "finish_weight_update":
            self.version = body["weight_version"]


def handler(replica: Replica) -> type[BaseHTTPRequestHandler]:
    """The routes of `replica`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            route = self.path.strip("/")
            replica.headers.append([route, self.headers[BOOT_HEADER], self.headers[PUSH_HEADER] or ""])
            try:
                replica.call(route, body)
            except Exception as error:  # noqa: BLE001 - as vLLM's server does
                self.answer(500, {"error": f"{type(error).__name__}: {error}"})
            else:
                self.answer(200, {})

        def do_GET(self) -> None:
            state = {"loaded": replica.model.loaded, "version": replica.version, "headers": replica.headers}
            self.answer(200, state)

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header(BOOT_HEADER, "boot-id")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def main() -> None:
    """Serve until killed."""
    port, trouble = int(sys.argv[1]), sys.argv[2]
    TroubledGroup.trouble = trouble
    gloo_worker.GlooGroup = TroubledGroup  # type: ignore[misc]
    if trouble == "damage":
        verify = gloo_worker.verify_checksum

        def damaged(bucket: Any, area: Tensor) -> None:
            area[0] += 1
            verify(bucket, area)

        gloo_worker.verify_checksum = damaged
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(Replica(trouble)))
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
