"""The run gives way to servers on its host's cores, as nice(1) deals out processor time: 0 for an equal share, 19 for
what nobody else wants.

Linux first divides a core among sessions, where it does so (sched(7), "The autogroup feature"), and then within a
session among its threads. Servers have sessions of their own: against them counts the driver's, which the ranks of an
embedded Ray share. Where there is no such feature, a thread's own niceness counts.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from wire.errors import ConfigError

HIGHEST = 19


def check_niceness(niceness: int) -> None:
    """Whether `learner_niceness` may be this; nobody may put a process before others.

    Raises:
        ConfigError: it lies outside 0 .. HIGHEST.
    """
    if not 0 <= niceness <= HIGHEST:
        raise ConfigError(
            f"learner_niceness ({niceness}) must be 0, an equal share of the cores, to {HIGHEST}, what is left over"
        )


def rank_gives_way(niceness: int) -> None:
    """All threads of this process give way at least so far, and what they start from now on. Not for the driver: the
    servers that it starts would inherit it."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)


def session_gives_way(niceness: int) -> None:
    """The session that this process leads gives way; one that another leads, such as a terminal's shell, is left as it
    is, for it lives on and an unprivileged user could not take it back."""
    if niceness and os.getsid(0) == os.getpid():
        with suppress(OSError):  # no such feature, a read-only /proc: the work is the same, only its pace is not
            Path("/proc/self/autogroup").write_text(str(niceness))
