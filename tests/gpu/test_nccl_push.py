"""The NCCL push on one GPU: our source on the sending side, vLLM's engines under our guard on both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RECEIVER = """
import json, sys, types, torch
from rollout_server.nccl_guard import GuardedNCCLWeightTransferEngine
torch.cuda.set_device(0)
model = torch.nn.Module()
received = {}
model.load_weights = lambda weights: received.update((n, t.float().sum().item()) for n, t in weights)
parallel = types.SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
config = types.SimpleNamespace(parallel_config=parallel, model_config=None)
engine = GuardedNCCLWeightTransferEngine(None, config, torch.device("cuda", 0), model)
engine.init_transfer_engine(engine.parse_init_info(json.loads(sys.stdin.readline())))
print("{}", flush=True)
engine.update_weights(json.loads(sys.stdin.readline()))
print(json.dumps(received), flush=True)
"""

SENDER = """
import json, sys, torch
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from rollout_server.transfer import register_trainer_engines
from rollout_server.waiting import Deadline
from trainer.lora import served_weights
from trainer.publish import TransferSettings, ZeroWeightSource, trainer_init_info
torch.cuda.set_device(0)
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)]).cuda()


class PipeClient:
    deadline = Deadline(120)
    on_failure = staticmethod(lambda: None)

    def init_weight_transfer_engine(self, info):
        print(json.dumps(info | {"timeout_s": 100.0}), flush=True)

    def start_weight_update(self):
        pass

    def update_weights(self, info):
        print(json.dumps(info | {"timeout_s": 100.0}), flush=True)

    def finish_weight_update(self, weight_version=None):
        pass


source = ZeroWeightSource(served_weights(model), torch.bfloat16, 2**20, is_sender=True)
register_trainer_engines()
info = trainer_init_info(TransferSettings("nccl", "127.0.0.1", 2**20, 2**30), 2)
engine = WeightTransferTrainerFactory.trainer_init(info, client=PipeClient(), source=source)
engine.send_weights()
print(json.dumps({n: t.float().sum().item() for n, t in source}), flush=True)
"""


@pytest.mark.timeout(300)
def test_weights_arrive_over_nccl_as_they_were_sent() -> None:
    # Two NCCL ranks on one GPU are taken for one device unless each has a host id of its own; they then use sockets.
    env = os.environ | {"PYTHONPATH": str(ROOT), "NCCL_SOCKET_IFNAME": "lo", "NCCL_P2P_DISABLE": "1"}
    with (
        subprocess.Popen(
            [sys.executable, "-c", SENDER],
            env=env | {"NCCL_HOSTID": "sender"},
            stdout=subprocess.PIPE,
            text=True,
        ) as sender,
        subprocess.Popen(
            [sys.executable, "-c", RECEIVER],
            env=env | {"NCCL_HOSTID": "receiver"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as receiver,
    ):
        try:
            assert sender.stdout is not None and receiver.stdin is not None and receiver.stdout is not None
            messages = (line for line in sender.stdout if line.startswith("{"))
            answers = (line for line in receiver.stdout if line.startswith("{"))
            for _ in range(2):  # init info, update info
                receiver.stdin.write(next(messages))
                receiver.stdin.flush()
            assert next(answers) == "{}\n"  # it has joined
            sent = json.loads(next(messages))
            got = json.loads(next(answers))
        finally:
            for process in (sender, receiver):
                process.kill()
    assert sent.keys() == got.keys()
    assert all(got[name] == pytest.approx(value, rel=1e-6) for name, value in sent.items())
