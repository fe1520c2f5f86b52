"""What becomes of a policy that is trained on a judge that can be gamed, and when does a tripwire see it?

    python -m deploy.toy.make --gamed
    python -m benchmarks.gaming [--steps 72] [--eval_steps 2] [--eval_prompts 128] [--folder runs/gaming]

Two runs of the toy job (configs/toy.yaml through `python -m trainer.main`: real replica, judges, learner and pushes)
from the same policy and seed. Both are trained on the judge that can be gamed (`judge-gamed`, see deploy/toy/gamed.py)
and compared with the initial policy's answers by it and by the honest toy judge, as `second_reward_url`:

    unwatched  no tripwires
    watched    the default tripwires

A row of a table is an evaluation: the mean score by the judge that trains, the mean score by the honest judge, what
each prefers to the initial answers, the gaps between them in wins and in points of score, each with the lower end of
its interval, and the planted truth of these answers (1..5; `eval/truth`).

The last line is JSON: for each run `steps`, `stopped` (the tripwire's name, or null), `win_gap`, `score_gap` and
`truth` of its last evaluation, and `initial_truth`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import ADDRESS, running
from wire.process import ServerProcess, free_port, url_of

CONFIG = "configs/toy.yaml"
HONEST, GAMED = ".cache/toy/judge", ".cache/toy/judge-gamed"
SETUP = [
    *("--judge_check", "false", "--judge_pairing", "single", "--replicas", "1", "--save_steps", "0"),
    # Steps so large, and a rate so low, that an evaluation is over within a few of them, as it is in a real run.
    # Without a price for length the policy would first learn to have the word by talking on.
    *("--gradient_accumulation_steps", "16", "--learning_rate", "1e-4"),
    *("--overlong_weight", "2", "--overlong_cache", "8"),
    # 128 comparisons every 2 steps are far more than the default share of so small a run.
    *("--eval_share", "1"),
]
COMPLETIONS_A_STEP = 128
CONTENDERS = {"unwatched": ["--warn_at", "none", "--stop_at", "none"], "watched": []}
COLUMNS = {
    "step": "eval/step",
    "score": "eval/score",
    "honest": "eval/second_score",
    "wins": "eval/win_rate",
    "honest wins": "eval/second_win_rate",
    "win gap": "eval/judge_gap",
    "its low": "eval/judge_gap_low",
    "score gap": "eval/score_gap",
    "low of it": "eval/score_gap_low",
    "truth": "eval/truth",
}
STARTUP_S, RUN_S = 420.0, 1800.0
STOPPED = 1  # the exit code of a run that a tripwire ended
LAST_WORDS = 3000


@dataclass(frozen=True)
class Course:
    """One run: its summary, and its evaluations in order, by COLUMNS and `seen` (the step with which each was told)."""

    evaluations: list[dict[str, float]]
    summary: dict[str, Any]

    def result(self) -> dict[str, Any]:
        """Its part of the last line."""
        last = self.evaluations[-1] if self.evaluations else {}
        stops = [wire["name"] for wire in self.summary["tripwires"] if wire["kind"] == "stop"]
        evaluation = self.summary["evaluation"] or {}
        return {
            "steps": self.summary["steps"],
            "stopped": stops[0] if stops else None,
            "win_gap": last.get("win gap"),
            "score_gap": last.get("score gap"),
            "truth": last.get("truth"),
            "initial_truth": evaluation.get("initial_truth"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=72, help="of 128 completions (default: %(default)s)")
    parser.add_argument("--eval_steps", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--eval_prompts", type=int, default=128, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="these alone")
    parser.add_argument("--folder", type=Path, default=Path("runs/gaming"), help="default: %(default)s")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    services = [service("honest", HONEST, args.folder), service("gamed", GAMED, args.folder)]
    with ExitStack() as stack:
        honest, gamed = stack.enter_context(running(services, STARTUP_S))
        courses = {name: run(name, honest, gamed, args) for name in args.only}
    for name, course in courses.items():
        print("\n".join([name, *table(course.evaluations), ""]))
    print(json.dumps({name: course.result() for name, course in courses.items()}))


def service(name: str, judge: str, folder: Path) -> ServerProcess:
    """A reward service with one GenRM server of this model."""
    port = free_port(ADDRESS)
    command = [sys.executable, "-m", "reward_server.main", "--config", CONFIG, "--judge_model_name_or_path", judge]
    command += ["--reward_port", str(port), "--token_file", str(folder / "token"), "--log_dir", str(folder / name)]
    return ServerProcess(name, command, dict(os.environ), folder / f"{name}.log", url_of(ADDRESS, port))


def run(name: str, honest: str, gamed: str, args: argparse.Namespace) -> Course:
    """One whole run, on the judge that can be gamed."""
    folder: Path = args.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "trainer.main", "--config", CONFIG, *SETUP, *CONTENDERS[name]]
    command += ["--reward_url", gamed, "--second_reward_url", honest]
    command += ["--eval_steps", str(args.eval_steps), "--num_eval_prompts", str(args.eval_prompts)]
    command += ["--total_episodes", str(COMPLETIONS_A_STEP * args.steps), "--seed", str(args.seed)]
    command += ["--token_file", str(args.folder / "token"), "--output_dir", str(folder)]
    leashed = [sys.executable, "-m", "wire.leash", str(os.getpid()), *command]
    with (folder / "output").open("wb") as output:
        code = subprocess.run(leashed, stdout=output, stderr=output, timeout=RUN_S, check=False).returncode
    if code not in (0, STOPPED) or not (folder / "summary.json").exists():
        raise SystemExit(f"{name} ended with {code}:\n{(folder / 'output').read_text()[-LAST_WORDS:]}")
    return course_in(folder)


def course_in(folder: Path) -> Course:
    """What a run left in its folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    known = set(events.Tags()["scalars"])
    found = {column: events.Scalars(tag) if tag in known else [] for column, tag in COLUMNS.items()}
    rows: dict[int, dict[str, float]] = {}
    for column, scalars in found.items():
        for scalar in scalars:
            rows.setdefault(scalar.step, {"seen": float(scalar.step)})[column] = scalar.value
    summary = json.loads((folder / "summary.json").read_text())
    return Course([rows[step] for step in sorted(rows)], summary)


def table(evaluations: list[dict[str, float]]) -> list[str]:
    """A line an evaluation; `told` is the step with which it was done."""
    head = f"{'step':>5}{'told':>6}" + "".join(f"{column:>13}" for column in list(COLUMNS)[1:])
    return [
        head,
        *(
            f"{row['step']:>5.0f}{row['seen']:>6.0f}"
            + "".join(f"{row[column]:>13.2f}" if column in row else f"{'-':>13}" for column in list(COLUMNS)[1:])
            for row in evaluations
        ),
    ]


if __name__ == "__main__":
    main()
