"""How a stock vLLM server is started: its command line and its environment.

Both the rollout replicas and the judge are unmodified vLLM OpenAI servers; they differ by the flags given here. The
`vllm` command itself is not used: the CPU build's command looks for a distribution of another name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wire.address import socket_environment
from wire.errors import ConfigError
from wire.token import TOKEN_FILE_ENV

CPU_DETERMINISM = {"VLLM_CPU_ATTN_SPLIT_KV": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def resolve_device(device: str) -> str:
    """`cuda` or `cpu` for `auto`, by whether this host shows an NVIDIA device; no torch is imported for it."""
    if device != "auto":
        return device
    return "cuda" if Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"


def dealt_gpus(name: str, index: int, num: int, visible: str | None) -> str:
    """The GPUs of server `index` on a host where each takes `num`: its part of `CUDA_VISIBLE_DEVICES`, or of all.

    Raises:
        ConfigError: its part lies beyond `visible`; `name` is what the message calls the server.
    """
    part = range(index * num, (index + 1) * num)
    if visible is None:
        return ",".join(map(str, part))
    devices = visible.split(",")
    if part.stop > len(devices):
        raise ConfigError(f"{name} needs {num} GPUs of its own beyond CUDA_VISIBLE_DEVICES ({visible})")
    return ",".join(devices[i] for i in part)


def vllm_command(
    model: str,
    *,
    port: int,
    bind_address: str,
    device: str,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    deterministic: bool = False,
    extra_args: Sequence[str] = (),
) -> list[str]:
    """The argv of a vLLM server that asks for the token on every route.

    Args:
        model: folder or Hub id.
        port: TCP port to listen on.
        bind_address: address to listen on.
        device: `cpu` or `cuda`.
        dtype: weights' and activations' type, as vLLM names it.
        max_model_len: prompt plus output, in tokens.
        max_num_seqs: sequences that generate at once.
        tensor_parallel_size: ranks that share one copy of the model.
        gpu_memory_utilization: share of a GPU's memory that the server takes (GPU only).
        deterministic: whether an answer must not depend on what the server did before, or does beside it.
        extra_args: appended as they are.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", bind_address, "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)]
    command += ["--tensor-parallel-size", str(tensor_parallel_size), "--generation-config", "vllm"]
    # A line a request would fill the disk over weeks, and push a server's last words out of its log's tail.
    command += ["--no-enable-log-requests", "--disable-uvicorn-access-log"]
    # A prompt whose head is cached is computed in other pieces than one that is not, and which it is depends on time.
    command += ["--no-enable-prefix-caching" if deterministic else "--enable-prefix-caching"]
    if device == "cuda":
        command += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
    else:
        # A seeded request whose prefill is cut in two crashes the CPU sampler ("CPU Generator does not use offset"):
        # every prompt is prefilled whole.
        command += [
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            "--max-num-batched-tokens",
            str(max(max_model_len, 2048)),
            # Only whole blocks of a prompt are found in the prefix cache, and vLLM's default of 128 tokens on a CPU is
            # more than a short prompt has: its K completions would each compute it. 32 is the kernel's smallest.
            "--block-size",
            "32",
        ]
    # The last middleware is the outermost: nothing answers before the token was seen.
    return [*command, *extra_args, "--middleware", "wire.token.TokenMiddleware"]


def vllm_environment(
    *, bind_address: str, token_file: str, device: str, tensor_parallel_size: int = 1, deterministic: bool = False
) -> dict[str, str]:
    """The environment of a vLLM server: this process's own, with the token's path, the interface, and CPU settings.

    `deterministic` makes an answer independent of what else is in the batch, and equal on every server.

    Raises:
        ConfigError: no interface of this host carries `bind_address`.
    """
    env = dict(os.environ)
    env[TOKEN_FILE_ENV] = str(Path(token_file).expanduser())
    env["VLLM_HOST_IP"] = bind_address  # the engine's own rendezvous listens here too (rollout_server/plugin.py)
    env = socket_environment(bind_address) | env
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device == "cpu":
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # Split-KV attention makes a log-prob depend on what else is in the batch.
        env.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")
        if tensor_parallel_size == 1:
            env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            env.setdefault("OMP_NUM_THREADS", "1")
            # The engine computes in the scheduler's own process: each of a small model's steps would otherwise be
            # handed to a worker process and back. vLLM insists on one because it cannot set OpenMP's environment
            # within a process; it is set here, before the server starts.
            env.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        else:  # ranks of one server spin in shared memory: each needs a core of its own
            env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(core) for core in range(tensor_parallel_size)))
    if deterministic:
        # What the shell says may differ from host to host, and with it the order of the sums.
        env |= CPU_DETERMINISM if device == "cpu" else {"VLLM_BATCH_INVARIANT": "1"}
    return env
