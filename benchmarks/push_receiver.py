"""The receiving end of `benchmarks.push_gpu`: vLLM's NCCL engine behind a replica's routes, a model that only copies.

A program: `python -m benchmarks.push_receiver PORT`. It prints a line when it listens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import torch

from rollout_server.nccl_guard import GuardedNCCLWeightTransferEngine


class Sink(torch.nn.Module):
    """Copies what arrives into memory of its own, as a model does that keeps its layout."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take these."""
        for name, tensor in weights:
            if name in self._held:
                self._held[name].copy_(tensor)
            else:
                self._held[name] = tensor.clone()


class Receiver:
    """The routes of a replica, and `bare_broadcast`."""

    def __init__(self) -> None:
        torch.cuda.set_device(0)
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self._engine = GuardedNCCLWeightTransferEngine(None, config, torch.device("cuda", 0), Sink())
        self._flat: torch.Tensor | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the transfer group."""
        self._engine.init_transfer_engine(self._engine.parse_init_info(init_info))

    def start_weight_update(self) -> None:
        """Nothing: a sink has no layers to take apart."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive a push."""
        self._engine.update_weights(update_info)

    def finish_weight_update(self, weight_version: str) -> None:
        """Nothing to rebuild."""

    def bare_broadcast(self, num_bytes: int) -> None:
        """Receive one flat buffer."""
        if self._flat is None:
            self._flat = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
        communicator: Any = self._engine.model_update_group
        communicator.broadcast(self._flat, src=0)
        torch.cuda.synchronize()


def main() -> None:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
            status, answer = 200, b"{}"
            try:
                getattr(receiver, self.path.strip("/"))(**body)
            except RuntimeError as error:
                status, answer = 500, json.dumps({"error": str(error)}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
