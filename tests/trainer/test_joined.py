"""Servers named by URL, before a run: there or not, loaded or not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer import joined
from trainer.joined import is_ready, wait_until_ready
from wire.errors import ConfigError
from wire.process import free_port


@contextmanager
def server(status: Callable[[int], int]) -> Iterator[str]:
    """The URL of one whose n-th answer, from 0, to /health has that status."""
    asked = iter(range(10**6))

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status(next(asked)) if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "PROBE_INTERVAL_S", 0.01)


def test_what_loads_is_waited_for_and_named_once() -> None:
    said: list[str] = []
    with server(lambda n: 503 if n < 3 else 200) as loading, server(lambda n: 200) as loaded:
        wait_until_ready([loaded, loading], 10, said.append)
        assert is_ready(loading)
    assert said == [f"waiting for {loading}: still loading (HTTP 503 from /health), 0 s"]


def test_what_loads_for_too_long_is_given_up_by_name() -> None:
    with (
        server(lambda n: 503) as url,
        pytest.raises(ConfigError, match=rf"{url} is not ready after 0 s .* raise startup_timeout_s"),
    ):
        wait_until_ready([url], 0.1, lambda line: None)


def test_what_goes_while_it_is_waited_for_is_not_waited_for() -> None:
    with (
        server(lambda n: 503 if n < 2 else 404) as url,
        pytest.raises(ConfigError, match="HTTP 404; is this the"),
    ):
        wait_until_ready([url], 10, lambda line: None)


def test_who_is_not_there_is_refused_at_once() -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with pytest.raises(ConfigError, match=f"nobody answers at {url} .*; start the server or correct the URL"):
        is_ready(url)


def test_who_speaks_no_http_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"nobody answers at {url}"):
            is_ready(url)
        thread.join()


def greet(listener: socket.socket) -> None:
    """Answer one caller as a mail server would."""
    caller, _ = listener.accept()
    with caller:
        caller.recv(4096)
        caller.sendall(b"220 ready\r\n")
