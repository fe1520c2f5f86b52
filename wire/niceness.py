"""Who gives way where processes share a host's cores: processor time as nice(1) deals it out, 0 for an equal share and
19 for what nobody else wants.

Linux first divides a core among sessions, where it does so (sched(7), "The autogroup feature"), and then within a
session among its threads. A server, which has a session of its own, must give way in both; a thread's niceness alone
counts against its own session only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from wire.errors import ConfigError

LOWEST = 19


def check_niceness(name: str, niceness: int) -> None:
    """Raises ConfigError where the setting `name` is none; a process may not put itself before others."""
    if not 0 <= niceness <= LOWEST:
        raise ConfigError(f"{name} ({niceness}) must be 0, an equal share of the cores, to {LOWEST}, what is left over")


def threads_give_way(pid: int, niceness: int) -> None:
    """All threads of process `pid` give way at least so far, and what they start from now on."""
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)


def session_gives_way(pid: int, niceness: int) -> None:
    """The session that process `pid` leads gives way; one that another leads, such as a terminal's shell, is left as it
    is, for it lives on and an unprivileged user could not take it back. So are the servers' sessions, and what a host
    without the feature has."""
    with suppress(OSError):  # no such process or feature, a read-only /proc: the work is the same, only its pace is not
        if niceness and os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []
