"""Does training on completions that are several steps old learn as well as training on fresh ones?

    python -m benchmarks.off_policy [--seeds 5] [--episodes 1920] [--lag 4] [--folder runs/off_policy]
    python -m benchmarks.off_policy --only lag_corrected --seed 3      this run alone
    python -m benchmarks.off_policy --table                            what is measured so far, nothing is run

Whole runs of the toy job (configs/toy.yaml through `python -m trainer.main`: real replicas, judge, learner and pushes),
one after another, from the same policy and with equal episodes, so with equal optimizer steps:

    on_policy        max_lag 0
    lag_corrected    max_lag LAG, importance_weights token: learner over replica, for each token, truncated
    lag_uncorrected  max_lag LAG, importance_weights none: old completions are taken for fresh ones

The lag that a run really had is measured: a group is written soon after it is admitted, and waits for its step behind
those that were admitted before it, so the lag grows to about LAG in the first LAG steps and stays there. What counts is
the planted truth about the answers to the held-out prompts after training (`held_out_truth_after` of summary.json).

Every run that ends is a line of FOLDER/runs.jsonl; a later call with the same settings goes on from there. Seeds run
in turn over the contenders, so that an interrupted call leaves all of them with about as many.

The last line is JSON: the mean truth of each contender, `spread` (the sample standard deviation of the on-policy truth
over seeds) and `within_spread` (whether lag_corrected differs from on_policy by at most that). null: too few seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from benchmarks.off_policy_table import LAG_CORRECTED, LAG_UNCORRECTED, ON_POLICY, Ran, result, table

CONFIG = "configs/toy.yaml"
CONTENDERS = (ON_POLICY, LAG_CORRECTED, LAG_UNCORRECTED)
TRAINING = ("wait", "step", "publish")  # the stages of summary.json that are neither start nor held-out
RUN_S = 1800.0
LAST_WORDS = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs a contender, seeds 1, 2, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", help="these seeds instead")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="these contenders")
    parser.add_argument("--episodes", type=int, default=1920, help="completions a run trains on (default: %(default)s)")
    parser.add_argument("--lag", type=int, default=4, help="max_lag of the lagging runs (default: %(default)s)")
    parser.add_argument("--eval_prompts", type=int, default=96, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of all (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/off_policy"), help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    measured = read(args.folder / "runs.jsonl", args)
    for seed in [] if args.table else args.seed or range(1, args.seeds + 1):
        for contender in args.only:
            if not any((ran.contender, ran.seed) == (contender, seed) for ran in measured):
                print(f"{contender}, seed {seed}", file=sys.stderr, flush=True)
                measured.append(run(contender, seed, args))
    print("\n".join(table(measured)))
    print(json.dumps(result(measured)))


def flags_of(contender: str, args: argparse.Namespace) -> list[str]:
    """What a contender is given beside its seed; runs that were given something else are not set beside it."""
    lag = 0 if contender == ON_POLICY else args.lag
    weights = "none" if contender == LAG_UNCORRECTED else "token"
    return [
        *("--max_lag", str(lag), "--importance_weights", weights),
        *("--total_episodes", str(args.episodes), "--learning_rate", str(args.learning_rate)),
        *("--num_eval_prompts", str(args.eval_prompts), "--judge_check", "false", "--save_steps", "0"),
    ]


def run(contender: str, seed: int, args: argparse.Namespace) -> Ran:
    """One whole run; its line is in runs.jsonl afterwards."""
    folder: Path = args.folder / f"{contender}-lag{args.lag}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    flags = flags_of(contender, args)
    command = [sys.executable, "-m", "trainer.main", "--config", CONFIG, *flags]
    command += ["--seed", str(seed), "--output_dir", str(folder)]
    leashed = [sys.executable, "-m", "wire.leash", str(os.getpid()), *command]
    with (folder / "output").open("wb") as output:
        code = subprocess.run(leashed, stdout=output, stderr=output, timeout=RUN_S, check=False).returncode
    if code != 0:
        raise SystemExit(f"{contender} ended with {code}:\n{(folder / 'output').read_text()[-LAST_WORDS:]}")
    ran = ran_in(folder, contender, seed)
    with (args.folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps({"flags": flags, "ran": asdict(ran)}) + "\n")
    return ran


def ran_in(folder: Path, contender: str, seed: int) -> Ran:
    """What a finished run left in its folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = json.loads((folder / "summary.json").read_text())
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    return Ran(
        contender,
        seed,
        episodes=summary["episodes"],
        truth_before=summary["held_out_truth_before"],
        truth_after=summary["held_out_truth_after"],
        lag_mean=fmean(lag for step in steps for lag in step["lags"]),
        lag_max=max(lag for step in steps for lag in step["lags"]),
        ess=fmean(event.value for event in events.Scalars("sampling/ess")),
        logp_diff_std=fmean(event.value for event in events.Scalars("sampling/logp_diff_std")),
        seconds=sum(summary["seconds"].get(stage, 0.0) for stage in TRAINING),
    )


def read(path: Path, args: argparse.Namespace) -> list[Ran]:
    """The runs of `path` that had the settings of `args`; none where there is no file. A torn last line is no run."""
    if not path.exists():
        return []
    wanted = {contender: flags_of(contender, args) for contender in CONTENDERS}
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]
    return [Ran(**line["ran"]) for line in lines if line["flags"] == wanted[line["ran"]["contender"]]]


if __name__ == "__main__":
    main()
