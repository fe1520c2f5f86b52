"""A run goes from one replica to three and back to two while it trains, by `python -m rollout_server.scale`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.conftest import ROOT, TOY_CONFIG, Program
from wire.generation import PolicyVersion

ENOUGH = 16 * 5000  # episodes that no machine trains on while a server starts
SETTLED_STEPS = 4


def scale(output: Path, token_file: Path, *command: str) -> str:
    """What the program prints."""
    flags = ["--config", str(TOY_CONFIG), "--output_dir", str(output), "--token_file", str(token_file)]
    words = [sys.executable, "-m", "rollout_server.scale", *command, *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scalars(output: Path) -> dict[str, list[float]]:
    """What TensorBoard shows, by name, one value a step."""
    events = EventAccumulator(str(output / "runs"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wait_for_steps(run: Program, output: Path, num: int) -> None:
    """Wait until the run has taken `num` steps more."""
    wanted = len(scalars(output)["fleet/replicas"]) + num
    end = time.monotonic() + 120
    while len(scalars(output)["fleet/replicas"]) < wanted:
        assert run.process.poll() is None and time.monotonic() < end, run.text()[-3000:]
        time.sleep(1.0)


def test_replicas_come_and_go_while_the_run_trains(
    start: Callable[..., Program], folder: Path, token_file: Path, reward_url: str
) -> None:
    output = folder / "scaled"
    flags = ("--num_eval_prompts", "0", "--judge_check", "false", "--reward_url", reward_url, "--replicas", "1")
    size = ("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--learning_rate", "1e-5")
    run = start(
        "trainer.main", *flags, *size, "--total_episodes", str(ENOUGH), "--output_dir", str(output), name="scaled"
    )
    run.wait_for("joined with version", times=1)
    assert "3 of the run's own" in scale(output, token_file, "3")
    run.wait_for("joined with version", times=3)
    wait_for_steps(run, output, SETTLED_STEPS)
    table = scale(output, token_file, "status")
    assert table.count("http://") == 3 and "3 of the run's own" in table
    assert "2 of the run's own" in scale(output, token_file, "-1")
    run.wait_for(" left; epoch")
    wait_for_steps(run, output, SETTLED_STEPS)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(60) == 130, run.text()[-3000:]

    logged = scalars(output)
    sizes = [int(size) for size in logged["fleet/replicas"]]
    assert [size for size, before in zip(sizes, [0, *sizes[:-1]], strict=True) if size != before] in (
        [1, 3, 2],
        [1, 2, 3, 2],
    )
    assert len(sizes) == len(logged["sample/lag_max"]) and max(logged["sample/lag_max"]) <= 1
    assert logged["fleet/losses"][-1] == 0 and logged["fleet/joins"][-1] == 3 and logged["fleet/leaves"][-1] == 1
    assert not (output / "fleet_url").exists()

    # Every completion that was trained on has a version that the run had made by then, and each of the three wrote.
    steps = [json.loads(line) for line in (output / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, len(sizes) + 1))
    for step in steps:
        written = [PolicyVersion.parse(label) for label in step["versions"]]
        assert written and all(step["step"] - 2 <= version.step < step["step"] for version in written)
    prompts = [prompt for step in steps for prompt in step["prompts"]]
    assert len(prompts) == len(set(prompts))
    assert len({replica for step in steps for replica in step["completions_by_replica"]}) == 3
