"""The dry run: every shipped configuration passes it, and every mistake that can be known early ends it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import Qwen3Config

from trainer.config import RunSettings
from trainer.main import main
from trainer.plan import make_plan
from wire.errors import ConfigError
from wire.process import free_port
from wire.settings import parse_settings, run_program

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "rates"
)
TOY = ROOT / ".cache" / "toy"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From the repository's root, as the documents say; the data sets' cache under the test's folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Flags of a run whose policy, judge and data set are small folders."""
    model = tmp_path / "policy"
    model.mkdir()
    shape = Qwen3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=128, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    (model / "config.json").write_text(json.dumps(shape.to_dict()))
    rows = [{"context": [{"role": "user", "content": "sea?"}], "language": "english"}] * 3
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(model),
        "judge_model_name_or_path": str(model),
        "judge_tensor_parallel_size": 1,
        "dataset_name": str(tmp_path / "data"),
        "judge_check": False,
        "device": "cpu",
        "output_dir": str(tmp_path / "run"),
        "max_prompt_length": 64,
        "response_length": 16,
    }


@pytest.fixture
def dry_run(tiny: dict[str, Any]) -> Callable[..., int]:
    def call(*flags: str, **changes: Any) -> int:
        pairs = {**tiny, **changes}
        return main([*(f"--{name}={value}" for name, value in pairs.items()), *flags, "--dry_run"])

    return call


def own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "RLHF_"))}


STEPS = {
    "configs/qwen3-8b/single.yaml": "3125 of 16 completions",
    "configs/qwen3-8b/multi.yaml": "391 of 128 completions",
    "configs/qwen3-8b/deepspeed.yaml": "391 of 128 completions",
    "configs/qwen3-8b/cluster.yaml": "391 of 128 completions",
    "configs/toy.yaml": "30 of 64 completions",
}


@pytest.mark.parametrize("path", CONFIGS)
def test_every_shipped_configuration_passes_the_dry_run_and_prints_its_numbers(
    capsys: pytest.CaptureFixture[str], path: str
) -> None:
    if path == "configs/toy.yaml" and not TOY.is_dir():
        pytest.skip("the toy models are not there; `make toy` makes them")
    before = own_environment()
    assert main(["--config", path, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert STEPS[path] in printed
    if path.startswith("configs/qwen3-8b/"):
        assert "Qwen/Qwen3-8B (8.19 B parameters)" in printed
        assert "nvidia/HelpSteer3 (preference, train, english)" in printed
        assert "12500 prompts" in printed or "12512 prompts" in printed
        assert "judge 4" in printed and "GB a rank: model states" in printed
        assert "note: nvidia/HelpSteer3 is not downloaded in a dry run" in printed
    assert "rloo_k: 4" in printed.splitlines()
    assert own_environment() == before  # a dry run prepares no cluster


def test_the_table_knows_every_configuration() -> None:
    assert sorted(STEPS) == CONFIGS


def test_a_dry_run_starts_and_writes_nothing(dry_run, tiny, tmp_path, capsys) -> None:
    assert dry_run("--token_file", str(tmp_path / "token")) == 0
    assert not (tmp_path / "token").exists() and not Path(tiny["output_dir"]).exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("settings") > 5
    assert {"learning_rate: 1e-06", "rloo_k: 4", "rollout_urls: []", "reward_url: null"} <= set(lines)
    assert any(line.startswith("GPUs") and "learner 0, rollouts 0, judge 0" in line for line in lines)


def test_a_device_that_is_not_there_is_a_note_in_a_dry_run(dry_run, capsys) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this host shows a GPU")
    assert dry_run(device="cuda") == 0
    assert "note: device 'cuda': this host shows no NVIDIA GPU" in capsys.readouterr().out


def test_gpus_are_counted_for_what_is_started_and_not_for_what_is_joined(tiny) -> None:
    flags = [f"--{name}={value}" for name, value in {**tiny, "device": "cuda"}.items()]
    flags += ["--num_learner_ranks=2", "--replicas=3", "--rollout_tensor_parallel_size=2"]
    own, _ = parse_settings(RunSettings, flags, strict_file=True)
    assert make_plan(own).gpus == {"learner": 2, "rollouts": 6, "judge": 1}
    joined, _ = parse_settings(
        RunSettings, [*flags, "--replicas=0", "--rollout_urls", "http://a", "--reward_url=http://b"], strict_file=True
    )
    assert make_plan(joined).gpus == {"learner": 2, "rollouts": 0, "judge": 0}


MISTAKES: dict[str, tuple[list[str], str]] = {
    "an unknown flag": (["--learning_rat=1"], "unknown flag '--learning_rat=1'"),
    "one completion a prompt": (["--rloo_k=1"], r"rloo_k \(1\) must be at least 2"),
    "a batch that does not divide": (["--rloo_k=5"], r"= 16 completions do not divide by rloo_k \(5\)"),
    "a model that is not there": (["--model_name_or_path=./nowhere"], "model_name_or_path './nowhere' is neither"),
    "a judge that is not there": (["--judge_model_name_or_path=./no"], "judge_model_name_or_path './no' is neither"),
    "a folder without a model": (["--model_name_or_path=tests"], "'tests' holds no config.json"),
    "data that is not there": (["--dataset_name=./nowhere"], "dataset_name 'nowhere' is neither a folder nor a Hub id"),
    "a split that is not there": (["--dataset_split=test"], r"has no preference/test\.jsonl"),
    "a held-out split that is not there": (["--eval_split=test"], r"has no preference/test\.jsonl"),
    "a language nobody speaks": (["--dataset_language=klingon"], "dataset_language 'klingon' leaves no row"),
    "nccl on a CPU": (["--weight_transfer_backend=nccl"], "'nccl' needs GPUs and this host has none; use gloo"),
    "a DeepSpeed file that is not there": (["--deepspeed=no.json"], "deepspeed no.json: no JSON file"),
    "a DeepSpeed file that is none": (["--deepspeed=pyproject.toml"], "deepspeed pyproject.toml: no JSON file"),
    "a reference that cannot be offloaded": (["--offload_reference"], "offload_reference needs ZeRO-3"),
    "an adapter for no layer": (["--use_peft", "--lora_target_modules=q_porj"], "'q_porj' names no linear layers"),
    "a truth that is not there": (
        ["--truth_function=no.such:thing"],
        "truth_function 'no.such:thing' cannot be loaded",
    ),
    "a checkpoint that is not there": (["--resume_from_checkpoint=no"], "resume_from_checkpoint 'no' is no folder"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_the_dry_run_with_one_line(dry_run, flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        dry_run(*flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["reward_url", "rollout_urls"])
def test_a_server_that_nobody_answers_for_is_named(dry_run, flag: str) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with pytest.raises(ConfigError, match=f"nobody answers at {url} .*Connection refused"):
        dry_run(f"--{flag}={url}")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_is_not_supported_is_named(dry_run, tmp_path, stage: int) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    with pytest.raises(ConfigError, match=f"stage {stage} is not supported; use 2 or 3"):
        dry_run(f"--deepspeed={path}")


def test_a_mistake_is_exit_code_2_and_one_line_on_stderr(dry_run, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: dry_run("--rloo_k=1"))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: rloo_k (1) must be at least 2: the baseline is the mean of the others\n"
    assert captured.out == ""
