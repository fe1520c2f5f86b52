"""The learner is killed with -9 again and again, and its run ends in the same weights, bit for bit.

    python -m tests.chaos.learner_kills --kills 20 --seed 1

A reward service and two replicas run throughout. A deterministic toy run is done uninterrupted, once over one replica
and once over two. Then it is done with its learner process killed at random moments of its life, every third one forced
into the writing of a checkpoint, and resumed each time from the latest checkpoint (afresh where there is none yet),
until it has all its steps; again from the start until there were enough kills. Ends with one JSON line; exit code 1 on
any failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil
from safetensors.numpy import load_file

from tests.e2e.conftest import START_S, Program
from trainer.supervisor import processes_of
from wire.process import free_port
from wire.token import read_or_create_token

COMPLETIONS_PER_STEP = 16
NUM_STEPS = 6
IN_SAVE_EVERY = 3  # kills
LIFE_S = 600.0  # a life that takes longer hangs
POLL_S = 0.002  # the toy's checkpoint is written in some tens of milliseconds
RESUMED = re.compile(r"resumed from \S+: step (\d+)")

Weights = dict[str, bytes]


class Broken(Exception):
    """The run did not come through as it must; the message says how."""


@dataclass
class Report:
    """What was done: `kills`, of which `in_save`, in so many `runs`; `ending_s`: longest time to end after one."""

    kills: int = 0
    in_save: int = 0
    resumes: int = 0
    fresh_starts: int = 0
    runs: int = 0
    seed: int = 0
    equal: bool = False
    ending_s: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Lifetime:
    """Seconds from the learner's appearance until it is ready, and from there to the end of the run."""

    load_s: float
    work_s: float


@dataclass(frozen=True)
class Ground:
    """What survives the kills: where outputs lie, the services, and the token to them."""

    folder: Path
    token_file: Path
    reward_url: str
    rollout_urls: tuple[str, ...]

    @contextmanager
    def life(self, name: str, *, num_replicas: int, resume: bool) -> Iterator[Program]:
        """A life of run `name`, ended with the block at the latest."""
        output = self.folder / name
        output.mkdir(exist_ok=True)
        flags = ["--deterministic", "true", "--max_lag", "0", "--num_eval_prompts", "0", "--judge_check", "false"]
        flags += ["--total_episodes", str(NUM_STEPS * COMPLETIONS_PER_STEP), "--save_steps", "1"]
        flags += ["--per_device_train_batch_size", str(COMPLETIONS_PER_STEP), "--gradient_accumulation_steps", "1"]
        flags += ["--reward_url", self.reward_url, "--token_file", str(self.token_file), "--output_dir", str(output)]
        flags += ["--replicas", "0", "--rollout_urls", *self.rollout_urls[:num_replicas]]
        flags += ["--resume_from_checkpoint", "latest"] if resume else []
        program = Program("trainer.main", *flags, output=self.folder / f"{name}.out")
        try:
            yield program
        finally:
            if program.process.poll() is None:
                program.stop()

    def weights(self, name: str) -> Weights:
        """The final policy of run `name`, as bits."""
        tensors = load_file(self.folder / name / "policy" / "model.safetensors")
        return {key: tensor.tobytes() for key, tensor in tensors.items()}


@contextmanager
def standing_ground(folder: Path, num_replicas: int) -> Iterator[Ground]:
    """The services, started by hand and ended with the block."""
    token_file = folder / "token"
    read_or_create_token(token_file)
    reward_port, *ports = (free_port("127.0.0.1") for _ in range(1 + num_replicas))
    common = ("--deterministic", "true", "--token_file", str(token_file), "--log_dir", str(folder / "logs"))
    replicas = ("--replicas", str(num_replicas), "--rollout_ports", *map(str, ports))
    reward = Program(
        "reward_server.main", *common, "--reward_port", str(reward_port), output=folder / "reward_service.out"
    )
    rollout = Program("rollout_server.main", *common, *replicas, output=folder / "replicas.out")
    try:
        reward.wait_for("reward service http")
        for port in ports:
            rollout.wait_for(f"http://127.0.0.1:{port}")
        urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        yield Ground(folder, token_file, f"http://127.0.0.1:{reward_port}", urls)
    finally:
        rollout.stop()
        reward.stop()


def learner_process(life: Program) -> int | None:
    """The process id of the learner's only rank, once it is there."""
    try:
        children = psutil.Process(life.process.pid).children()
        run_ids = [child.cmdline()[-1] for child in children if "trainer.supervisor" in child.cmdline()]
        for pid in (pid for run_id in run_ids for pid in processes_of(run_id)):
            if psutil.Process(pid).cmdline()[0].startswith("ray::PlacedRank"):
                return pid
    except (psutil.Error, IndexError):  # one that was just ending
        pass
    return None


def wait_for_learner(life: Program) -> int:
    """Raises Broken where the life ends before it has one."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and life.process.poll() is None:
        pid = learner_process(life)
        if pid is not None:
            return pid
        time.sleep(0.1)
    raise Broken(f"no learner within {START_S:.0f} s; the last words: {life.text()[-2000:]}")


def end_of(life: Program) -> int:
    """Its exit code. Raises Broken where it does not end."""
    try:
        return life.process.wait(LIFE_S)
    except subprocess.TimeoutExpired:
        raise Broken(f"a life did not end within {LIFE_S:.0f} s: {life.text()[-2000:]}") from None


def whole_steps(output: Path) -> list[int]:
    """Steps of the checkpoints that a run may be resumed from, each with all its parts."""
    steps = []
    for path in output.glob("checkpoint-*"):
        parts = {part.name for part in (path / "learner").glob("*.pt")}
        state = json.loads((path / "state.json").read_text())
        if not any("model_states" in name for name in parts) or not any("optim_states" in name for name in parts):
            raise Broken(f"{path} lacks a part: {sorted(parts)}")
        steps.append(int(state["step"]))
    return sorted(steps)


@dataclass
class Killing:
    """Lives of runs, ended by force.

    Args:
        ground: the services.
        report: takes note.
        draw: places the kills.
        lifetime: of an uninterrupted run's learner; the moments are drawn from as much of it as lies before a life.
    """

    ground: Ground
    report: Report
    draw: random.Random
    lifetime: Lifetime

    def run(self, name: str, kills: int) -> None:
        """A run from its first step to its last, with at most so many kills on the way."""
        self.report.runs += 1
        output, killed_before = self.ground.folder / name, self.report.kills
        while True:
            steps = whole_steps(output) if output.exists() else []
            num_replicas = self.draw.randint(1, len(self.ground.rollout_urls))
            with self.ground.life(name, num_replicas=num_replicas, resume=bool(steps)) as life:
                if self.report.kills - killed_before < kills:
                    self._kill(life, output, NUM_STEPS - (steps[-1] if steps else 0))
                code = end_of(life)
            self._check_start(life, code, steps[-1] if steps else None)
            if code == 0:
                break
            if code != 1 or "error: " not in life.text():
                raise Broken(f"a life ended with exit code {code}: {life.text()[-2000:]}")
            self.report.resumes += bool(whole_steps(output))
            self.report.fresh_starts += not whole_steps(output)
        if leftovers := [path.name for path in output.glob(".checkpoint-*")]:
            raise Broken(f"{leftovers} were left in {output}")

    def _kill(self, life: Program, output: Path, steps_left: int) -> None:
        pid = wait_for_learner(life)
        in_save = self.report.kills % IN_SAVE_EVERY == 0
        work_s = self.lifetime.work_s * steps_left / NUM_STEPS
        moment = time.monotonic() + self.draw.uniform(0, self.lifetime.load_s + work_s)
        to_skip = self.draw.randrange(max(1, steps_left // 2))
        seen: set[str] = set()
        while life.process.poll() is None:
            writing = {path.name for path in output.glob(".checkpoint-*.partial")}
            seen |= writing
            due = (writing and len(seen) > to_skip) if in_save else time.monotonic() > moment
            if due:
                break
            time.sleep(POLL_S)
        if life.process.poll() is not None or not psutil.pid_exists(pid):
            return
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        self.report.kills += 1
        self.report.in_save += bool(writing)
        end_of(life)
        self.report.ending_s = max(self.report.ending_s, round(time.monotonic() - killed, 1))
        say(f"kill {self.report.kills}{' in a save' if writing else ''}; checkpoints {whole_steps(output)}")

    @staticmethod
    def _check_start(life: Program, code: int, step: int | None) -> None:
        """A life that came so far went on from the newest checkpoint; one without a checkpoint began at the start."""
        found = RESUMED.search(life.text())
        came_so_far = found is not None or code == 0
        if came_so_far and (int(found[1]) if found else None) != step:
            raise Broken(f"went on from {found[1] if found else 'the start'} where the newest checkpoint was {step}")


def uninterrupted(ground: Ground, name: str, *, num_replicas: int) -> tuple[Weights, Lifetime]:
    """The final weights, and how long the learner lived."""
    with ground.life(name, num_replicas=num_replicas, resume=False) as life:
        wait_for_learner(life)
        started = time.monotonic()
        life.wait_for("ready: learner")
        ready = time.monotonic()
        if code := end_of(life):
            raise Broken(f"the uninterrupted run ended with exit code {code}: {life.text()[-2000:]}")
    return ground.weights(name), Lifetime(ready - started, time.monotonic() - ready)


def differences(one: Weights, other: Weights) -> list[str]:
    """Names of the tensors that differ in a bit, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def compare(report: Report, expected: Weights, ground: Ground, name: str) -> None:
    """Raises Broken where a run's final weights are not the expected ones."""
    if found := differences(expected, ground.weights(name)):
        raise Broken(f"the weights of {name} differ from the uninterrupted run's: {', '.join(found)}")
    report.equal = True


def assault(ground: Ground, report: Report, kills: int) -> None:
    """The whole of it; see the module and `Killing`. Raises Broken."""
    expected, lifetime = uninterrupted(ground, "uninterrupted", num_replicas=1)
    if len(ground.rollout_urls) > 1:
        _, lifetime = uninterrupted(ground, "more-replicas", num_replicas=len(ground.rollout_urls))
        compare(report, expected, ground, "more-replicas")
        say(f"equal over {len(ground.rollout_urls)} replicas")
    say(f"a learner loads for {lifetime.load_s:.1f} s and works for {lifetime.work_s:.1f} s")
    killing = Killing(ground, report, random.Random(report.seed), lifetime)
    while report.kills < kills:
        report.equal = False
        name = f"killed-{report.runs}"
        killing.run(name, kills - report.kills)
        compare(report, expected, ground, name)
        say(f"{name}: equal")


def stop(_signum: int, _frame: FrameType | None) -> None:
    """A signal's handler: the services end, and what was done so far is reported."""
    raise Broken("stopped")


def say(line: str) -> None:
    """Progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the services, kill, print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    report, started = Report(seed=arguments.seed), time.monotonic()
    code = 0
    with tempfile.TemporaryDirectory(prefix="learner-kills-") as folder:
        try:
            with standing_ground(Path(folder), num_replicas=2) as ground:
                assault(ground, report, arguments.kills)
        except (Broken, AssertionError) as error:
            say(f"error: {error}")
            report.equal, code = False, 1
    report.seconds = round(time.monotonic() - started, 1)
    print(json.dumps(asdict(report)))
    return code


if __name__ == "__main__":
    sys.exit(main())
