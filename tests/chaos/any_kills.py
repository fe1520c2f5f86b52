"""Any one process of a run is killed with -9, again and again, and nothing that was paid for is paid for twice.

    python -m tests.chaos.any_kills --kills 50 --seed 1

Toy runs, at random moments of which one process gets SIGKILL: the driver, a learner rank, Ray's raylet or its GCS, a
replica's server or its engine, the reward service, a GenRM server or its engine. Some runs are deterministic with
max_lag 0, some are not and have max_lag 1; most join two standing replicas and a standing reward service, which are
started again when they were killed, and some start all of it themselves. Where a run ends of it, it is started again
with `--resume_from_checkpoint latest`; where it lives on it must get to its last step. At each kill and at each end:

- the ledger's surviving lineage is whole (`trainer.ledger_check`);
- at most one step of the learner's work is to be repeated, with save_steps 1;
- completions and verdicts that were in the ledger at the kill were not asked for again, but for completions of weights
  that are no ancestors or are too old, which are counted;
- nothing that a run started outlives its driver;
- a deterministic run ends in the weights of an undisturbed one over a single replica, bit for bit.

Ends with one JSON line; exit code 1 on any failure.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.chaos.any_ground import (
    DRIVER,
    ENDING_S,
    ENDS_A_RUN,
    KINDS,
    LEARNER,
    PROMPTS_PER_STEP,
    REWARD,
    Ground,
    Layout,
    Life,
    standing_ground,
)
from tests.chaos.learner_kills import POLL_S, Broken, Weights, differences, end_of, say, stop
from tests.chaos.paid_work import Accounts, Paid, read_paid, states_of
from tests.e2e.conftest import START_S

NUM_STEPS = 16
KILLS_A_RUN = 8
MOST_IDLE = 3  # lives: one may begin over a server that was struck just before, and does not know it yet
STARTS_ALL_EVERY = 5  # runs
WHEN = ("time", "save", "step", "step", "step")  # drawn from


@dataclass(frozen=True)
class Strike:
    """A kill. `kind` is one of KINDS; `when`: `time`, so many seconds after the last kill or the life's start; `save`,
    while a checkpoint is written; `step`, so many seconds after so many more `steps` are written down."""

    kind: str
    when: str
    seconds: float = 0.0
    steps: int = 0


@dataclass
class Report:
    """What was done, and what was found.

    `repeated_steps`: of the learner, over all kills, `repeated_most` after one; `ending_s`: longest time until nothing
    was left of a life, from its driver's end; `in_start`: kills before a life had all its parts;
    `discarded_completions`: of weights that were no ancestors any more, or too old; `reused_*`: found in the ledger by
    a later life and trained on in it without being asked for again;
    `groups`: trained on in the surviving lineages; `ends`: of lives, by what their exit code was.
    """

    kills: int = 0
    kills_by_kind: dict[str, int] = field(default_factory=dict)
    in_save: int = 0
    in_start: int = 0
    runs: int = 0
    deterministic_runs: int = 0
    lives: int = 0
    steps: int = 0
    groups: int = 0
    dropped: int = 0
    repeated_steps: int = 0
    repeated_most: int = 0
    reused_completions: int = 0
    discarded_completions: int = 0
    reused_verdicts: int = 0
    ledger_checks: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    ending_s: float = 0.0
    seed: int = 0
    seconds: float = 0.0
    ok: bool = False


@dataclass
class Assault:
    """Runs under attack.

    Args:
        ground: the services.
        report: takes note.
        expected: the weights of an undisturbed deterministic run.
        next_strike: draws the next kill of a run, given the number of lives it had; None: no more.
    """

    ground: Ground
    report: Report
    expected: Weights
    next_strike: Callable[[], Strike | None]

    def run(self, name: str, layout: Layout) -> None:
        """A run from its first step to its last, whatever is killed on the way. Raises Broken."""
        output = self.ground.folder / name
        accounts = Accounts(output, layout.max_lag, PROMPTS_PER_STEP)
        self.report.runs += 1
        self.report.deterministic_runs += layout.deterministic
        lives, idle, is_done = 0, 0, False
        while not is_done:
            self.ground.wait_until_ready()
            start = accounts.begin()
            # Also before the first checkpoint: the ledger is there. A run that died before its ledger begins afresh.
            resume = bool(states_of(output)) or read_paid(output) is not None
            say(f"{name}, life {lives}: from step {start.step}{'' if resume else ', afresh'}")
            with self.ground.life(name, layout, resume=resume) as life:
                kills_before = self.report.kills
                self._attack(life, layout, accounts, output)
                code = self._until_the_end(life)
            is_done = self._bury(life, code, accounts, output, layout)
            idle = 0 if self.report.kills > kills_before else idle + 1
            if idle == MOST_IDLE and not is_done:
                raise Broken(f"{idle} lives ended though nobody was killed in them: {life.program.text()[-2000:]}")
            lives += 1
            self.report.lives += 1
        self._settle(name, layout, accounts)

    def _attack(self, life: Life, layout: Layout, accounts: Accounts, output: Path) -> None:
        """Strike until there is nobody to strike any more."""
        while not life.is_over and (strike := self.next_strike()) is not None:
            if not self._await_moment(life, strike, layout, output):
                return
            victims = self.ground.victims(life).get(strike.kind, [])
            if not victims:
                continue  # it is just being started again
            victim = victims[self.report.kills % len(victims)]
            children = _children(victim) if strike.kind == REWARD else []
            in_save, is_up = life.saves(output), life.is_up
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            self.report.kills += 1
            self.report.kills_by_kind[strike.kind] = 1 + self.report.kills_by_kind.get(strike.kind, 0)
            self.report.in_save += in_save
            self.report.in_start += not is_up
            if strike.kind == DRIVER:
                life.program.process.wait(10.0)  # so that the ledger is what it is at the kill
            _, left = psutil.wait_procs(children, ENDING_S)
            if left:
                raise Broken(f"{left} outlived their reward service by {ENDING_S:.0f} s")
            found = accounts.look()
            where = "in a save" if in_save else "at work" if is_up else "while it starts"
            say(f"kill {self.report.kills}: {strike.kind} {where}, step {found.last_step if found else 0}")
            if strike.kind in ENDS_A_RUN:
                return

    def _await_moment(self, life: Life, strike: Strike, layout: Layout, output: Path) -> bool:
        """Whether the moment came before the life was over. Raises Broken where it does neither."""
        began = time.monotonic()
        found = read_paid(output)
        goal = min((found.last_step if found else 0) + strike.steps, layout.num_steps - 1)
        due = began + strike.seconds if strike.when == "time" else None
        while not life.is_over:
            self.ground.mend()
            life.mark()
            if strike.when == "save":
                is_due = life.saves(output)
            elif due is None:
                found = read_paid(output)
                if found is not None and found.last_step >= goal and life.is_up:
                    due = time.monotonic() + strike.seconds
                is_due = False
            else:
                is_due = time.monotonic() > due
            if is_due and life.mark():
                return True
            if time.monotonic() > began + 2 * START_S:
                raise Broken(f"no {strike.when} {goal} within {2 * START_S:.0f} s: {life.program.text()[-2000:]}")
            time.sleep(POLL_S if strike.when == "save" else 0.05)
        return False

    def _until_the_end(self, life: Life) -> int:
        """The exit code. Raises Broken where the life neither ends nor gets on: each step is given START_S."""
        steps, seen_at = 0, time.monotonic()
        while not life.is_over:
            self.ground.mend()
            life.mark()
            now = life.program.text().count("step ")
            if now != steps:
                steps, seen_at = now, time.monotonic()
            if time.monotonic() > seen_at + START_S:
                raise Broken(f"a life gets nowhere for {START_S:.0f} s: {life.program.text()[-2000:]}")
            time.sleep(0.2)
        return end_of(life.program)

    def _bury(self, life: Life, code: int, accounts: Accounts, output: Path, layout: Layout) -> bool:
        """Look at what a life has left; whether its run is done."""
        ended = time.monotonic()
        life.wait_until_nothing_is_left()
        self.report.ending_s = max(self.report.ending_s, round(time.monotonic() - ended, 1))
        text = life.program.text()
        found = accounts.end()
        word = text[text.rindex("error: ") :].partition("\n")[0][:200] if "error: " in text else "no word"
        end = "done" if code == 0 else f"exit code {code}"
        self.report.ends[end] = 1 + self.report.ends.get(end, 0)
        say(f"a life ended: {end}{'' if code == 0 else f', {word}'}")
        if code == 0:
            if found is None or found.last_step != layout.num_steps:
                raise Broken(f"a run ended well after step {found and found.last_step} of {layout.num_steps}")
            return True
        if code == 2:
            raise Broken(f"a life did not begin: {text[-1000:]}")
        self._count_repeats(found, output)
        return False

    def _count_repeats(self, found: Paid | None, output: Path) -> None:
        saved = [state["step"] for state in states_of(output)]
        repeated = (found.last_step if found else 0) - (saved[-1] if saved else 0)
        if repeated > 1:
            raise Broken(f"{repeated} steps are to be repeated after one kill: {saved} were saved")
        self.report.repeated_steps += repeated
        self.report.repeated_most = max(self.report.repeated_most, repeated)

    def _settle(self, name: str, layout: Layout, accounts: Accounts) -> None:
        paid = read_paid(accounts.output)
        assert paid is not None
        if leftovers := [path.name for path in accounts.output.glob(".checkpoint-*")]:
            raise Broken(f"{leftovers} were left in {accounts.output}")
        self.report.steps += paid.last_step
        self.report.groups += sum(map(len, paid.trained.values()))
        self.report.dropped += paid.num_dropped
        self.report.reused_completions += accounts.reused_completions
        self.report.discarded_completions += accounts.discarded
        self.report.reused_verdicts += accounts.reused_verdicts
        self.report.ledger_checks += accounts.num_checks
        if layout.deterministic and (found := differences(self.expected, self.ground.weights(name))):
            raise Broken(f"the weights of {name} differ from the undisturbed run's: {', '.join(found)}")
        say(f"{name}: {paid.last_step} steps{', equal to the undisturbed' if layout.deterministic else ''}")


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        found: list[psutil.Process] = process.children(recursive=True)
        return found
    return []


def undisturbed(ground: Ground, num_steps: int) -> Weights:
    """The final weights of a deterministic run over one replica. Raises Broken."""
    layout = Layout(deterministic=True, num_steps=num_steps, num_replicas=1)
    with ground.life("undisturbed", layout, resume=False) as life:
        if code := end_of(life.program):
            raise Broken(f"the undisturbed run ended with exit code {code}: {life.program.text()[-2000:]}")
    return ground.weights("undisturbed")


def drawn_strikes(report: Report, draw: random.Random, kills: int) -> Callable[[], Strike | None]:
    """Draws strikes until there were `kills`; all kinds come in turn, in a drawn order."""
    turn: list[str] = []

    def next_strike() -> Strike | None:
        if report.kills >= kills:
            return None
        if not turn:
            turn.extend(draw.sample(KINDS, len(KINDS)))
        kind = turn.pop()
        when = draw.choice(WHEN)
        if when == "save" and kind not in (DRIVER, LEARNER):
            when = "step"
        seconds = draw.uniform(0.0, 20.0 if when == "time" else 2.0)
        return Strike(kind, when, seconds, draw.randrange(3))

    return next_strike


def limited(report: Report, next_strike: Callable[[], Strike | None], most: int) -> Callable[[], Strike | None]:
    """The same, until there were so many more kills."""
    last = report.kills + most
    return lambda: next_strike() if report.kills < last else None


def main(argv: Sequence[str] | None = None) -> int:
    """Start the services, kill, print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty one, to keep all that is written")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    report, started, draw = Report(seed=arguments.seed), time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="any-kills-") as temporary:
        folder = arguments.folder or temporary
        try:
            with standing_ground(Path(folder)) as ground:
                expected = undisturbed(ground, NUM_STEPS)
                say(f"the undisturbed run is done after {time.monotonic() - started:.0f} s")
                strikes = drawn_strikes(report, draw, arguments.kills)
                while report.kills < arguments.kills:
                    starts_all = report.runs % STARTS_ALL_EVERY == STARTS_ALL_EVERY - 1
                    layout = Layout(report.runs % 2 == 0, NUM_STEPS, starts_all, num_replicas=1 if starts_all else 2)
                    assault = Assault(ground, report, expected, limited(report, strikes, KILLS_A_RUN))
                    assault.run(f"run-{report.runs}", layout)
            report.ok = True
        except (Broken, AssertionError) as error:
            say(f"error: {error}")
    report.kills_by_kind = dict(Counter(report.kills_by_kind).most_common())
    report.seconds = round(time.monotonic() - started, 1)
    print(json.dumps(asdict(report)))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
