"""The settings of the replicas, and the command that they become."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3Config

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_command, replica_process
from wire.errors import ConfigError
from wire.token import TOKEN_FILE_ENV


def flags_of(settings: RolloutSettings) -> dict[str, list[str]]:
    """Flag -> its values; a flag that comes twice has two."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in replica_command(settings, 8000)[3:]:
        if word.startswith("--"):
            name = word
            found.setdefault(name, [])
        else:
            found[name].append(word)
    return found


def test_defaults_pass_and_every_field_is_explained() -> None:
    RolloutSettings(device="cpu").check()
    assert all(f.metadata.get("help") for f in fields(RolloutSettings))


def test_the_defaults_are_the_generation_contract() -> None:
    settings = RolloutSettings()
    assert (settings.response_length, settings.max_prompt_length, settings.max_model_len) == (1024, 4096, 5120)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.enable_thinking) == (1.0, 1.0, 0, False)
    assert settings.bind_address == "127.0.0.1"


def test_a_replica_starts_empty_behind_token_and_gate_and_speaks_tokens() -> None:
    flags = flags_of(RolloutSettings(device="cpu", rollout_max_num_seqs=7))
    assert flags["--load-format"] == ["dummy"]
    assert flags["--logprobs-mode"] == ["processed_logprobs"]
    assert flags["--generation-config"] == ["vllm"]
    # The last is the outermost: the gate answers nobody who does not have the token.
    ours = ["rollout_server.packed_route.PackedRoute", "rollout_server.gate.WeightGateMiddleware"]
    assert flags["--middleware"] == [*ours, "wire.token.TokenMiddleware"]
    assert flags["--enable-scale-out"] == []
    assert json.loads(flags["--weight-transfer-config"][0]) == {"backend": "gloo"}
    assert (flags["--host"], flags["--port"]) == (["127.0.0.1"], ["8000"])
    assert (flags["--max-model-len"], flags["--max-num-seqs"]) == (["5120"], ["7"])


def test_on_a_cpu_no_prompt_is_cut_and_on_a_gpu_a_share_of_it_is_taken() -> None:
    cpu = flags_of(RolloutSettings(device="cpu", max_prompt_length=96, response_length=16))
    assert "--no-enable-chunked-prefill" in cpu and "--gpu-memory-utilization" not in cpu
    assert cpu["--block-size"] == ["32"]
    assert int(cpu["--max-num-batched-tokens"][0]) >= 112
    long = flags_of(RolloutSettings(device="cpu"))
    assert int(long["--max-num-batched-tokens"][0]) >= 5120
    cuda = flags_of(RolloutSettings(device="cuda", rollout_gpu_memory_utilization=0.8))
    assert "--no-enable-chunked-prefill" not in cuda and cuda["--gpu-memory-utilization"] == ["0.8"]
    assert "--block-size" not in cuda
    assert json.loads(cuda["--weight-transfer-config"][0]) == {"backend": "nccl"}


def test_the_revision_and_extra_flags_are_handed_on() -> None:
    settings = RolloutSettings(device="cpu", model_revision="abc", rollout_extra_args="--seed 7 --foo 'a b'")
    flags = flags_of(settings)
    assert (flags["--revision"], flags["--seed"], flags["--foo"]) == (["abc"], ["7"], ["a b"])
    assert "--revision" not in flags_of(RolloutSettings(device="cpu"))


@pytest.mark.filterwarnings("ignore")  # vLLM's own
@pytest.mark.parametrize(("on", "head"), [(True, "float32"), (False, "bfloat16")])
def test_a_head_in_fp32_is_what_vllm_understands_by_the_command(tmp_path: Path, on: bool, head: str) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    Qwen3Config(architectures=["Qwen3ForCausalLM"], num_hidden_layers=1).save_pretrained(tmp_path)
    settings = RolloutSettings(device="cpu", model_name_or_path=str(tmp_path), fp32_lm_head=on, max_prompt_length=64)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(replica_command(settings, 8000)[3:])
    config = EngineArgs.from_cli_args(arguments).create_model_config()
    assert (str(config.dtype), str(config.head_dtype)) == ("torch.bfloat16", f"torch.{head}")


def test_a_deterministic_replica_is_told_so_in_its_command_and_its_environment() -> None:
    settings = RolloutSettings(device="cuda", deterministic=True)
    assert "--no-enable-prefix-caching" in flags_of(settings)
    assert replica_process(settings, 0)._env["VLLM_BATCH_INVARIANT"] == "1"
    assert "--enable-prefix-caching" in flags_of(RolloutSettings(device="cuda"))


def test_a_replicas_process_has_its_port_its_log_and_the_tokens_path(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "policy").mkdir()
    settings = RolloutSettings(
        device="cpu", replicas=2, rollout_ports=[8001, 8002], log_dir=str(tmp_path), token_file=str(tmp_path / "token"),
        model_name_or_path=str(tmp_path / "policy"),
    )  # fmt: skip
    process = replica_process(settings, 1)
    assert (process.name, process.url, process.log_path) == (
        "replica-1", "http://127.0.0.1:8002", tmp_path / "replica-1.log"
    )  # fmt: skip
    assert process._env[TOKEN_FILE_ENV] == str(tmp_path / "token")
    assert (process._env["VLLM_SERVER_DEV_MODE"], process._env["HF_HUB_OFFLINE"]) == ("1", "1")
    assert process._env["VLLM_HOST_IP"] == "127.0.0.1"
    assert not any("correct-horse" in word for word in process._command)


def test_an_ipv6_address_stands_in_brackets_in_the_url() -> None:
    settings = RolloutSettings(device="cpu", bind_address="::1", rollout_ports=[8001])
    assert replica_process(settings, 0).url == "http://[::1]:8001"


def test_the_backend_follows_the_device_unless_it_is_named() -> None:
    assert RolloutSettings(device="cpu").transfer_backend == "gloo"
    assert RolloutSettings(device="cuda").transfer_backend == "nccl"
    assert RolloutSettings(device="cuda", weight_transfer_backend="gloo").transfer_backend == "gloo"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.9}, r"top_p \(0.9\) must be 1.0"),
        ({"top_k": 50}, r"top_k \(50\) 0"),
        ({"temperature": 0.0}, r"temperature \(0.0\) must be positive"),
        ({"temperature": -1.0}, r"temperature \(-1.0\)"),
        ({"weight_transfer_backend": "nccl"}, "'nccl' needs GPUs and this host has none; use gloo"),
        (
            {"weight_transfer_backend": "carrier-pigeon"},
            "weight_transfer_backend 'carrier-pigeon': it is not",
        ),
        *(
            ({"weight_transfer_backend": name}, f"weight_transfer_backend '{name}': .*; use nccl on GPUs, gloo on CPUs")
            for name in ("ipc", "sparse_nccl", "nccl_m2n", "sharded_rdt", "modelexpress")
        ),
        ({"weight_transfer_backend": "nccl", "verify_transfer": True}, r"verify_transfer \(true\) needs .* gloo"),
        ({"min_replicas": 0}, r"min_replicas \(0\) must be at least 1"),
        ({"drain_timeout_s": -1.0}, r"drain_timeout_s \(-1.0\) must be at least 0"),
        ({"replica_restarts": -1}, r"replica_restarts \(-1\)"),
        ({"fleet_port": 70000}, r"fleet_port \(70000\) must lie in 0..65535"),
        ({"probe_timeout_s": 0.0}, r"probe_timeout_s \(0.0\) must be positive"),
        ({"replicas": 0}, r"replicas \(0\) with no rollout_urls"),
        ({"replicas": -1, "rollout_urls": ["http://a", "http://b"]}, r"replicas \(-1\)"),
        ({"replicas": 2, "rollout_ports": [8001]}, "names 1 ports for 2 replicas"),
        ({"response_length": 0}, r"response_length \(0\) must be at least 1"),
        ({"max_prompt_length": 0}, r"max_prompt_length \(0\)"),
        ({"rollout_tensor_parallel_size": 0}, r"rollout_tensor_parallel_size \(0\)"),
        ({"rollout_max_num_seqs": 0}, r"rollout_max_num_seqs \(0\)"),
        ({"rollout_timeout_s": 0.0}, r"rollout_timeout_s \(0.0\) must be positive"),
        ({"transfer_timeout_s": -1.0}, r"transfer_timeout_s \(-1.0\)"),
        ({"transfer_bucket_mib": 0}, r"transfer_bucket_mib \(0\)"),
        ({"startup_timeout_s": 0.0}, r"startup_timeout_s \(0.0\)"),
        (
            {"fp32_lm_head": True, "rollout_extra_args": "--hf-overrides '{}'"},
            r"fp32_lm_head needs vLLM's --hf-overrides for itself, and rollout_extra_args \(.*\) takes it",
        ),
        ({"bind_address": "localhost"}, "bind_address 'localhost'"),
        (
            {"deterministic": True, "rollout_tensor_parallel_size": 2},
            "rollout_tensor_parallel_size 1, and it is 2.*set it to 1, or deterministic to false",
        ),
    ],
)
def test_a_value_that_cannot_work_is_named_with_its_number(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolloutSettings(device="cpu", **changes).check()


def test_joined_replicas_need_no_started_one_and_top_k_may_say_off_in_vllms_way() -> None:
    settings = RolloutSettings(device="cpu", replicas=0, rollout_urls=["http://a"], top_k=-1)
    settings.check()
    assert settings.replicas == 0
