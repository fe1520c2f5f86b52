"""What a stock vLLM server loads from us, through the entry point `vllm.general_plugins`.

vLLM calls `register` in every process of a server, before it builds anything: in the API process, the engine and each
worker. It may be called more than once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rollout_server.rendezvous import listen_on_named_host_only
from rollout_server.worker_answers import read_every_answer

SPIN_S = 0.001


def register() -> None:
    """Register our weight-transfer engines, keep rendezvous sockets off the public interfaces, let a push supersede one
    that broke off and a replica of several workers live through it, and on a CPU wait without spinning."""
    from vllm.platforms import current_platform

    from rollout_server.transfer import register_worker_engines

    listen_on_named_host_only()
    read_every_answer()
    if current_platform.is_cpu():
        wait_without_spinning()
    register_worker_engines()
    supersede_open_updates()


def wait_without_spinning() -> None:
    """Let an engine's processes sleep while they wait for each other.

    vLLM polls its shared-memory queue for a second after each message. That suits a server with cores of its own; where
    replicas, judge and learner share a few, every idle server takes its share of a core from those that work.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    condition = shm_broadcast.SpinCondition
    if not isinstance(condition.__dict__["__init__"], functools.partialmethod):
        patient: Any = functools.partialmethod(condition.__init__, busy_loop_s=SPIN_S)
        condition.__init__ = patient  # type: ignore[method-assign]  # the constructor's callers give no time


def supersede_open_updates() -> None:
    """Let a worker begin an update though the one before was never finished.

    vLLM refuses a start while an update is open, and closes it only where the update itself fails. A server that was
    frozen between a push's start and its weights, longer than the sender waits, would refuse every later push. The
    worker's class is known only once a worker is made, and importing it here would burden processes that have none.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    if isinstance(WorkerBase.__dict__["__init__"], functools.partialmethod):
        return

    def initialize(self: Any, make: Callable[..., None], *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        start = getattr(self, "_start_weight_update", None)
        if start is None:  # a worker that takes no weights
            return

        def supersede(*start_arguments: Any, **start_named: Any) -> None:
            if self._weight_update_active:
                self._weight_update_active = False
                self.weight_transfer_engine.reset_weight_update_target()
            start(*start_arguments, **start_named)

        self._start_weight_update = supersede

    patched: Any = functools.partialmethod(initialize, WorkerBase.__init__)
    WorkerBase.__init__ = patched  # type: ignore[method-assign]  # vLLM has no hook for it
