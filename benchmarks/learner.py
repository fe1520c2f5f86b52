"""How fast and how lean is a step of the learner, beside one of TRL's RLOOTrainer on the same batch?

    python -m benchmarks.learner [--rounds 3] [--completions 8] [--seed 0] [--threads N]

Each side runs in a process of its own, so that its peak memory (VmHWM) is its own, and the two take steps in turn, so
that whatever else the machine does meets both. A step is everything from completions and scores to new weights: own and
reference log-probs without gradient, KL in the reward, leave-one-out advantages, the training pass, AdamW. Both train a
small Qwen3 with the real vocabulary of 151,936 in fp32 with gradient checkpointing, K = 4, in the same number of
threads; the gradient norms of every step are compared, since only equal work may be compared in time. Two length
distributions (benchmarks/workload.py): all 512 tokens; a log-normal tail, median 200, sigma 1.0, cut to 16..1,024.

TRL's settings: what is left at its default is not named. Its time goes by the positions that it computes, padding and
prompts included, whose logits it makes in tiles of 32,768 words; so the micro-batch sets how large the tiles are.
Micro-batches of 1, 2, 4 and 8 completions were tried: 1 was the fastest (by 7 to 10 %) and the leanest; it is taken. It
has no padding-free option (its rows are padded to the longest completion of the step, whatever the micro-batch),
`use_liger_kernel` and its fused Triton head need a GPU, and `pad_to_multiple_of` only adds positions.

With a GPU, `python -m benchmarks.learner_gpu` runs after it. The last line is JSON: ratios, ours over TRL's;
`speed_ratio_*` of tokens a second (medians), `cpu_ratio_*` the same by processor seconds, `memory_ratio` the tail's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.child import Answer, Child
from benchmarks.workload import K, Shape, lengths_of, make_workload, write_model

SIDES = {"ours": "benchmarks.learner_ours", "trl": "benchmarks.learner_trl"}
TRL_BATCH_SIZE = 1
MICROBATCH_TOKENS = 4096
SAME_GRADIENT = 1e-3  # relative difference of the norms; padded and packed sums differ by about 1e-5


def compare(distribution: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratios for one distribution; prints a line for each side."""
    workload = make_workload(lengths_of(distribution, args.completions, args.seed), args.seed, Shape().vocab_size)
    job = {
        "model": str(folder / "model"),
        "workload": asdict(workload),
        "seed": args.seed,
        "gradient_checkpointing": True,
        "microbatch_tokens": MICROBATCH_TOKENS,
        "trl_batch_size": TRL_BATCH_SIZE,
    }
    children = {
        side: Child(module, job | {"folder": str(folder / side)}, folder / f"{side}-{distribution}.log")
        for side, module in SIDES.items()
    }
    answers: dict[str, list[Answer]] = {side: [] for side in SIDES}
    for _ in range(args.rounds + 1):  # the first warms up
        for side, child in children.items():
            answers[side].append(child.step())
    for child in children.values():
        child.close()
    check_same_work(answers)
    figures = {side: summary(answers[side][1:]) for side in SIDES}
    for side, figure in figures.items():
        print(
            f"{distribution:>6} {side:>5}: {workload.num_tokens / figure['seconds']:8.0f} tokens/s, "
            f"{figure['seconds']:6.2f} s a step, {figure['cpu_seconds']:6.2f} processor s, "
            f"peak {figure['peak_bytes'] / 2**20:5.0f} MiB",
            flush=True,
        )
    ours, theirs = figures["ours"], figures["trl"]
    return {
        f"speed_ratio_{distribution}": round(theirs["seconds"] / ours["seconds"], 2),
        f"cpu_ratio_{distribution}": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2),
        f"memory_ratio_{distribution}": round(ours["peak_bytes"] / theirs["peak_bytes"], 2),
    }


def summary(answers: list[Answer]) -> dict[str, float]:
    """Medians of the times, and the largest peak."""
    times = {name: median(answer[name] for answer in answers) for name in ("seconds", "cpu_seconds")}
    return {**times, "peak_bytes": max(answer["peak_bytes"] for answer in answers)}


def check_same_work(answers: dict[str, list[Answer]]) -> None:
    """Raises SystemExit where the two sides' gradients differ."""
    for ours, theirs in zip(answers["ours"], answers["trl"], strict=True):
        if abs(ours["grad_norm"] / theirs["grad_norm"] - 1) > SAME_GRADIENT:
            raise SystemExit(
                f"not the same work: gradient norm {ours['grad_norm']} against TRL's {theirs['grad_norm']}"
            )


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each side and distribution")
    parser.add_argument("--completions", type=int, default=8, help=f"completions a step, a multiple of {K}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    args = parser.parse_args()
    if args.completions < K or args.completions % K:
        parser.error(f"--completions ({args.completions}) must be a multiple of {K}")
    os.environ.update(OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", Shape(), args.seed)
        for distribution in ("equal", "tail"):
            result |= compare(distribution, args, Path(name))
    result["memory_ratio"] = result["memory_ratio_tail"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
