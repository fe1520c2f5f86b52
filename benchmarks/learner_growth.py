"""How does the cost of a step grow with the completions of a step, and with their length?

    python -m benchmarks.learner_growth [--rounds 2] [--threads 1] [--seed 0]

The real learner on one rank of this CPU, ZeRO-2, no-grad pass included, with the model of `benchmarks.learner`. Twice
the completions should take twice the time; a longer completion should take what `trainer.flops` says, whose attention
term is quadratic. Measured in processor seconds (the least of the rounds), which other processes disturb less than the
clock, and by default in one thread. `share of plan`: seconds a FLOP, relative to the mean over the rows of the table.

The last line is JSON: the largest deviation from the plan by completions and by length (0.15 is the aim), and the
seconds themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import mean

from benchmarks.workload import Shape, Workload, make_workload, write_model

COMPLETIONS = (8, 16, 32, 64)
LENGTH = 128
LENGTHS = (128, 256, 512, 1024)
NUM_COMPLETIONS = 8
MICROBATCH_TOKENS = 4096


def planned(workload: Workload) -> int:
    """FLOPs of a step as the learner takes it, with what is computed twice."""
    from benchmarks.learner_ours import samples_of
    from trainer.batch import pack
    from trainer.flops import FlopsShape, step_flops

    shape = asdict(Shape())
    del shape["tie_word_embeddings"]
    lengths = [
        (len(prompt_ids), [len(sample.completion_ids) for sample in siblings])
        for micro_batch in pack(samples_of(workload), MICROBATCH_TOKENS)
        for prompt_ids, siblings in groupby(micro_batch, key=lambda sample: sample.prompt_ids)
    ]
    return step_flops(FlopsShape(**shape), lengths, has_reference=True, recomputed=True, gradient_checkpointing=True)


def measure(workloads: dict[str, Workload], folder: Path, rounds: int, seed: int) -> dict[str, float]:
    """Processor seconds a step of each workload, the rounds interleaved; one step of the smallest warms up."""
    from benchmarks.learner_ours import OurStep, settings_of

    job = {
        "model": str(folder / "model"), "folder": str(folder / "run"), "seed": seed,
        "gradient_checkpointing": True, "microbatch_tokens": MICROBATCH_TOKENS,
    }  # fmt: skip
    step = OurStep(settings_of(job))
    step(min(workloads.values(), key=lambda w: w.num_tokens))
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(rounds):
        for name, workload in workloads.items():
            seconds[name].append(step(workload)["cpu_seconds"])
    return {name: min(values) for name, values in seconds.items()}


def report(title: str, names: list[str], workloads: dict[str, Workload], seconds: dict[str, float]) -> float:
    """Prints a table; returns the largest deviation of a row from the plan."""
    rates = {name: seconds[name] / planned(workloads[name]) for name in names}
    middle = mean(rates.values())
    print(f"| {title} | tokens | planned TFLOP | seconds | share of plan |\n|---|---|---|---|---|")
    for name in names:
        tokens, tera = workloads[name].num_tokens, planned(workloads[name]) / 1e12
        print(f"| {name.split()[0]} | {tokens} | {tera:.3f} | {seconds[name]:.2f} | {rates[name] / middle:.2f} |")
    print()
    return max(abs(rate / middle - 1) for rate in rates.values())


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="measured steps of each row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))  # before torch is imported
    by_number = {f"{n} completions": make_workload([LENGTH] * n, args.seed, Shape().vocab_size) for n in COMPLETIONS}
    by_length = {f"{n} tokens": make_workload([n] * NUM_COMPLETIONS, args.seed, Shape().vocab_size) for n in LENGTHS}
    workloads = by_number | by_length
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", Shape(), args.seed)
        seconds = measure(workloads, Path(name), args.rounds, args.seed)
    completions = report(f"completions of {LENGTH} tokens", list(by_number), workloads, seconds)
    lengths = report(f"tokens of {NUM_COMPLETIONS} completions", list(by_length), workloads, seconds)
    result = {"deviation_completions": round(completions, 3), "deviation_lengths": round(lengths, 3)}
    print(json.dumps(result | {"seconds": {name: round(value, 2) for name, value in seconds.items()}}))


if __name__ == "__main__":
    main()
