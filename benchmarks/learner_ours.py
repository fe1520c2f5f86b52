"""Our side of `benchmarks.learner`: one rank of the real learner, ZeRO-2, asked for steps by the process above it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.child import Answer, Conductor, Stopwatch, serve
from benchmarks.workload import KL_COEF, K, Workload
from trainer.batch import Sample, build_batch, pack_for_ranks
from trainer.config import RunSettings
from trainer.learner import LearnerRank
from trainer.rloo import assemble_reward, leave_one_out


class OurStep:
    """A learner rank that takes steps on given workloads."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings, self._rank = settings, LearnerRank(settings, 0)
        self._rank.setup("127.0.0.1", self._rank.pick_port())

    def __call__(self, workload: Workload) -> Answer:
        """The no-grad pass for own and reference log-probs, rewards, the training pass, the optimizer."""
        samples = samples_of(workload)
        watch = Stopwatch()
        rewards = self._rewards(samples, workload.scores)
        advantages = [a for i in range(0, len(rewards), K) for a in leave_one_out(rewards[i : i + K])]
        ready = [replace(s, advantage=a) for s, a in zip(samples, advantages, strict=True) if a is not None]
        budget = self._settings.microbatch_tokens
        (share,) = build_batch(ready, num_ranks=1, num_mini_batches=1, token_budget=budget)
        stats = self._rank.step(share)
        return {**watch.read(), "grad_norm": stats.grad_norm, "loss": stats.loss}

    def _rewards(self, samples: list[Sample], scores: list[float]) -> list[float | None]:
        (packs,) = pack_for_ranks(samples, 1, self._settings.microbatch_tokens)
        kl: dict[int, float] = {}
        for pack, rows in zip(packs, self._rank.reference(packs), strict=True):
            kl |= {id(sample): sum(own) - sum(ref) for sample, (own, ref) in zip(pack, rows, strict=True)}
        coefficient = self._settings.kl_coef
        return [
            assemble_reward(score, finished=True, kl=kl[id(s)], kl_coef=coefficient, missing_eos_penalty=None)[1]
            for score, s in zip(scores, samples, strict=True)
        ]


def samples_of(workload: Workload) -> list[Sample]:
    """Its completions, in order, as the replicas would have written them with certainty."""
    return [
        Sample(tuple(workload.prompts[index // K]), tuple(ids), (0.0,) * len(ids))
        for index, ids in enumerate(workload.completions)
    ]


def settings_of(job: dict[str, Any]) -> RunSettings:
    """Those of a run but for what the other side lacks: it has no importance weights."""
    return RunSettings(
        model_name_or_path=job["model"],
        output_dir=job["folder"],
        device=job.get("device", "cpu"),
        bf16=job.get("bf16", False),
        attn_implementation=job.get("attention"),
        rloo_k=K,
        kl_coef=KL_COEF,
        importance_weights="none",
        lr_scheduler_type="constant",
        gradient_checkpointing=job["gradient_checkpointing"],
        max_tokens_per_microbatch=job["microbatch_tokens"],
        seed=job["seed"],
    )


def main() -> None:
    """As the module says; the argument is the job, in JSON."""
    job = json.loads(sys.argv[1])
    conductor = Conductor(job["answers"])
    serve(partial(OurStep(settings_of(job)), Workload(**job["workload"])), conductor)


if __name__ == "__main__":
    main()
