"""Attacks on the replicas of a run, and what must hold meanwhile; see fleet_kills.py."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.chaos.fleet_ground import PROBE_TIMEOUT_S, TRANSFER_TIMEOUT_S, Gate, Ground, Run, processes_at
from tests.chaos.fleet_witness import Report, Witness
from tests.chaos.learner_kills import Broken, say
from tests.e2e.conftest import START_S

NUM_STEPS = 30  # of a run
LAST_STEPS = 3  # in which nobody is struck: a run must not end before what a strike did was seen
POLL_S = 0.005
WAYS = ("kill", "freeze", "freeze a while")
PARTS = ("api", "engine")


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
            self._witness.settle(run, is_over=True)
            self._witness.count(run)

    def __post_init__(self) -> None:
        self._witness = Witness(self.ground, self.report)

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
        if processes is None or before is None:
            return  # it died of something else
        gate = self._await_moment(run, strike, victim)
        if gate is None:
            return
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
        was_inside = strike.in_transfer and self.ground.replicas.gate(victim, timeout_s=0.3) == gate
        took = self._watch_recovery(run, victim, state, struck)
        has_broken = self._await_retry(run, _retries(before), strike.in_transfer and not was_inside)
        self.report.in_transfer += was_inside or (strike.in_transfer and has_broken)
        if has_broken and took is not None:
            self.report.note_recovery(took, TRANSFER_TIMEOUT_S)
        where = "in a transfer" if was_inside or has_broken else "outside of transfers"
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

    def _await_moment(self, run: Run, strike: Strike, victim: str) -> Gate | None:
        """What the victim's gate says when the moment is there; inside a transfer: that weights are arriving. None
        where it does not come."""
        end = time.monotonic() + (START_S if strike.in_transfer else strike.wait_s)
        while not run.is_over:
            gate = self.ground.replicas.gate(victim)
            is_due = gate is None or gate.weights == "loading" if strike.in_transfer else time.monotonic() > end
            if is_due or time.monotonic() > end:
                return gate
            self._tend(run)
            time.sleep(POLL_S)
        return None

    def _await_retry(self, run: Run, before: int, is_due: bool) -> bool:
        """Whether the run has repeated a transfer since it had repeated `before`; waited for where one is due."""
        end = time.monotonic() + TRANSFER_TIMEOUT_S + PROBE_TIMEOUT_S
        while True:
            state = run.state()
            if state is not None and _retries(state) > before:
                return True
            if not is_due or run.is_over or time.monotonic() > end:
                return False
            self._tend(run)
            time.sleep(POLL_S)

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

    def _compare(self, run: Run, url: str) -> None:
        if self._witness.compare(run, url):
            self._touched.discard(url)

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

    def _look(self, run: Run) -> None:
        self._tend(run)
        if ready := run.ready():
            self._compare(run, self.draw.choice(ready))


def _retries(state: dict[str, Any]) -> int:
    return int(state["counts"].get("retries", 0))


def _step(label: str | None) -> int:
    return int((label or "0.-1").partition(".")[2])
