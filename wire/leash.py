"""`python -m wire.leash PARENT COMMAND...`: become COMMAND, and end when the process PARENT ends, however it ends.

A server that is started by a program must not outlive it, not even where the program is killed. The kernel sends the
signal (prctl(2), PR_SET_PDEATHSIG), which an exec keeps. It counts the death of the *thread* that started the process:
start servers from a thread that lives as long as the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def signal_at_parents_end(sign: signal.Signals) -> None:
    """This process gets `sign` when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sign)


def main() -> None:
    """Set the signal, make sure that the parent still lives, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal_at_parents_end(signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the signal was set
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
