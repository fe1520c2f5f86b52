"""A server on behalf of a driver that is elsewhere: started, asked after, ended, and ended too where no driver is left.

The placement modules make actors of it. Who asks gives the name of its life (`wire/claim.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from wire.claim import Claim, Held, Owner
from wire.errors import ServiceError
from wire.identity import Identity
from wire.process import ServerProcess

WATCH_S = 1.0


def leave() -> None:
    """End this process, an actor's: nobody is left who could ask for it."""
    os._exit(0)


class HostedServer:
    """A server and whose it is.

    Args:
        make: makes the server's process when it is to be started: the port is then free, and what is wrong here is told
            to who asked for the start.
        identity: what it is.
        index: its place among those of its kind.
        claim: whose it is.
        startup_timeout_s: deadline of its start.
        grace_s: time between SIGTERM and SIGKILL when it is ended.
        leave: called when the claim was over and the server is ended.
    """

    def __init__(
        self,
        make: Callable[[], ServerProcess],
        identity: Identity,
        index: int,
        claim: Claim,
        *,
        startup_timeout_s: float,
        grace_s: float = 10.0,
        leave: Callable[[], None] = leave,
    ) -> None:
        self._make, self._startup_timeout_s, self._grace_s = make, startup_timeout_s, grace_s
        self._identity, self._index, self._claim, self._leave = identity, index, claim, leave
        self._process: ServerProcess | None = None
        self._making = threading.Lock()
        threading.Thread(target=self._watch, name="claim", daemon=True).start()

    # --- whose it is

    def held(self) -> Held:
        """What it is, whose, and for how long yet."""
        claim, url = self._claim, self._process.url if self._process is not None else None
        return Held(self._identity, self._index, claim.owner, claim.silent_s, claim.ends_in_s, url)

    def take(self, owner: Owner, instead_of: str, is_dead: bool) -> bool:
        """As `Claim.take`."""
        return self._claim.take(owner, instead_of, is_dead=is_dead)

    def renew(self, life: str) -> None:
        """As `Claim.renew`."""
        self._claim.renew(life)

    def _watch(self) -> None:
        while not self._claim.end_if_over(is_in_use=self._process is not None):
            time.sleep(WATCH_S)
        self._end()
        self._leave()

    # --- the server; each call raises NotYours where the claim is another's

    def start(self, life: str) -> str:
        """Start the server, unless that was done, and wait until it answers. Returns its URL.

        Raises:
            ConfigError: this host cannot serve what the settings say.
            ServiceError: as `wait_healthy` does.
        """
        self._claim.renew(life)
        with self._making:
            if self._process is None:
                self._process = self._make()
                self._process.start()
        self._process.wait_healthy(self._startup_timeout_s)
        return self._process.url

    def check(self, life: str) -> None:
        """Raises ServiceError with the server's last words if it has ended."""
        self._claim.renew(life)
        if self._process is None:
            raise ServiceError("the server was not started")
        if not self._process.is_alive():
            raise ServiceError(self._process.obituary())

    def stop(self, life: str) -> None:
        """End the server."""
        self._claim.renew(life)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.stop(self._grace_s)
