"""The GenRM: a stock vLLM server that serves the judge's model."""

from __future__ import annotations

import os
from pathlib import Path

from reward_server.config import RewardSettings
from reward_server.fetched import WEIGHTS, fetched_command
from reward_server.startup import GenrmProcess
from wire.engine import dealt_gpus, resolve_device, vllm_command, vllm_environment
from wire.errors import ConfigError
from wire.models import check_model, is_hub_id
from wire.process import free_port, url_of


def check_genrm(settings: RewardSettings) -> None:
    """Whether this host can serve the judge, asked before anything is started.

    Raises:
        ConfigError: the model's folder is not there, or the judge is to be split over a CPU.
    """
    check_judge_model(settings)
    ranks = settings.judge_tensor_parallel_size
    if resolve_device(settings.device) == "cpu" and ranks != 1:
        raise ConfigError(
            f"judge_tensor_parallel_size ({ranks}) needs {ranks} GPUs and device {settings.device!r} means "
            "the CPU here; set it to 1"
        )


def check_judge_model(settings: RewardSettings) -> None:
    """Raises ConfigError where the judge is neither a model's folder nor a Hub id, or a folder with a revision."""
    model = settings.judge_model_name_or_path
    check_model(model, "judge_model_name_or_path")
    if settings.judge_revision is not None and not is_hub_id(model):
        raise ConfigError(
            f"judge_revision {settings.judge_revision!r} is for a Hub id, and judge_model_name_or_path {model!r} is a "
            "folder; leave it out"
        )


def fetch_state_file(settings: RewardSettings, name: str) -> Path:
    """Where the process `name` of this host writes how far its files are."""
    return Path(settings.log_dir) / f"{name}.fetch.json"


def genrm_process(settings: RewardSettings, index: int, *, shares_host: bool = True) -> GenrmProcess:
    """The process of GenRM server `index`, not yet started. Its log is `judge-INDEX.log` in `log_dir`.

    A judge on the Hub is fetched first, by the same process (`reward_server.fetched`).

    Args:
        settings: the service's.
        index: from 0.
        shares_host: whether this host's GPUs are to be dealt out here; Ray has already done so for its actors.

    Raises:
        ConfigError: the host has no GPUs left for it, no free port, or no interface with `bind_address`.
    """
    port, device = free_port(settings.bind_address, settings.port_range), resolve_device(settings.device)
    name, model = f"judge-{index}", settings.judge_model_name_or_path
    extra = ["--trust-remote-code"] if settings.judge_trust_remote_code else []
    if is_hub_id(model):
        extra += ["--served-model-name", model]
    command = vllm_command(
        WEIGHTS if is_hub_id(model) else model,
        port=port,
        bind_address=settings.bind_address,
        device=device,
        dtype=settings.judge_dtype,
        max_model_len=settings.judge_max_model_len,
        max_num_seqs=settings.judge_max_num_seqs,
        tensor_parallel_size=settings.judge_tensor_parallel_size,
        gpu_memory_utilization=settings.judge_gpu_memory_utilization,
        deterministic=settings.deterministic,
        extra_args=extra,
    )
    state_file = fetch_state_file(settings, name) if is_hub_id(model) else None
    if state_file is not None:
        command = fetched_command(state_file, model, settings.judge_revision, settings.judge_fetch_stall_s, command)
    env = vllm_environment(
        bind_address=settings.bind_address,
        token_file=settings.token_file,
        device=device,
        tensor_parallel_size=settings.judge_tensor_parallel_size,
        deterministic=settings.deterministic,
    )
    if shares_host and device == "cuda":
        num = settings.judge_tensor_parallel_size
        env["CUDA_VISIBLE_DEVICES"] = dealt_gpus(name, index, num, env.get("CUDA_VISIBLE_DEVICES"))
    if os.path.isdir(model):
        env.setdefault("HF_HUB_OFFLINE", "1")
    log = Path(settings.log_dir) / f"{name}.log"
    url = url_of(settings.bind_address, port)
    return GenrmProcess(name, command, env, log, url, _memory_advice(settings), state_file)


def _memory_advice(settings: RewardSettings) -> str:
    return (
        f"raise judge_tensor_parallel_size ({settings.judge_tensor_parallel_size}), halve judge_max_num_seqs "
        f"({settings.judge_max_num_seqs}), or lower judge_max_model_len ({settings.judge_max_model_len}); "
        "where something else holds part of the GPU, lower judge_gpu_memory_utilization "
        f"({settings.judge_gpu_memory_utilization})"
    )
