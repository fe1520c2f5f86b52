"""A service's entry in the cluster's registry, from when it answers to its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from wire.errors import ServiceError
from wire.registry import ANNOUNCE_EVERY_S

STOP_TIMEOUT_S = 10.0


class Announcer:
    """Announces `url` again and again, on a thread of its own, and withdraws it at the end of the context.

    A registry that is away for a while is told of again: it may have started anew and know nobody.

    Args:
        announce: makes or refreshes the entry; raises ServiceError where the registry does not answer.
        withdraw: takes it back.
        every_s: seconds between two announcements.
    """

    def __init__(
        self, announce: Callable[[], None], withdraw: Callable[[], None], every_s: float = ANNOUNCE_EVERY_S
    ) -> None:
        self._announce, self._withdraw, self._every_s = announce, withdraw, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="announcer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(STOP_TIMEOUT_S)

    def _keep(self) -> None:
        was_heard = True
        while True:
            was_heard = self._try(self._announce, was_heard)
            if self._over.wait(self._every_s):
                break
        self._try(self._withdraw, was_heard)

    def _try(self, call: Callable[[], None], was_heard: bool) -> bool:
        try:
            call()
        except ServiceError as error:
            if was_heard:  # said once, not every time
                print(f"{error}; runs do not find this service until it does", file=sys.stderr, flush=True)
            return False
        return True
