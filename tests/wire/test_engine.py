"""How a server is started when a run must be the same each time."""

from __future__ import annotations

from typing import Any

import pytest

from wire.engine import vllm_command, vllm_environment


def environment(**changes: Any) -> dict[str, str]:
    return vllm_environment(**{"bind_address": "127.0.0.1", "token_file": "token", "device": "cpu", **changes})


def command(**changes: Any) -> list[str]:
    arguments: dict[str, Any] = {
        "port": 8000, "bind_address": "127.0.0.1", "device": "cpu", "dtype": "float32", "max_model_len": 64,
        "max_num_seqs": 4,
    }  # fmt: skip
    return vllm_command("model", **arguments | changes)


def test_a_deterministic_server_takes_nothing_from_the_shell_that_cuts_its_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_ATTN_SPLIT_KV"):
        monkeypatch.setenv(name, "7")
    assert environment()["OMP_NUM_THREADS"] == environment()["VLLM_CPU_ATTN_SPLIT_KV"] == "7"
    fixed = environment(deterministic=True)
    assert (fixed["OMP_NUM_THREADS"], fixed["VLLM_CPU_ATTN_SPLIT_KV"]) == ("1", "0")


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_on_a_gpu_vllms_batch_invariant_mode_is_asked_for_by_the_name_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    assert not {"VLLM_BATCH_INVARIANT"} & (environment(device="cuda").keys() | environment(deterministic=True).keys())
    assert not envs.environment_variables["VLLM_BATCH_INVARIANT"]()
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", environment(device="cuda", deterministic=True)["VLLM_BATCH_INVARIANT"])
    assert envs.environment_variables["VLLM_BATCH_INVARIANT"]()


@pytest.mark.parametrize(("on", "flag"), [(False, "--enable-prefix-caching"), (True, "--no-enable-prefix-caching")])
def test_prompts_share_their_heads_unless_each_must_be_computed_in_one_way(on: bool, flag: str) -> None:
    flags = command(deterministic=on)
    assert [word for word in flags if word.endswith("prefix-caching")] == [flag]


def test_on_a_cpu_a_server_of_one_rank_computes_where_it_schedules_unless_the_shell_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    monkeypatch.delenv(name, raising=False)
    assert environment()[name] == "0"
    assert name not in environment(tensor_parallel_size=2).keys() | environment(device="cuda").keys()
    monkeypatch.setenv(name, "1")
    assert environment()[name] == "1"
