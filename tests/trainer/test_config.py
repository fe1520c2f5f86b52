"""The settings of a run: defaults, derived numbers, and the rules that join them."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SKIP_PUSH_ENV, RunSettings
from wire.errors import ConfigError
from wire.settings import parse_settings


def test_defaults_pass_and_every_field_is_explained() -> None:
    RunSettings(device="cpu").check()
    assert all(f.metadata.get("help") for f in fields(RunSettings))


@pytest.mark.parametrize(
    ("ranks", "steps", "completions", "prompts"), [(1, 3125, 16, 4), (2, 1563, 32, 8), (8, 391, 128, 32)]
)
def test_the_original_run_in_numbers(ranks: int, steps: int, completions: int, prompts: int) -> None:
    settings = RunSettings(num_learner_ranks=ranks)
    assert (settings.rloo_k, settings.total_episodes) == (4, 50_000)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (2, 8)
    assert (settings.num_steps, settings.completions_per_step, settings.prompts_per_step) == (
        steps, completions, prompts
    )  # fmt: skip
    assert settings.optimizer_steps_per_step == 1


def test_the_defaults_are_those_the_design_promises() -> None:
    s = RunSettings()
    assert (s.response_length, s.max_prompt_length) == (1024, 4096)
    assert (s.temperature, s.top_p, s.top_k, s.enable_thinking) == (1.0, 1.0, 0, False)
    assert (s.kl_coef, s.importance_weight_cap, s.max_grad_norm) == (0.01, 2.0, 1.0)
    assert (s.lr_scheduler_type, s.warmup_ratio, s.learning_rate) == ("constant_with_warmup", 0.03, 1e-6)
    assert (s.judge_temperature, s.judge_max_tokens) == (0.0, 8192)
    assert (s.model_name_or_path, s.dataset_name) == ("Qwen/Qwen3-8B", "nvidia/HelpSteer3")
    assert (s.dataset_config, s.dataset_split, s.dataset_language) == ("preference", "train", "english")
    assert s.judge_model_name_or_path == "nvidia/Llama-3_3-Nemotron-Super-49B-GenRM-Multilingual"
    assert (s.num_ppo_epochs, s.num_mini_batches, s.bf16, s.gradient_checkpointing) == (1, 1, True, True)
    assert s.missing_eos_penalty is None
    assert (s.importance_weights, s.mask_truncated_completions, s.fp32_lm_head) == ("token", False, False)
    assert (s.normalize_reward, s.reward_clip_range) == (s.normalize_advantage, s.advantage_clip_range) == (False, None)
    assert (s.max_first_logp_gap, s.max_logp_gap) == (0.08, 0.15)


@pytest.mark.parametrize(("warn", "stop"), [(300.0, 3600.0), (300.0, 300.0), (300.0, 0.0), (0.5, 1e9)])
def test_a_stall_is_reported_before_it_ends_the_run(warn: float, stop: float) -> None:
    RunSettings(device="cpu", stall_warn_s=warn, stall_stop_s=stop).check()


@pytest.mark.parametrize(
    ("warn", "stop", "words"),
    [
        (0.0, 3600.0, r"stall_warn_s \(0.0\) must be positive"),
        (math.nan, 3600.0, "stall_warn_s"),
        (300.0, 200.0, r"stall_stop_s \(200\) must be at least stall_warn_s \(300\), or 0"),
        (300.0, -1.0, "stall_stop_s"),
        (300.0, math.nan, "stall_stop_s"),
    ],
)
def test_limits_of_a_stall_that_cannot_work_are_refused(warn: float, stop: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunSettings(device="cpu", stall_warn_s=warn, stall_stop_s=stop).check()


@given(*[st.integers(1, 6)] * 6, st.integers(1, 5000))
def test_steps_cover_the_episodes_and_groups_are_whole(  # the six are the factors of a step
    size: int, accumulation: int, mini_batches: int, ranks: int, half_k: int, epochs: int, episodes: int
) -> None:
    s = RunSettings(
        per_device_train_batch_size=size * 2 * half_k,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=mini_batches,
        num_learner_ranks=ranks,
        rloo_k=2 * half_k,
        num_ppo_epochs=epochs,
        total_episodes=episodes,
        device="cpu",
    )
    s.check()
    assert s.completions_per_step == size * 2 * half_k * accumulation * mini_batches * ranks
    assert s.prompts_per_step * s.rloo_k == s.completions_per_step
    assert (s.num_steps - 1) * s.completions_per_step < episodes <= s.num_steps * s.completions_per_step
    assert s.optimizer_steps_per_step == epochs * mini_batches


def test_the_estimators_options_can_be_given_as_flags() -> None:
    flags = ["--importance_weights=sequence", "--reward_clip_range=2", "--normalize_reward", "--max_logp_gap=inf"]
    s, _ = parse_settings(RunSettings, ["--device=cpu", *flags], strict_file=True)
    assert (s.importance_weights, s.reward_clip_range, s.normalize_reward) == ("sequence", 2.0, True)
    assert (s.max_logp_gap, s.advantage_clip_range) == (math.inf, None)
    with pytest.raises(ConfigError, match="importance-weights: invalid choice: 'tokens'"):
        parse_settings(RunSettings, ["--importance_weights=tokens"], strict_file=True)


def test_adapters_have_trls_defaults_and_are_named_as_flags_or_in_a_file(tmp_path: Path) -> None:
    s = RunSettings(use_peft=True)
    assert (s.lora_r, s.lora_alpha, s.lora_target_modules) == (16, 32, ["all-linear"])
    assert (s.adapters, RunSettings().adapters) == ("LoRA r 16, alpha 32, on all-linear", "none")
    (tmp_path / "run.yaml").write_text("use_peft: true\nlora_r: 8\nlora_target_modules: [q_proj, v_proj]\n")
    flags = ["--use_peft", "--lora_r=8", "--lora_target_modules", "q_proj", "v_proj"]
    for arguments in (flags, ["--config", str(tmp_path / "run.yaml")]):
        settings, _ = parse_settings(RunSettings, ["--device=cpu", *arguments], strict_file=True)
        assert settings.adapters == "LoRA r 8, alpha 32, on q_proj v_proj"


def test_the_token_budget_is_one_longest_sequence_unless_it_is_given() -> None:
    assert RunSettings().microbatch_tokens == 5120
    assert RunSettings(max_tokens_per_microbatch=2048).microbatch_tokens == 2048


def test_folders_follow_the_output_folder_unless_they_are_named() -> None:
    settings = RunSettings(output_dir="out")
    assert (settings.log_dir, str(settings.runs_dir)) == ("out/logs", "out/runs")
    named = RunSettings(output_dir="out", log_dir="logs", logging_dir="board")
    assert (named.log_dir, str(named.runs_dir)) == ("logs", "board")


def test_an_empty_language_means_all() -> None:
    assert RunSettings(dataset_language="").dataset_language is None


@pytest.mark.parametrize(("value", "skips"), [("1", True), ("0", False), (None, False)])
def test_only_the_tests_switch_skips_a_push(monkeypatch: pytest.MonkeyPatch, value: str | None, skips: bool) -> None:
    monkeypatch.delenv(SKIP_PUSH_ENV, raising=False)
    if value is not None:
        monkeypatch.setenv(SKIP_PUSH_ENV, value)
    assert RunSettings().skip_push is skips


AT_LEAST_ONE = (
    "total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches",
    "num_ppo_epochs", "local_rollout_forward_batch_size", "num_learner_ranks", "save_total_limit",
    "logprob_chunk_tokens", "lora_r", "lora_alpha",
)  # fmt: skip
AT_LEAST_ZERO = (
    "max_lag", "num_eval_prompts", "eval_steps", "save_steps", "export_steps", "max_tokens_per_microbatch", "trace_mib",
    "picture_steps",
)  # fmt: skip
POSITIVE = (
    "learning_rate", "importance_weight_cap", "max_grad_norm", "cliprange", "learner_timeout_s", "reward_clip_range",
    "advantage_clip_range", "max_first_logp_gap", "max_logp_gap",
)  # fmt: skip
RULES: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, rf"{name} \(0\) must be at least 1") for name in AT_LEAST_ONE),
    *(({name: -1}, rf"{name} \(-1\) must be at least 0") for name in AT_LEAST_ZERO),
    *(({name: 0.0}, rf"{name} \(0.0\) must be positive") for name in POSITIVE),
    ({"kl_coef": -0.5}, r"kl_coef \(-0.5\) must be at least 0"),
    ({"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be at least 0"),
    ({"eval_temperature": -0.1}, r"eval_temperature \(-0.1\) must be at least 0"),
    ({"eval_top_p": 0.0}, r"eval_top_p \(0.0\) must lie above 0 and at most at 1"),
    ({"eval_wait_s": 0}, r"eval_wait_s \(0\) must be positive"),
    ({"warmup_ratio": 1.5}, r"warmup_ratio \(1.5\) must lie between 0 and 1"),
    ({"warmup_ratio": -0.1}, r"warmup_ratio \(-0.1\)"),
    ({"missing_eos_penalty": -1.0}, r"missing_eos_penalty \(-1.0\) is subtracted; give a positive"),
    ({"importance_weights": "tokens"}, "importance_weights 'tokens' is not among token, sequence, none"),
    (
        {"deterministic": True, "judge_tensor_parallel_size": 1},
        "deterministic needs max_lag 0, and it is 1: .*set max_lag to 0, or deterministic to false",
    ),
    ({"deterministic": True, "max_lag": 0}, "judge_tensor_parallel_size 1, and it is 4"),
    ({"lora_dropout": 0.05}, r"lora_dropout \(0.05\) must be 0: under dropout"),
    ({"lora_target_modules": []}, "lora_target_modules is empty; name layers, or give all-linear"),
    ({"rloo_k": 1}, r"rloo_k \(1\) must be at least 2: the baseline"),
    ({"rloo_k": 0}, r"rloo_k \(0\) must be at least 2"),
    ({"rloo_k": 5}, r"\(2\) x gradient_accumulation_steps \(8\) = 16 completions do not divide by rloo_k \(5\).*"
                    r"can be 2, 4, 8, 16$"),
    ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}, "= 1 completions .*a larger batch$"),
    ({"resume_from_checkpoint": "runs/nowhere"}, "resume_from_checkpoint 'runs/nowhere' is no folder"),
    ({"eval_share": 2.5}, r"eval_share \(2.5\) is a share: give 0 to 1"),
    ({"temperature": 0.0}, "temperature"),
    ({"judge_max_tokens": 40000}, "judge_max_tokens"),
    ({"learning_rate": float("nan")}, "learning_rate"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[str(changes) for changes, _ in RULES])
def test_a_rule_that_is_broken_is_named_with_its_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunSettings(device="cpu", **changes).check()


def test_mini_batches_do_not_help_an_optimizer_step_that_cannot_hold_whole_groups() -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        RunSettings(
            device="cpu", per_device_train_batch_size=2, gradient_accumulation_steps=1, num_mini_batches=2, rloo_k=4
        ).check()
