"""A served process from its start to its end; the server is a small HTTP one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from wire.errors import ServiceError
from wire.process import ServerProcess, free_port

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]) if self.path == "/health" else 404); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STRANGER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    while True:
        caller, _ = listening.accept()
        caller.sendall(bytes(9)); caller.close()
"""  # speaks another language than HTTP/1, as a gRPC server does
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
LEADER_OF_A_DEAF_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "{DEAF} time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[3], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Makes a process of Python code; the code's arguments are a port, a status and a path."""
    made: list[ServerProcess] = []

    def make(code: str = SERVER, status: int = 200, advice: str = "") -> ServerProcess:
        port = free_port("127.0.0.1")
        command = [sys.executable, "-c", code, str(port), str(status), str(tmp_path / "pid")]
        log = tmp_path / "logs" / "replica-0.log"
        made.append(
            ServerProcess("replica-0", command, dict(os.environ), log, f"http://127.0.0.1:{port}", memory_advice=advice)
        )
        return made[-1]

    yield make
    for process in made:
        process.stop(grace_s=0.2)


def is_gone(pid: int) -> bool:
    """Ended; whoever inherited it may not have asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_server_is_healthy_once_it_answers_200_and_dead_after_stop(server) -> None:
    process = server()
    assert process.pid is None and not process.is_alive() and not process.is_healthy()
    process.start()
    process.wait_healthy(20)
    assert process.is_alive() and process.is_healthy()
    process.stop()
    assert not process.is_alive() and not process.is_healthy()
    assert "exit code -15" in process.obituary()


def test_a_server_that_answers_503_is_not_healthy_and_the_deadline_names_the_url_and_the_log(server) -> None:
    process = server(status=503)
    process.start()
    with pytest.raises(
        ServiceError, match=rf"replica-0 did not answer {process.url}/health within 1 s.*replica-0\.log"
    ):
        process.wait_healthy(1.0)
    assert process.is_alive()


def test_whatever_else_answers_on_its_port_is_not_taken_for_it(server) -> None:
    process = server(STRANGER)
    process.start()
    with pytest.raises(ServiceError, match=r"did not answer http://127.0.0.1:\d+/health within 2 s"):
        process.wait_healthy(2.0)


def test_an_early_death_ends_the_wait_with_the_logs_last_lines(server) -> None:
    process = server("import sys; print('\\n'.join(map(str, range(9)))); sys.exit('no such model')")
    process.start()
    with pytest.raises(ServiceError, match=r"replica-0 ended with exit code 1\. log .*") as error:
        process.wait_healthy(20)
    assert "no such model" in str(error.value) and " | " in str(error.value) and "\n" not in str(error.value)
    assert "GPU memory" not in str(error.value)


@pytest.mark.parametrize(
    "last_word", ["torch.OutOfMemoryError: CUDA out of memory", "No available memory for the cache"]
)
def test_a_death_for_lack_of_memory_says_what_to_lower(server, last_word: str) -> None:
    code = f"import sys; print('{last_word} blocks'); print('x\\n' * 50); sys.exit(1)"
    process = server(code, advice="halve rollout_max_num_seqs")
    process.start()
    wait_until(lambda: not process.is_alive())
    assert "It ran out of GPU memory: halve rollout_max_num_seqs. log" in process.obituary()


def test_a_process_without_a_log_has_an_obituary_too(server) -> None:
    assert "no log at" in server().obituary()


def test_stop_ends_a_grandchild_that_ignores_sigterm(server, tmp_path) -> None:
    process = server(LEADER_OF_A_DEAF_CHILD)
    process.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    grandchild = int((tmp_path / "pid").read_text())
    process.stop(grace_s=5)
    assert not process.is_alive()
    wait_until(lambda: is_gone(grandchild))


def test_stop_kills_a_leader_that_ignores_sigterm_after_the_grace(server) -> None:
    process = server(f"{DEAF} time.sleep(600)")
    process.start()
    wait_until(lambda: "deaf" in process.log_path.read_text())
    started = time.monotonic()
    process.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert "exit code -9" in process.obituary()


def test_stop_may_be_called_before_the_start_and_twice(server) -> None:
    process = server("import time; time.sleep(600)")
    process.stop()
    process.start()
    process.stop()
    process.stop()
    assert not process.is_alive()


def test_the_process_leads_a_session_of_its_own_and_gets_only_the_environment_it_is_given(server) -> None:
    process = server("import os, time; print(sorted(os.environ), flush=True); time.sleep(600)")
    process._env = {"ONLY": "this", "LC_CTYPE": "C.UTF-8"}
    process.start()
    assert process.pid is not None and os.getsid(process.pid) == process.pid != os.getsid(0)
    wait_until(lambda: process.log_path.read_text() != "")
    assert process.log_path.read_text() == "['LC_CTYPE', 'ONLY']\n"


def test_a_free_port_can_be_bound_on_either_family() -> None:
    assert 1024 <= free_port("127.0.0.1") <= 65535
    assert 1024 <= free_port("::1") <= 65535
