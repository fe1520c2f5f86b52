"""Settings of a run: everything the servers know, and everything the training needs.

The names are those users know from TRL and Transformers. One flat YAML file or flags; see `wire/settings.py`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from reward_server.limits import CheckSettings
from rollout_server.config import RolloutSettings
from trainer.config_checks import ALL_LINEAR, IMPORTANCE_WEIGHTS, check_run
from trainer.niceness import check_niceness
from trainer.tripwires import STOP_AT, WARN_AT, check_limits
from wire.errors import ConfigError

SKIP_PUSH_ENV = "RLHF_TEST_SKIP_PUSH"


@dataclass
class RunSettings(RolloutSettings, CheckSettings):
    """One training run."""

    output_dir: str = field(default="runs/rloo", metadata={"help": "Folder for everything the run writes."})
    dry_run: bool = field(default=False, metadata={"help": "Check the settings, print the plan, load nothing."})
    rates: str | None = field(
        default=None, metadata={"help": "YAML file with the parts' rates: --dry_run prints what they come to."}
    )
    simulate: str | None = field(
        default=None,
        metadata={"help": "Such a file: run the driver over stand-ins with these rates, on a virtual clock."},
    )
    simulate_steps: int = field(default=100, metadata={"help": "Steps of a simulation."})
    seed: int = field(default=42, metadata={"help": "Seeds prompts, completions, pairings and ranks."})

    dataset_split: str = field(default="train", metadata={"help": "Split that the training prompts come from."})
    num_eval_prompts: int = field(
        default=128, metadata={"help": "Held-out prompts, judged before, while and after it trains; 0: none."}
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "JSONL file with the held-out prompts (context, messages or prompt) instead of eval_split."},
    )
    eval_steps: int = field(
        default=50, metadata={"help": "Compare with the initial policy's answers every this many steps; 0: never."}
    )
    eval_temperature: float = field(default=0.7, metadata={"help": "Temperature of the answers that are compared."})
    eval_top_p: float = field(default=1.0, metadata={"help": "Their top_p; nothing is trained on them."})
    eval_wait_s: float = field(
        default=3600.0, metadata={"help": "How long the end of a run waits for the comparison of the final policy."}
    )
    eval_share: float = field(
        default=0.025,
        metadata={"help": "Most of training's completions and verdicts that a comparison may take if none are idle."},
    )
    second_reward_url: str | None = field(
        default=None, metadata={"help": "Another running reward service, whose judge compares the answers too."}
    )
    judge_check: bool = field(
        default=True, metadata={"help": "Check the judge before the first step; see reward_server/check.py."}
    )
    truth_function: str | None = field(
        default=None,
        metadata={"help": "module:function (conversation, response) -> score, where the true score is known."},
    )

    rloo_k: int = field(default=4, metadata={"help": "Completions a prompt (K)."})
    total_episodes: int = field(default=50_000, metadata={"help": "Completions to train on in all."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Completions a device and micro-step."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Micro-steps an optimizer step."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps a rollout batch is split into."})
    num_ppo_epochs: int = field(default=1, metadata={"help": "Passes over each rollout batch."})
    cliprange: float = field(default=0.2, metadata={"help": "Clips the ratio to 1 +- this when a batch is reused."})
    local_rollout_forward_batch_size: int = field(
        default=16, metadata={"help": "Completions a rank scores at once in the no-grad pass."}
    )
    max_tokens_per_microbatch: int = field(
        default=0, metadata={"help": "Token budget of a packed micro-batch; 0: one longest completion."}
    )
    early_gradients: bool = field(
        default=False,
        metadata={
            "help": "Begin with the groups of a step that are judged while others are not; see trainer/accumulation.py."
        },
    )
    max_lag: int = field(default=1, metadata={"help": "Most optimizer steps a completion may be behind; 0: on-policy."})
    lookahead: int = field(
        default=0, metadata={"help": "How many later groups may be trained on before one that is not ready."}
    )
    replace_equal_rewards: bool = field(
        default=False, metadata={"help": "A group whose rewards are all equal gives its place to the next."}
    )

    judge_max_unreadable: float = field(
        default=0.25, metadata={"help": "The run ends when more than this share of a step's verdicts cannot be read."}
    )
    answer_length_weight: float = field(
        default=0.0, metadata={"help": "Points between the shortest and the longest answer of a group; 0: off."}
    )
    thought_length_weight: float = field(
        default=0.0, metadata={"help": "Points between the shortest and the longest thought of a group; 0: off."}
    )
    overlong_weight: float = field(
        default=0.0, metadata={"help": "Points taken from a completion as long as response_length; 0: off."}
    )
    overlong_cache: int = field(
        default=0, metadata={"help": "Tokens before response_length over which overlong_weight sets in."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken from the score of a completion that was cut at its length limit."}
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={"help": "A completion that was cut has no part in the loss, the baselines and the denominator."},
    )
    kl_coef: float = field(default=0.01, metadata={"help": "Weight of the KL to the reference policy in the reward."})
    normalize_reward: bool = field(
        default=False, metadata={"help": "Scores of a step, over all ranks, to mean 0 and standard deviation 1."}
    )
    reward_clip_range: float | None = field(
        default=None, metadata={"help": "Clips a score to +- this, after its penalty and normalisation."}
    )
    normalize_advantage: bool = field(
        default=False, metadata={"help": "Advantages of a step, over all ranks, to mean 0 and standard deviation 1."}
    )
    advantage_clip_range: float | None = field(
        default=None, metadata={"help": "Clips an advantage to +- this, after normalisation."}
    )
    importance_weights: str = field(
        default="token",
        metadata={
            "help": "Learner over replica, for each token, for the whole sequence (one weight a completion), or none.",
            "choices": list(IMPORTANCE_WEIGHTS),
        },
    )
    importance_weight_cap: float = field(default=2.0, metadata={"help": "Truncates an importance weight."})
    max_first_logp_gap: float = field(
        default=0.08,
        metadata={"help": "Nats. Largest std of learner's minus replica's log-prob with which training may start."},
    )
    max_logp_gap: float = field(
        default=0.15, metadata={"help": "Nats. The run ends where it is larger for three steps in a row; inf: never."}
    )

    warn_at: list[str] = field(
        default_factory=lambda: list(WARN_AT),
        metadata={"help": "Limits (kl>5 entropy<0.1) beyond which a warning is said; none: no limit."},
    )
    stop_at: list[str] = field(
        default_factory=lambda: list(STOP_AT),
        metadata={"help": "Limits beyond which the run ends with a checkpoint; see trainer/tripwires.py."},
    )

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "A Transformers schedule."})
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of the steps that warms up."})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's, not applied to biases and norms."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    bf16: bool = field(default=True, metadata={"help": "Train in bfloat16 with fp32 master weights, else in fp32."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Recompute activations in the backward pass."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Transformers' name; by default flash_attention_2 where flash-attn is installed, else sdpa, one "
            "sequence at a time where all layers attend to all tokens before."
        },
    )
    logprob_chunk_tokens: int = field(
        default=1024, metadata={"help": "Tokens whose logits exist at once; bounds memory by this x vocabulary."}
    )

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters and freeze the policy's own weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of an adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "An adapter's output is scaled by this / lora_r."})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "0 only: log-probs under dropout are not those of the policy that is served."}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: [ALL_LINEAR],
        metadata={"help": "Names of the layers that get an adapter; all-linear: every linear one of the blocks."},
    )

    num_learner_ranks: int = field(default=1, metadata={"help": "GPUs (or processes on a CPU) of the learner."})
    learner_threads: int = field(
        default=0, metadata={"help": "Threads of a learner rank on a CPU; 0: its part of the host's cores."}
    )
    learner_niceness: int = field(
        default=0,
        metadata={"help": "How far driver and learner give way to others on their host's cores: 0 to 19, as nice(1)."},
    )
    deepspeed: str | None = field(
        default=None, metadata={"help": "DeepSpeed JSON file; configs/deepspeed/zero2.json by default."}
    )
    offload_reference: bool = field(
        default=False, metadata={"help": "Keep the reference's ZeRO-3 shards on the host (stage 3 only)."}
    )
    learner_timeout_s: float = field(default=3600.0, metadata={"help": "Deadline of any call to the learner."})
    stall_warn_s: float = field(
        default=300.0, metadata={"help": "A wait that lasts so long is reported, with who waits for whom and why."}
    )
    stall_stop_s: float = field(
        default=3600.0,
        metadata={
            "help": "The run ends when no piece of work has ended for so long; 0: never. See trainer/watchdog.py."
        },
    )

    save_steps: int = field(default=100, metadata={"help": "Checkpoint every this many steps; 0: only at the end."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints kept."})
    export_steps: int = field(
        default=0,
        metadata={"help": "Write the policy in Hugging Face format every this many steps; 0: only at the end."},
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "latest, or a checkpoint's path."})
    logging_dir: str | None = field(default=None, metadata={"help": "TensorBoard's folder; <output_dir>/runs."})
    num_logged_completions: int = field(default=4, metadata={"help": "Completions logged as text with their verdicts."})
    log_completions_steps: int = field(default=10, metadata={"help": "Log them every this many steps."})
    trace_mib: int = field(
        default=256, metadata={"help": "What trace.json and the part before it may take together; 0: no trace."}
    )
    picture_steps: int = field(
        default=50, metadata={"help": "Draw timeline and curves every this many steps and at the end; 0: never."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_dir == RolloutSettings.log_dir:
            self.log_dir = str(Path(self.output_dir) / "logs")

    @property
    def completions_per_rank(self) -> int:
        """Completions a learner rank trains on in one step of the loop."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def completions_per_step(self) -> int:
        """Completions of one step of the loop, over all ranks."""
        return self.completions_per_rank * self.num_learner_ranks

    @property
    def prompts_per_step(self) -> int:
        """Groups of one step of the loop."""
        return self.completions_per_step // self.rloo_k

    @property
    def groups_alive(self) -> int:
        """Groups that are in the making or trained on at once, most of all: what keeps the lag within max_lag."""
        return (self.max_lag + 1) * self.prompts_per_step - self.lookahead

    @property
    def num_steps(self) -> int:
        """Steps of the run; the last one may overshoot `total_episodes`."""
        return math.ceil(self.total_episodes / self.completions_per_step)

    @property
    def optimizer_steps_per_step(self) -> int:
        """Optimizer steps of one step of the loop (1 unless a batch is split or reused)."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def begins_early(self) -> bool:
        """Whether a step's gradient is begun before all of its groups are there: asked for, and possible.

        It is not where a batch is split, reused or normalised as a whole, and not in a deterministic run, where time
        must not decide in which order gradients are summed.
        """
        needs_all = self.normalize_reward or self.normalize_advantage or self.optimizer_steps_per_step > 1
        return self.early_gradients and not needs_all and not self.deterministic

    @property
    def completions_per_micro_step(self) -> int:
        """Completions of one micro-step over all ranks: what is begun early at a time."""
        return self.per_device_train_batch_size * self.num_learner_ranks

    @property
    def loss_denominator(self) -> int | None:
        """What an optimizer step's loss is divided by: all of its completions where it is begun early, since how many
        of them will be trained on is not known then; None: those that are trained on."""
        return self.completions_per_step if self.begins_early else None

    @property
    def adapters(self) -> str:
        """The policy's adapters in words; `none` where the whole policy is trained."""
        if not self.use_peft:
            return "none"
        return f"LoRA r {self.lora_r}, alpha {self.lora_alpha}, on {' '.join(self.lora_target_modules)}"

    @property
    def microbatch_tokens(self) -> int:
        """Most tokens of a packed micro-batch; a single longer sequence still fits."""
        return self.max_tokens_per_microbatch or self.max_model_len

    @property
    def checks_judge(self) -> bool:
        """Whether the judge is checked before the first step: once a run, and not again when it is resumed."""
        return self.judge_check and self.resume_from_checkpoint is None

    @property
    def skip_push(self) -> bool:
        """A test's switch: pushes after the first move only the label."""
        return os.environ.get(SKIP_PUSH_ENV) == "1"

    @property
    def runs_dir(self) -> Path:
        """TensorBoard's folder."""
        return Path(self.logging_dir) if self.logging_dir else Path(self.output_dir) / "runs"

    def check(self) -> None:
        """Raises ConfigError on values that cannot work, alone or together; the message gives the numbers."""
        super().check()
        check_niceness(self.learner_niceness)
        check_run(self)
        check_limits(self.warn_at, self.stop_at)
        if self.resume_from_checkpoint not in (None, "latest") and not Path(str(self.resume_from_checkpoint)).is_dir():
            raise ConfigError(
                f"resume_from_checkpoint {self.resume_from_checkpoint!r} is no folder; name one, or latest"
            )
