"""Keeps a started server alive: starts it, starts it again when it ends, and gives up when that leads nowhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from wire.errors import ServiceError
from wire.process import ServerProcess

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
HEALTHY_AFTER_S = 120.0  # a server that lived this long did not die of its configuration
MAX_EARLY_DEATHS = 5


def deaths_in_a_row(before: int, lived_s: float) -> int:
    """How many early deaths there were one after the other, after one more: of a server that lived for `lived_s`."""
    return before + 1 if lived_s < HEALTHY_AFTER_S else 1


def pause_after(num_deaths: int) -> float:
    """Seconds until a server is started again after so many early deaths in a row: they double, up to a minute."""
    return min(FIRST_PAUSE_S * 2 ** (num_deaths - 1), LONGEST_PAUSE_S)


@dataclass
class Keeper:
    """Keeps one server alive. Times are of the monotonic clock, in seconds.

    `patience` is how often it may die before it has ever answered.
    """

    process: ServerProcess
    patience: int = MAX_EARLY_DEATHS
    started: float = 0.0
    restart_at: float = 0.0
    early_deaths: int = 0
    answers: bool = False  # since its last start
    ever_answered: bool = False

    def tend(self, now: float) -> bool:
        """Start the server, look whether it answers, or bury it, whichever is due; whether it just began to answer.

        Blocks for half a second at most, and longer only where a dead server's remains must be ended.

        Raises:
            ServiceError: it died early too often; the message carries its last words.
        """
        if self.process.is_alive():
            if not self.answers and self.process.is_healthy(timeout_s=0.5):
                self.answers = self.ever_answered = True
                return True
        elif self.started:
            self._bury(now)
        elif now >= self.restart_at:
            self.process.start()
            self.started = now
        return False

    def _bury(self, now: float) -> None:
        obituary = self.process.obituary()
        self.early_deaths = deaths_in_a_row(self.early_deaths, now - self.started)
        self.process.stop()  # its engine processes may have outlived it
        if self.early_deaths >= (MAX_EARLY_DEATHS if self.ever_answered else self.patience):
            times = f" It died {self.early_deaths} times in a row." if self.early_deaths > 1 else ""
            raise ServiceError(obituary + times)
        pause = pause_after(self.early_deaths)
        print(f"{obituary} Starting it again in {pause:.0f} s.", file=sys.stderr, flush=True)
        self.started, self.answers, self.restart_at = 0.0, False, now + pause
