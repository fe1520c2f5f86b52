"""Says what has been waited for too long, and ends a run in which nothing moves.

**Reported** is each wait that lasts `warn_s`, and again whenever its age has doubled since it was last named: one line
with the whole chain that it is a link of. Waits of one reason share a line, which is written at most every `warn_s`.

**Ended** is the run after `stop_s` seconds without progress. Progress is a piece of work that ends: a completion, a
verdict, a pass or a step of the learner, a part of a push, a file. It is seen as the end of a wait for somebody who
works; waits for a group (which waits itself), for the fleet to have room, and for a service that turns its callers away
tell nothing. So a group that takes hours stops nobody while others come.

Three kinds of time do not count: while the driver waits for a start, for replicas to come, or for files to be written
(each has a deadline of its own, which may be longer); while nobody waits; and while this program itself stood still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from reward_server.asking import DOES_NOT_ANSWER, QUEUE_IS_FULL
from reward_server.client import HAS_NO_PLACE
from reward_server.fetch_wait import FETCHES
from rollout_server.fleet import DRIVER, FLEET, HAS_TOO_FEW
from rollout_server.started import STARTS
from trainer.chains import Chains, described
from trainer.checkpoint import SYNCS
from trainer.ranks import EXPORTS, LOADS, REASONS, SAVES
from trainer.services import PLACES_LEARNER
from wire.errors import ServiceError
from wire.waits import WAITS, Wait, Waits

INTERVAL_S = 1.0
NAMED = 3  # peers of other waits in the same line

IDLE = frozenset({QUEUE_IS_FULL, DOES_NOT_ANSWER, HAS_NO_PLACE})  # reasons of who does no work
WAITERS = ("group ", "held-out ", "evaluation ", FLEET)  # peers that wait themselves
# Of the driver's waits those with a deadline of their own that may be longer: starts, files, replicas that are away.
BOUNDED = frozenset({STARTS, FETCHES, PLACES_LEARNER, REASONS["setup"], LOADS, SAVES, SYNCS, EXPORTS, HAS_TOO_FEW})


class Watchdog:
    """Looks at the waits of a program; an asynchronous context manager while whose block it hears of progress.

    Args:
        waits: of the program.
        warn_s: age at which a wait is reported.
        stop_s: seconds without progress after which the run ends; 0: never.
        say: told of every wait that is too old.
    """

    def __init__(self, warn_s: float, stop_s: float, say: Callable[[str], None], waits: Waits = WAITS) -> None:
        self._waits, self._warn_s, self._stop_s, self._say = waits, warn_s, stop_s, say
        self._next_age: dict[Wait, float] = {}  # at which a wait is reported again
        self._said: dict[str, float] = {}  # when a line was last written, by reason
        self._has_moved = False
        self._looked: float | None = None
        self._hearing: AbstractContextManager[None] | None = None
        self.quiet_s = 0.0  # counted time since the last progress

    def __enter__(self) -> Self:
        self._hearing = self._waits.heard_by(self._hear)
        self._hearing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hearing is not None
        self._hearing.__exit__(kind, error, trace)

    async def watch(self) -> None:
        """Look every second; until cancelled.

        Raises:
            ServiceError: nothing has moved for `stop_s`; the message names who waits for whom.
        """
        with self:
            while True:
                self.look()
                await asyncio.sleep(INTERVAL_S)

    def look(self) -> None:
        """Report what is due, and raise as `watch` does."""
        now = asyncio.get_running_loop().time()
        waits = self._waits.current
        chains = Chains(waits)
        self._report(waits, chains, now)
        self._count(waits, now)
        if self._stop_s and self.quiet_s >= self._stop_s and waits:
            oldest = next((wait for wait in waits if wait.who == DRIVER), waits[0])
            raise ServiceError(
                f"nothing has moved for {self.quiet_s:.0f} s: {described(chains.through(oldest), now)}; where that is "
                f"how long it takes, raise stall_stop_s ({self._stop_s:g}), or set it to 0"
            )

    def _report(self, waits: Sequence[Wait], chains: Chains, now: float) -> None:
        self._next_age = {wait: self._next_age[wait] for wait in waits if wait in self._next_age}
        due: dict[str, list[Wait]] = {}
        for wait in waits:
            if now - wait.since < self._warn_s:
                break  # the others are younger
            if now - wait.since >= self._next_age.get(wait, self._warn_s):
                due.setdefault(wait.reason, []).append(wait)
        told: set[Wait] = set()
        for reason, group in due.items():
            if now - self._said.get(reason, float("-inf")) < self._warn_s:
                continue
            untold = [wait for wait in group if wait not in told]
            if untold:
                chain = chains.through(untold[0])
                told.update(chain)
                others = [wait for wait in untold[1:] if wait not in told]
                self._said[reason] = now
                self._say(f"waiting: {described(chain, now)}{_as_well(others)}")
            for wait in {*group, *told}:
                self._next_age[wait] = max(self._warn_s, 2 * (now - wait.since))

    def _hear(self, wait: Wait, end: float) -> None:
        if not wait.peer.startswith(WAITERS) and wait.reason not in IDLE:
            self._has_moved = True

    def _count(self, waits: Sequence[Wait], now: float) -> None:
        # A look that comes late says that this program was held up, not whom it waits for.
        passed_s = 0.0 if self._looked is None else min(now - self._looked, 2 * INTERVAL_S)
        self._looked = now
        if self._has_moved:
            self.quiet_s, self._has_moved = 0.0, False
        elif waits and not any(wait.who == DRIVER and wait.reason in BOUNDED for wait in waits):
            self.quiet_s += passed_s


def _as_well(others: Sequence[Wait]) -> str:
    """What stands behind a line that speaks of several waits."""
    if not others:
        return ""
    peers = list(dict.fromkeys(wait.peer for wait in others))
    named = ", ".join(peers[:NAMED]) + (", ..." if len(peers) > NAMED else "")
    return f"; as long for the same reason: {len(others)} more, for {named}"
