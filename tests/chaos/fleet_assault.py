"""Attacks on the replicas of a run, and what must hold meanwhile; see fleet_kills.py."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.fleet_ground import TRANSFER_TIMEOUT_S, Ground, Run, processes_at
from tests.chaos.fleet_weights import checksums_of
from tests.chaos.learner_kills import Broken, say
from tests.e2e.conftest import START_S

NUM_STEPS = 40  # of a run
LAST_STEPS = 3  # in which nobody is struck: a run must not end before what a strike did was seen
POLL_S = 0.005
WAYS = ("kill", "freeze", "freeze a while")
PARTS = ("api", "engine", "worker")


@dataclass(frozen=True)
class Strike:
    """An attack on one replica.

    `way` is one of WAYS, or a volley at all replicas; `part`, one of PARTS, is the process that is struck. `least`: so
    many replicas must be ready before. `in_transfer`: when the victim's gate says that weights are arriving; else after
    `wait_s` seconds. `victim`: a URL; None: drawn among those that are ready. `thaw_s`: seconds until what was frozen
    for a while goes on; None: as soon as the run has parted with it.
    """

    way: str
    part: str
    in_transfer: bool
    least: int = 2
    wait_s: float = 0.0
    victim: str | None = None
    thaw_s: float | None = None


@dataclass(frozen=True)
class Thaw:
    """A frozen process of the replica at `url`, and the monotonic time at which it goes on; see `Strike.thaw_s`."""

    process: psutil.Process
    url: str
    due: float | None


@dataclass
class Report:
    """What was done, and what was found. Times in seconds.

    `in_transfer`: strikes at a replica that was loading, by its own word, after which the run counted a transfer that
    had to be repeated. `recovery_beyond_deadline_max_s`: from such a strike until all other replicas of that transfer
    served the version, less the transfer's deadline. `lost_unharmed`: replicas that the run parted with though nobody
    had touched them. `groups`: trained on.
    """

    kills: int = 0
    in_transfer: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    steps: int = 0
    recovery_max_s: float = 0.0
    recovery_beyond_deadline_max_s: float = 0.0
    checksums_compared: int = 0
    groups: int = 0
    lost_groups: int = 0
    repeated_groups: int = 0
    lost_unharmed: int = 0
    seed: int = 0
    seconds: float = 0.0
    ok: bool = False


@dataclass
class Assault:
    """Strikes at the replicas of runs.

    Args:
        ground: the services.
        report: takes note.
        draw: places the strikes.
        own_replicas: that each run starts itself.
        revives: whether a standing replica that was ended is started again.
    """

    ground: Ground
    report: Report
    draw: random.Random
    own_replicas: int = 1
    revives: bool = True
    _thaws: list[Thaw] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)  # URLs of standing replicas that will not go on by themselves
    _touched: set[str] = field(default_factory=set)  # URLs that were struck and have not been seen whole since
    _expected: dict[Path, dict[str, str]] = field(default_factory=dict)
    _pending: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def run(self, name: str, strikes: Callable[[], Strike | None], *, steps: int = NUM_STEPS) -> None:
        """One run, struck until there are no more strikes, or its steps run out. Raises Broken."""
        self.report.runs += 1
        with self.ground.run(name, steps=steps, own_replicas=self.own_replicas) as run:
            while (strike := strikes()) is not None and self._wait_for_ready(run, strike.least):
                self._strike(run, strike)
            end = time.monotonic() + START_S + 10 * steps
            while not run.is_over:
                self._look(run)
                if time.monotonic() > end:
                    raise Broken(f"{name} does not end: {run.program.text()[-2000:]}")
                time.sleep(0.5)
            self._tend(run)
            if code := run.program.process.returncode:
                raise Broken(f"{name} ended with exit code {code}: {run.program.text()[-3000:]}")
            for url in self.ground.standing:
                self._compare(run, url)
            self._settle(run, is_over=True)
            self._count(run)

    # --- the strikes

    def _wait_for_ready(self, run: Run, least: int) -> bool:
        """Wait for a fleet that is worth a strike; whether there is one, with steps to go."""
        end = time.monotonic() + 2 * START_S
        while not run.is_over and time.monotonic() < end:
            if len(run.lines()) >= run.steps - LAST_STEPS:
                return False
            if len(run.ready()) >= least:
                return True
            self._look(run)
            time.sleep(0.2)
        if not run.is_over:
            raise Broken(f"fewer than {least} replicas ready for {2 * START_S:.0f} s: {run.program.text()[-2000:]}")
        return False

    def _strike(self, run: Run, strike: Strike) -> None:
        ready = run.ready()
        if strike.way == "volley":
            self._volley(run, ready)
            return
        victim = strike.victim or (self.draw.choice(ready) if ready else None)
        if victim is None:
            return
        processes, before = processes_at(victim), run.state()
        if processes is None or before is None or not self._await_moment(run, strike, victim):
            return  # it died of something else
        process, struck = processes[strike.part], time.monotonic()
        try:
            process.send_signal(signal.SIGKILL if strike.way == "kill" else signal.SIGSTOP)
        except psutil.NoSuchProcess:
            return
        state = run.state() or before
        self._touched.add(victim)
        self._note(f"{strike.way}, {strike.part}")
        if strike.way == "freeze a while":
            self._thaws.append(Thaw(process, victim, struck + strike.thaw_s if strike.thaw_s is not None else None))
        elif victim in self.ground.standing:
            self._ended.add(victim)
        took = self._watch_recovery(run, victim, state, struck)
        retried = _retries(run.state() or state) > _retries(before)
        if strike.in_transfer and retried:
            self.report.in_transfer += 1
            if took is not None:
                beyond = max(0.0, took - TRANSFER_TIMEOUT_S)
                self.report.recovery_max_s = round(max(self.report.recovery_max_s, took), 2)
                self.report.recovery_beyond_deadline_max_s = round(
                    max(self.report.recovery_beyond_deadline_max_s, beyond), 2
                )
        where = "in a transfer" if strike.in_transfer and retried else "outside of transfers"
        survived = "nobody else was in it" if took is None else f"the others serve after {took:.2f} s"
        say(f"{self.report.kills}: {strike.way}, {strike.part}: {where}, step {len(run.lines())}; {survived}")
        for url in run.ready():
            self._compare(run, url)

    def _volley(self, run: Run, ready: Sequence[str]) -> None:
        for url in ready:
            if processes := processes_at(url):
                processes["api"].kill()
                self._note("volley")
            if url in self.ground.standing:
                self._ended.add(url)
        say(f"{self.report.kills}: a volley at all {len(ready)} replicas, step {len(run.lines())}")

    def _note(self, kind: str) -> None:
        self.report.kills += 1
        self.report.by_kind[kind] = 1 + self.report.by_kind.get(kind, 0)

    def _await_moment(self, run: Run, strike: Strike, victim: str) -> bool:
        """Whether it came. Inside a transfer: the victim's gate says so at this very moment."""
        if not strike.in_transfer:
            end = time.monotonic() + strike.wait_s
            while time.monotonic() < end and not run.is_over:
                self._tend(run)
                time.sleep(POLL_S)
            return not run.is_over
        end = time.monotonic() + START_S
        while time.monotonic() < end and not run.is_over:
            gate = self.ground.replicas.gate(victim)
            if gate is None:
                return False
            if gate.weights == "loading":
                return True
            self._tend(run)
            time.sleep(POLL_S)
        return False

    def _watch_recovery(self, run: Run, victim: str, state: dict[str, Any], struck: float) -> float | None:
        """Seconds from the strike until the others of a transfer that is under way serve its version, or a later one.
        None where there are no others. Raises Broken where they do not."""
        version = _step(state["version"])
        waiting = {row["url"] for row in state["replicas"] if row["state"] == "syncing" and row["url"] != victim}
        if not waiting:
            return None
        end = struck + 10 * TRANSFER_TIMEOUT_S
        while time.monotonic() < end and not run.is_over:
            self._tend(run)
            now = {row["url"]: row for row in (run.state() or state)["replicas"]}
            for url in list(waiting):
                row = now.get(url)
                if row is None or row["state"] == "lost":
                    waiting.discard(url)
                    if url not in self._touched:
                        self.report.lost_unharmed += 1
                        say(f"{url} was lost though nobody touched it: {row and row['reason']}")
                elif row["state"] == "ready" and _step(row["version"]) >= version:
                    waiting.discard(url)
            if not waiting:
                return time.monotonic() - struck
            time.sleep(POLL_S)
        raise Broken(f"{waiting} did not come back to version {version}: {run.program.text()[-2000:]}")

    def _tend(self, run: Run) -> None:
        """Thaw whoever is due; start again the standing ones that the run has parted with."""
        if not self._ended and not self._thaws:
            return
        states = {row["url"]: row["state"] for row in (run.state() or {"replicas": []})["replicas"]}
        for thaw in list(self._thaws):
            is_lost = states.get(thaw.url, "lost") == "lost"
            if run.is_over or (is_lost if thaw.due is None else time.monotonic() > thaw.due):
                self._thaws.remove(thaw)
                with suppress(psutil.NoSuchProcess):
                    thaw.process.send_signal(signal.SIGCONT)
        for url in list(self._ended):
            if run.is_over or states.get(url, "lost") == "lost":
                self._ended.discard(url)
                if self.revives:
                    self.ground.revive(url)

    # --- what they serve

    def _look(self, run: Run) -> None:
        self._tend(run)
        if ready := run.ready():
            self._compare(run, self.draw.choice(ready))

    def _compare(self, run: Run, url: str) -> None:
        """Take down what the replica at `url` serves, if it serves; compare what the learner has written meanwhile."""
        found = self.ground.replicas.holds(url)
        if found is not None:
            self._touched.discard(url)
            self._pending.append((url, *found))
        self._settle(run)

    def _settle(self, run: Run, *, is_over: bool = False) -> None:
        rest = []
        for url, label, checksums in self._pending:
            folder = run.policy_of(label, self.ground.policy)
            if folder is None:
                rest.append((url, label, checksums))
                continue
            if folder not in self._expected:
                self._expected[folder] = checksums_of(folder)
            expected = self._expected[folder]
            wrong = [key for key in expected.keys() | checksums.keys() if expected.get(key) != checksums.get(key)]
            if wrong:
                raise Broken(f"{url} serves as version {label} what the learner never had: {', '.join(sorted(wrong))}")
            self.report.checksums_compared += 1
        self._pending = rest
        if rest and is_over:
            raise Broken(f"the learner never wrote versions {sorted({label for _, label, _ in rest})}")

    def _count(self, run: Run) -> None:
        """What the run trained on: each place of the prompt stream once, but those whose groups were dropped."""
        lines = run.lines()
        trained = [place for line in lines for place in line["prompts"]]
        if [line["step"] for line in lines] != list(range(1, run.steps + 1)):
            raise Broken(f"steps {[line['step'] for line in lines]} were taken, of {run.steps}")
        summary = json.loads((run.output / "summary.json").read_text())
        if summary["steps"] != run.steps:
            raise Broken(f"the summary tells of {summary['steps']} steps of {run.steps}")
        self.report.steps += run.steps
        self.report.groups += len(trained)
        self.report.repeated_groups += len(trained) - len(set(trained))
        self.report.lost_groups += max(trained) + 1 - len(set(trained)) - lines[-1]["dropped"]
        if self.report.repeated_groups or self.report.lost_groups:
            raise Broken(f"{self.report.lost_groups} groups lost, {self.report.repeated_groups} trained on twice")


def _retries(state: dict[str, Any]) -> int:
    return int(state["counts"].get("retries", 0))


def _step(label: str | None) -> int:
    return int((label or "0.-1").partition(".")[2])
