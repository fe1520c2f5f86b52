"""The NCCL push on one GPU: our source and client on the sending side, vLLM's own engines on both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wire.process import free_port

ROOT = Path(__file__).parents[2]

RECEIVER = """
import json, os, sys, types, torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
spec = json.loads(sys.argv[1])
torch.cuda.set_device(0)
model = torch.nn.Module()
received = {}
model.load_weights = lambda weights: received.update((n, t.float().sum().item()) for n, t in weights)
engine = NCCLWeightTransferEngine.__new__(NCCLWeightTransferEngine)
engine.parallel_config = types.SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
engine.model, engine.device, engine.model_update_group = model, torch.device("cuda", 0), None
engine.init_transfer_engine(engine.parse_init_info(json.loads(sys.stdin.readline())))
engine.receive_weights(engine.parse_update_info(json.loads(sys.stdin.readline())))
torch.cuda.synchronize()
print(json.dumps(received), flush=True)
"""

SENDER = """
import json, sys, torch
from trainer.lora import served_weights
from trainer.publish import ZeroWeightSource, open_transfer
spec = json.loads(sys.argv[1])
torch.cuda.set_device(0)
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)]).cuda()


class PipeClient:
    world_size = 2

    def init_weight_transfer_engine(self, info):
        print(json.dumps(info), flush=True)

    def start_weight_update(self):
        pass

    def update_weights(self, info):
        print(json.dumps(info), flush=True)

    def finish_weight_update(self, weight_version=None):
        pass


source = ZeroWeightSource(served_weights(model), torch.bfloat16, 2**20, is_sender=True)
engine = open_transfer("nccl", rank=0, client=PipeClient(), source=source, bind_address="127.0.0.1",
                       bucket_bytes=2**20, timeout_s=120)
engine.send_weights()
print(json.dumps({n: t.float().sum().item() for n, t in source}), flush=True)
"""


@pytest.mark.timeout(300)
def test_weights_arrive_over_nccl_as_they_were_sent() -> None:
    # Two NCCL ranks on one GPU are taken for one device unless each has a host id of its own; they then use sockets.
    env = os.environ | {"PYTHONPATH": str(ROOT), "NCCL_SOCKET_IFNAME": "lo", "NCCL_P2P_DISABLE": "1"}
    spec = json.dumps({"port": free_port("127.0.0.1")})
    with (
        subprocess.Popen(
            [sys.executable, "-c", SENDER, spec],
            env=env | {"NCCL_HOSTID": "sender"},
            stdout=subprocess.PIPE,
            text=True,
        ) as sender,
        subprocess.Popen(
            [sys.executable, "-c", RECEIVER, spec],
            env=env | {"NCCL_HOSTID": "receiver"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as receiver,
    ):
        try:
            assert sender.stdout is not None and receiver.stdin is not None and receiver.stdout is not None
            messages = (line for line in sender.stdout if line.startswith("{"))
            for _ in range(2):  # init info, update info
                receiver.stdin.write(next(messages))
                receiver.stdin.flush()
            sent = json.loads(next(messages))
            got = json.loads(next(line for line in receiver.stdout if line.startswith("{")))
        finally:
            for process in (sender, receiver):
                process.kill()
    assert sent.keys() == got.keys()
    assert all(got[name] == pytest.approx(value, rel=1e-6) for name, value in sent.items())
