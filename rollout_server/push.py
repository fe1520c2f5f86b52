"""One version, sent to so many members, however often it takes.

    pause (requests are kept) -> open the group, where the members are others -> send -> resume
         |                             |                                         |
         '--- a member failed: bury who is gone, ask the others, once more over those that live ---'

Weights that arrived in part are never served: the member's own gate is shut from the first call of a push until the
last, and what is known of its version is forgotten.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from rollout_server.control_routes import CallFailed, ControlRoutes, on_all
from rollout_server.membership import Membership, Replica, State, now_s
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.membership import Member, Outcome, TransferReport
from wire.waits import waiting

MAX_FRUITLESS = 3  # attempts that failed without anybody to blame for it
RESUME_TIMEOUT_S = 10.0

PAUSES = "pauses"
FINISHES = "finishes what it writes"
JOINS = "joins the transfer group"
LOADS = "loads weights"
RESUMES = "resumes"
IS_PROBED = "is asked whether it lives"


class Superseded(Exception):
    """The learner holds another version by now: the one that was to be sent is no more."""


class Fruitless(ServiceError):
    """The members live, and yet the version did not reach them, however often it was sent."""


class WeightSender(Protocol):
    """The learner as the fleet sees it."""

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        """Form the transfer group with the members; returns within `timeout_s`, whoever fails."""

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        """Send the weights of `version` to the group; returns within `timeout_s`, whoever fails.

        Raises:
            Superseded: the learner holds another version.
        """


class Push:
    """Sends versions to members.

    Args:
        membership: told who takes part, who is ready, who is lost.
        routes: the members' control routes.
        timeout_s: deadline of one attempt.
        probe_timeout_s: deadline for a member that failed to show that it lives.
        drain_timeout_s: deadline for requests to end before a push, where they are not kept.
        keep: whether requests in flight go on with the new weights.
    """

    def __init__(
        self,
        membership: Membership,
        routes: ControlRoutes,
        *,
        timeout_s: float,
        probe_timeout_s: float,
        drain_timeout_s: float,
        keep: bool,
    ) -> None:
        self._membership, self._routes, self._keep = membership, routes, keep
        self._timeout_s, self._probe_timeout_s, self._drain_timeout_s = timeout_s, probe_timeout_s, drain_timeout_s
        self._group: tuple[Member, ...] | None = None
        self.last = TransferReport({}, {})  # of the last push that was whole
        self.last_s = 0.0  # that push in all, seconds

    async def bring(
        self, sender: WeightSender, version: PolicyVersion, replicas: Sequence[Replica], timeout_s: float | None = None
    ) -> None:
        """Make `version` live on all of `replicas` that live through it. Attempts are repeated over the survivors.

        Raises:
            Fruitless: nothing can be sent though all members live.
            ServiceError: the learner failed.
            Superseded: as the sender does.
        """
        fruitless, started = 0, now_s()
        holders: set[Replica] = set()
        self._membership.hold(replicas)
        async with self._paused(holders, version) as paused:
            while members := [replica for replica in replicas if replica.state is State.SYNCING]:
                report = await self._attempt(sender, version, members, paused, timeout_s or self._timeout_s)
                if report.is_whole:
                    self.last, self.last_s = report, now_s() - started
                    holders.update(members)
                    return
                self._membership.counts["retries"] += 1
                self._group = None
                fruitless = 0 if await self._bury(members, report) else fruitless + 1
                if fruitless == MAX_FRUITLESS and self._part_with_the_first(members, report):
                    fruitless = 0
                if fruitless == MAX_FRUITLESS:
                    problems = "; ".join([*report.problems.values(), report.error])
                    raise Fruitless(f"version {version.label} reached nobody in {fruitless} attempts: {problems}")

    async def _attempt(
        self,
        sender: WeightSender,
        version: PolicyVersion,
        replicas: Sequence[Replica],
        paused: dict[Replica, float],
        timeout_s: float,
    ) -> TransferReport:
        """One try. Half-loaded weights are nobody's: no member's version is known until the try was whole."""
        # Joiners too: the driver before this one may have died in mid-push and left them paused; they are resumed here.
        to_pause = [replica for replica in replicas if replica not in paused]
        pause_s = min(timeout_s, self._probe_timeout_s) if self._keep else self._drain_timeout_s
        calls = [self._routes.pause(replica, pause_s, keep=self._keep) for replica in to_pause]
        started = now_s()
        with _each(to_pause, PAUSES if self._keep else FINISHES):
            failed = await on_all(to_pause, calls)
        paused |= {replica: started for replica in to_pause if replica.url not in failed}
        if failed:
            return _report_of(replicas, failed)
        end = now_s() + timeout_s
        members = tuple(replica.member for replica in replicas)
        if members != self._group:
            self._group = None
            with _each(replicas, JOINS):
                report = await sender.open_transfer(members, timeout_s)
            if not report.is_whole:
                return report
            self._group = members
        for replica in replicas:
            replica.version = None
        with _each(replicas, LOADS):
            return await sender.send_weights(version, secrets.token_hex(8), max(0.1, end - now_s()))

    @asynccontextmanager
    async def _paused(self, holders: set[Replica], version: PolicyVersion) -> AsyncIterator[dict[Replica, float]]:
        """Members that were paused, with the time; they resume with the block's end, also where it failed. Those of
        `holders` then hold `version`, and each is ready as soon as it resumed: no other waits for one that froze."""
        paused: dict[Replica, float] = {}
        try:
            yield paused
        finally:
            alive = [replica for replica in paused if replica.state is not State.LOST]
            calls = [
                self._resume(replica, paused[replica], version if replica in holders else None) for replica in alive
            ]
            await asyncio.shield(asyncio.gather(*calls))

    async def _resume(self, replica: Replica, paused: float, version: PolicyVersion | None) -> None:
        """Let it go on since `paused`, and admit it where it holds a version, or part with it."""
        try:
            with _each([replica], RESUMES):
                await self._routes.resume(replica, RESUME_TIMEOUT_S)
        except CallFailed as problem:
            # One whose weights are not whole refuses, and lives: it is brought up to date like one that came new.
            if version is not None or problem.outcome is not Outcome.FAILED:
                self._membership.lose(replica, str(problem))
        replica.last_pause_s = now_s() - paused
        replica.paused_s += replica.last_pause_s
        if version is not None:
            self._membership.admit(replica, version)

    def _part_with_the_first(self, replicas: Sequence[Replica], report: TransferReport) -> bool:
        """Part with the member that failed first, where there are others: it lives, and takes no weights."""
        culprit = next((replica for replica in replicas if replica.url == report.first), None)
        if culprit is None or len(replicas) == 1:
            return False
        self._membership.lose(culprit, f"it takes no weights: {report.problems.get(culprit.url, '')}")
        return True

    async def _bury(self, replicas: Sequence[Replica], report: TransferReport) -> int:
        """Part with the members that the attempt showed to be gone; returns how many.

        One that did not answer by the deadline is frozen: all others have given up earlier and said so. One that
        answered with an error lives if its engine still answers.
        """
        lost, to_ask = [], []
        for replica in replicas:
            outcome = report.outcomes.get(replica.url, Outcome.DONE)
            if outcome in (Outcome.GONE, Outcome.SILENT):
                lost.append((replica, report.problems.get(replica.url, outcome)))
            elif outcome is Outcome.FAILED:
                to_ask.append(replica)
        calls = [self._routes.probe(replica, self._probe_timeout_s) for replica in to_ask]
        with _each(to_ask, IS_PROBED):
            failed = await on_all(to_ask, calls)
        lost += [(replica, str(failed[replica.url])) for replica in to_ask if replica.url in failed]
        for replica, reason in lost:
            self._membership.lose(replica, reason)
        return len(lost)


@contextmanager
def _each(replicas: Sequence[Replica], reason: str) -> Iterator[None]:
    """The block waits for each of them."""
    with ExitStack() as waits:
        for replica in replicas:
            waits.enter_context(waiting(f"replica {replica.url}", reason))
        yield


def _report_of(replicas: Sequence[Replica], failed: dict[str, CallFailed]) -> TransferReport:
    outcomes = {replica.url: Outcome.DONE for replica in replicas}
    outcomes |= {url: error.outcome for url, error in failed.items()}
    return TransferReport(outcomes, {url: str(error) for url, error in failed.items()})
