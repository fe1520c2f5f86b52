"""One replica: a stock vLLM server with our plug-ins, started empty."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from rollout_server.config import RolloutSettings
from wire.engine import dealt_gpus, resolve_device, vllm_command, vllm_environment
from wire.process import ServerProcess, free_port, url_of

MEMORY_ADVICE = (
    "lower rollout_gpu_memory_utilization by 0.05, halve rollout_max_num_seqs, or raise rollout_tensor_parallel_size"
)


def replica_command(settings: RolloutSettings, port: int) -> list[str]:
    """The argv of one replica.

    `--load-format dummy`: it downloads no weights and cannot serve base weights by mistake, for they arrive by push.
    `processed_logprobs`: the sampled log-probs are of the distribution that was sampled, temperature included.
    """
    transfer = json.dumps({"backend": settings.transfer_backend})
    extra = ["--load-format", "dummy", "--weight-transfer-config", transfer, "--logprobs-mode", "processed_logprobs"]
    extra += ["--enable-scale-out"]
    extra += ["--middleware", "rollout_server.packed_route.PackedRoute"]
    extra += ["--middleware", "rollout_server.gate.WeightGateMiddleware"]
    if settings.fp32_lm_head:
        extra += ["--hf-overrides", json.dumps({"head_dtype": "float32"})]
    if settings.model_revision:
        extra += ["--revision", settings.model_revision]
    return vllm_command(
        settings.model_name_or_path,
        port=port,
        bind_address=settings.bind_address,
        device=resolve_device(settings.device),
        dtype=settings.rollout_dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.rollout_max_num_seqs,
        tensor_parallel_size=settings.rollout_tensor_parallel_size,
        gpu_memory_utilization=settings.rollout_gpu_memory_utilization,
        deterministic=settings.deterministic,
        extra_args=extra + shlex.split(settings.rollout_extra_args),
    )


def replica_process(settings: RolloutSettings, index: int, *, shares_host: bool = False) -> ServerProcess:
    """The process of replica `index`, not yet started.

    Args:
        settings: the fleet's.
        index: from 0.
        shares_host: whether this host's GPUs are to be dealt out here; Ray has already done so for its actors.

    Raises:
        ConfigError: this host does not have `bind_address`, a free port, or so many GPUs.
    """
    ports = settings.rollout_ports
    port = ports[index] if index < len(ports) else free_port(settings.bind_address, settings.port_range)
    env = vllm_environment(
        bind_address=settings.bind_address,
        token_file=settings.token_file,
        device=resolve_device(settings.device),
        tensor_parallel_size=settings.rollout_tensor_parallel_size,
        deterministic=settings.deterministic,
    )
    name = f"replica-{index}"
    if shares_host and resolve_device(settings.device) == "cuda":
        num = settings.rollout_tensor_parallel_size
        env["CUDA_VISIBLE_DEVICES"] = dealt_gpus(name, index, num, env.get("CUDA_VISIBLE_DEVICES"))
    env["VLLM_SERVER_DEV_MODE"] = "1"  # opens the weight-transfer routes; the token guards them
    if os.path.isdir(settings.model_name_or_path):
        env.setdefault("HF_HUB_OFFLINE", "1")
    log = Path(settings.log_dir) / f"{name}.log"
    url = url_of(settings.bind_address, port)
    return ServerProcess(name, replica_command(settings, port), env, log, url, MEMORY_ADVICE)
