"""`python -m trainer.main --config FILE [--any_flag value]`: the main job.

Checks everything that can be checked, prints the plan, starts (or joins) the three parts, trains, and stops what it
started.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainer.capacity_report import capacity_lines
from trainer.checkpoint import Checkpoints
from trainer.config import RunSettings
from trainer.environment import prepare_embedded_ray
from trainer.folders import held_alone
from trainer.initial_answers import check_there, read_answers, sampling_of
from trainer.joined import wait_until_ready
from trainer.journal import open_trace, write_summary
from trainer.material import Material, load_material
from trainer.niceness import session_gives_way
from trainer.plan import make_plan
from trainer.preflight import check_environment, joined
from trainer.rates import load_rates
from trainer.simulate import simulate, summary_lines
from trainer.supervisor import Supervised
from wire import event_loop
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token

# Objects that come to be, less those that go, between two collections; how many of these go to one of older ones.
GC_THRESHOLDS = 50_000, 20


def say(line: str) -> None:
    """A line for the person who watches; a progress bar makes room for it."""
    tqdm.write(line)
    sys.stdout.flush()


async def run_until_signal(settings: RunSettings, material: Material, token: str) -> dict[str, Any]:
    """The run; SIGINT and SIGTERM cancel it, and it then stops its parts in order."""
    from trainer.run import run  # imports Ray, which must find its environment prepared

    task = asyncio.current_task()
    assert task is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    return await run(settings, material, token, say)


def report(settings: RunSettings, summary: dict[str, Any]) -> None:
    """Write summary.json and say what came of the run."""
    path = Path(settings.output_dir) / "summary.json"
    write_summary(path, summary)
    say(f"summary: {path}")
    for name in ("held_out_score", "held_out_truth"):
        before, after = summary[f"{name}_before"], summary[f"{name}_after"]
        if before is not None and after is not None:
            say(f"{name}: {before:.2f} -> {after:.2f}")


def collect_rarely() -> None:
    """What was imported is never garbage, and the many objects of groups in flight leave no cycles behind: to go
    through them at Python's usual pace takes an eighth to a quarter of the driver's CPU time."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def simulation(settings: RunSettings, path: str) -> int:
    """What the rates in the file at `path` come to, reckoned and simulated; nothing real is looked for or started."""
    rates = load_rates(path)
    say("\n".join(capacity_lines(settings, rates)))
    folder = Path(settings.output_dir) / "simulation"
    settings = replace(settings, output_dir=str(folder))
    summary = simulate(settings, rates, steps=settings.simulate_steps, instrument=partial(open_trace, goes_on=False))
    say("\n".join(summary_lines(summary)))
    write_summary(folder / "summary.json", summary)
    say(f"summary and trace: {folder}")
    return 0


def material_of(settings: RunSettings) -> Material:
    """What the run reads. What a resumed one goes on from, and does not fit, is known before anything is loaded."""
    resumed = Checkpoints(settings).to_resume() is not None
    if resumed:
        check_there(settings)
    material = load_material(settings, say)
    if resumed and settings.eval_steps and material.held_out:
        sampling = sampling_of(settings, material.stop_token_ids)
        read_answers(Path(settings.output_dir), material.held_out, sampling)
    return material


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, plan, run."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are no news; its failure is, below
    settings, _ = parse_settings(RunSettings, argv, strict_file=True)
    if settings.simulate:
        return simulation(settings, settings.simulate)
    rates = load_rates(settings.rates) if settings.rates else None
    plan = make_plan(settings)
    notes = check_environment(settings)
    say("\n".join([*plan.lines(), *(f"note: {note}" for note in notes)]))
    if settings.dry_run:
        if rates is not None:
            say("\n".join(["", f"with the rates of {settings.rates}", *capacity_lines(settings, rates)]))
        say("\n".join(["", "settings", *plan.setting_lines()]))
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    material = material_of(settings)
    token = read_or_create_token(settings.token_file)
    wait_until_ready(joined(settings), settings.startup_timeout_s, say)
    if not settings.ray_address:
        prepare_embedded_ray()
    session_gives_way(settings.learner_niceness)
    collect_rarely()
    with held_alone(Path(settings.output_dir)), Supervised():
        try:
            summary = event_loop.run(run_until_signal(settings, material, token))
        except asyncio.CancelledError:
            say("stopped")
            return 130
        finally:
            gc.unfreeze()  # else what libraries free at the interpreter's end is kept alive, and they complain
    report(settings, summary)
    return 0


if __name__ == "__main__":
    run_program(main)
