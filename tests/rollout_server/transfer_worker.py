"""One replica of a push test, in a process of its own: four routes over our worker's engine, a model that remembers.

A program: `python -m tests.rollout_server.transfer_worker PORT`. `GET /TROUBLE` sets what befalls it next: `kill` (it
dies) or `freeze` (it stops) when the first bucket has arrived, `kill-joining` when it is asked to join, `refuse` (HTTP
500 to an update), `damage` (a bucket changes on the way), `load` (its model cannot load), or `well`; a fresh engine and
model come with it. `GET /state` tells what its model holds.
"""

from __future__ import annotations

import hashlib
import importlib
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
from rollout_server.gloo_worker import GlooWeightTransferEngine
from wire.membership import BOOT_HEADER, PUSH_HEADER

BOOT_ID = "b1946ac9"
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


class Replica:
    """The engine and its model behind four routes."""

    def __init__(self, trouble: str) -> None:
        self.trouble, self.model = trouble, Model(trouble)
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self.engine = GlooWeightTransferEngine(None, config, torch.device("cpu"), self.model)
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


class Handler(BaseHTTPRequestHandler):
    """The routes of the process's one replica."""

    replica = Replica("well")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        route = self.path.strip("/")
        self.replica.headers.append([route, self.headers[BOOT_HEADER], self.headers[PUSH_HEADER] or ""])
        try:
            self.replica.call(route, body)
        except Exception as error:  # noqa: BLE001 - as vLLM's server does
            self.answer(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self.answer(200, {})

    def do_GET(self) -> None:
        if self.path != "/state":
            self.replica.engine.shutdown()
            Handler.replica = Replica(self.path.strip("/"))
        replica = self.replica
        self.answer(200, {"loaded": replica.model.loaded, "version": replica.version, "headers": replica.headers})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header(BOOT_HEADER, BOOT_ID)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def main() -> None:
    """Serve until killed."""
    importlib.import_module("vllm.model_executor.model_loader.reload")  # seconds, which a server has behind it
    wait, verify = GlooGroup.wait, gloo_worker.verify_checksum

    def fatal_wait(group: GlooGroup, work: Any, deadline: Any) -> None:
        wait(group, work, deadline)
        if Handler.replica.trouble in SIGNALS:
            os.kill(os.getpid(), SIGNALS[Handler.replica.trouble])

    def damaging_verify(bucket: Any, area: Tensor) -> None:
        if Handler.replica.trouble == "damage":
            area[0] += 1
        verify(bucket, area)

    GlooGroup.wait = fatal_wait  # type: ignore[method-assign]  # the process's fate
    gloo_worker.verify_checksum = damaging_verify
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
