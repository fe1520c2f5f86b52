"""What a stock vLLM server loads from us, through the entry point `vllm.general_plugins`.

vLLM calls `register` in every process of a server, before it builds anything: in the API process, the engine and each
worker. It may be called more than once.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from typing import Any

from rollout_server.rendezvous import listen_on_named_host_only
from rollout_server.worker_answers import read_every_answer
from wire.leash import signal_at_parents_end

SPIN_S = 0.001


def register() -> None:
    """Register our weight-transfer engines, keep rendezvous sockets off the public interfaces, end engine and workers
    with the server, let a replica of several workers live through a failed update, and on a CPU wait without spinning.
    """
    from vllm.platforms import current_platform

    from rollout_server.transfer import register_worker_engines

    end_with_the_server()
    listen_on_named_host_only()
    read_every_answer()
    if current_platform.is_cpu():
        wait_without_spinning()
    register_worker_engines()


def end_with_the_server() -> None:
    """In a process that a server has started: end when that one ends, also where it is killed.

    vLLM's engine does not notice: it would wait for requests for ever, and hold its memory. Ray kills what an actor has
    started when it loses the actor's node or the actor, and only that: the server and not what is behind it.
    """
    server = multiprocessing.parent_process()
    if server is None:
        return
    signal_at_parents_end(signal.SIGKILL)
    if not server.is_alive():  # it ended before the signal was set
        os._exit(1)


def wait_without_spinning() -> None:
    """Let an engine's processes sleep while they wait for each other.

    vLLM polls its shared-memory queue for a second after each message, and then waits for a message that something was
    written. The polling suits a server with cores of its own; where replicas, judge and learner share a few, every idle
    server takes its share of a core from those that work. The message can be lost: its socket holds one, and drops what
    comes while that is on its way. vLLM then looks again after five seconds, in which the engine stands still; so a
    reader that does not spin must look again sooner.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    condition = shm_broadcast.SpinCondition
    if isinstance(condition.__dict__["__init__"], functools.partialmethod):
        return
    patient: Any = functools.partialmethod(condition.__init__, busy_loop_s=SPIN_S)
    condition.__init__ = patient  # type: ignore[method-assign]  # the constructor's callers give no time
    wait = condition.wait

    def wait_shortly(self: Any, timeout_ms: int | None = None) -> None:
        look_ms = longest_sleep_ms(time.monotonic() - self.last_read)
        wait(self, timeout_ms=look_ms if timeout_ms is None else min(timeout_ms, look_ms))

    condition.wait = wait_shortly  # type: ignore[method-assign]  # same arguments


def longest_sleep_ms(idle_s: float) -> int:
    """Milliseconds until a reader that has had nothing for `idle_s` seconds looks again: a tenth of what it has waited,
    so that a lost message costs a tenth more time, and an idle server wakes ten times a second."""
    return max(1, min(100, round(100 * idle_s)))
