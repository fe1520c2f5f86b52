"""What the values of a run's settings must be, alone and together. Raises; corrects nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wire.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config import RunSettings

IMPORTANCE_WEIGHTS = ("token", "sequence", "none")
ALL_LINEAR = "all-linear"  # PEFT's word
LEAST = {
    1: (
        "total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches",
        "num_ppo_epochs", "local_rollout_forward_batch_size", "num_learner_ranks", "save_total_limit",
        "logprob_chunk_tokens", "lora_r", "lora_alpha", "simulate_steps",
    ),
    0: (
        "max_lag", "lookahead", "learner_threads", "kl_coef", "num_eval_prompts", "eval_steps", "eval_temperature",
        "save_steps", "export_steps", "weight_decay", "max_tokens_per_microbatch", "answer_length_weight",
        "thought_length_weight", "overlong_weight", "overlong_cache", "trace_mib", "picture_steps",
    ),
}  # fmt: skip
POSITIVE = (
    "learning_rate", "importance_weight_cap", "max_grad_norm", "cliprange", "learner_timeout_s", "reward_clip_range",
    "advantage_clip_range", "max_first_logp_gap", "max_logp_gap", "stall_warn_s", "eval_wait_s",
)  # fmt: skip


def check_run(settings: RunSettings) -> None:
    """Raises ConfigError on the first that cannot work; the message gives the numbers and the remedy."""
    _check_least(settings)
    _check_positive(settings)
    _check_ranges(settings)
    _check_evaluation(settings)
    _check_step(settings)
    _check_lora(settings)


def _check_least(settings: RunSettings) -> None:
    for least, names in LEAST.items():
        for name in names:
            if not getattr(settings, name) >= least:  # NaN too
                raise ConfigError(f"{name} ({getattr(settings, name)}) must be at least {least}")


def _check_positive(settings: RunSettings) -> None:
    for name in POSITIVE:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} ({value}) must be positive")
    if not (settings.stall_stop_s == 0 or settings.stall_stop_s >= settings.stall_warn_s):  # NaN too
        raise ConfigError(
            f"stall_stop_s ({settings.stall_stop_s:g}) must be at least stall_warn_s ({settings.stall_warn_s:g}), or "
            "0 for never: the run would end before it said what it waits for"
        )


def _check_ranges(settings: RunSettings) -> None:
    if settings.importance_weights not in IMPORTANCE_WEIGHTS:
        raise ConfigError(
            f"importance_weights {settings.importance_weights!r} is not among {', '.join(IMPORTANCE_WEIGHTS)}"
        )
    if not 0 <= settings.judge_max_unreadable <= 1:
        raise ConfigError(f"judge_max_unreadable ({settings.judge_max_unreadable}) is a share: give 0 to 1")
    if settings.overlong_cache >= settings.response_length:
        raise ConfigError(
            f"overlong_cache ({settings.overlong_cache}) must be less than response_length "
            f"({settings.response_length}): it is the stretch before it in which the punishment sets in"
        )
    if settings.overlong_weight and not settings.overlong_cache:
        raise ConfigError(
            f"overlong_weight ({settings.overlong_weight}) with overlong_cache 0 would punish nobody; give the number "
            "of tokens before response_length over which it sets in"
        )
    if not 0 <= settings.warmup_ratio <= 1:
        raise ConfigError(f"warmup_ratio ({settings.warmup_ratio}) must lie between 0 and 1")
    if settings.missing_eos_penalty is not None and settings.missing_eos_penalty < 0:
        raise ConfigError(f"missing_eos_penalty ({settings.missing_eos_penalty}) is subtracted; give a positive number")


def _check_evaluation(settings: RunSettings) -> None:
    if not 0 <= settings.eval_share <= 1:  # NaN too
        raise ConfigError(f"eval_share ({settings.eval_share}) is a share: give 0 to 1")
    if not 0 < settings.eval_top_p <= 1:
        raise ConfigError(f"eval_top_p ({settings.eval_top_p}) must lie above 0 and at most at 1; 1 cuts nothing off")


def _check_lora(settings: RunSettings) -> None:
    if settings.lora_dropout:
        raise ConfigError(
            f"lora_dropout ({settings.lora_dropout}) must be 0: under dropout the learner would train on the log-probs "
            "of another policy than the one that wrote the completions"
        )
    if not settings.lora_target_modules:
        raise ConfigError(f"lora_target_modules is empty; name layers, or give {ALL_LINEAR}")


def _check_step(settings: RunSettings) -> None:
    if settings.deterministic and settings.max_lag > 0:
        raise ConfigError(
            f"deterministic needs max_lag 0, and it is {settings.max_lag}: where in a completion a push falls depends "
            "on time, and so do the tokens after it; set max_lag to 0, or deterministic to false"
        )
    if settings.rloo_k < 2:
        raise ConfigError(f"rloo_k ({settings.rloo_k}) must be at least 2: the baseline is the mean of the others")
    size, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    optimizer_step = size * accumulation
    if optimizer_step % settings.rloo_k:
        remedy = ", ".join(str(k) for k in range(2, optimizer_step + 1) if optimizer_step % k == 0) or "a larger batch"
        raise ConfigError(
            f"per_device_train_batch_size ({size}) x gradient_accumulation_steps ({accumulation}) = "
            f"{optimizer_step} completions do not divide by rloo_k ({settings.rloo_k}); rloo_k can be {remedy}"
        )
    if settings.lookahead > settings.max_lag * settings.prompts_per_step:
        raise ConfigError(
            f"lookahead ({settings.lookahead}) must be at most max_lag ({settings.max_lag}) x prompts a step "
            f"({settings.prompts_per_step}): so many fewer groups are alive, and they must fill a step"
        )
