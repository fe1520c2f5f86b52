"""A started server ends with the program that started it, even where that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, sys, time
from pathlib import Path
from wire.process import ServerProcess
server = ServerProcess("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ),
                       Path(sys.argv[1]), "http://127.0.0.1:1")
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_ends_when_its_program_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        server = int(program.stdout.readline())
        while b"time.sleep" not in Path(f"/proc/{server}/cmdline").read_bytes():
            time.sleep(0.01)  # until the leash has become the server
        program.kill()
    end = time.monotonic() + 10
    while is_running(server):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_leash_whose_holder_is_gone_starts_nothing() -> None:
    command = [sys.executable, "-m", "wire.leash", str(os.getpid() + 1), sys.executable, "-c", "print('started')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1 and not done.stdout


def test_a_command_that_is_not_there_is_an_error_of_the_leash() -> None:
    command = [sys.executable, "-m", "wire.leash", str(os.getpid()), "./no-such-program"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0 and "no-such-program" in done.stderr


def test_signals_reach_the_command_as_if_there_were_no_leash() -> None:
    command = [sys.executable, "-m", "wire.leash", str(os.getpid()), "sleep", "600"]
    with subprocess.Popen(command) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
