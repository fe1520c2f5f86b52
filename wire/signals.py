"""What a program does on SIGINT and SIGTERM, kept while a library is started that has handlers of its own.

Ray's core installs one for SIGTERM that ends the process on the spot, with a trace and without the program's own end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_handlers() -> Iterator[None]:
    """After the block the handlers are those from before it, an event loop's included.

    Python installs handlers in the main thread only; elsewhere there are none to keep.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:  # None: it was not installed from Python
                signal.signal(signum, handler)
