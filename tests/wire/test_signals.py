"""Handlers survive what a library installs below Python's back."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys

import pytest

from wire.signals import kept_handlers

SIG_IGN = ctypes.c_void_p(1)


def replaced_by_a_library(signum):
    """As Ray's core does it: the C library's call, of which Python hears nothing."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signum, SIG_IGN)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_an_event_loop_hears_a_signal_that_a_library_had_taken(signum):
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signum, heard.set)
    try:
        replaced_by_a_library(signum)
        os.kill(os.getpid(), signum)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(heard.wait(), 0.2)  # it is lost: what is kept below would otherwise prove nothing
        with kept_handlers():
            await asyncio.to_thread(replaced_by_a_library, signum)
        os.kill(os.getpid(), signum)
        await asyncio.wait_for(heard.wait(), 5)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signum)


def test_a_program_without_handlers_ends_as_before():
    code = "import os; from wire.signals import kept_handlers\nwith kept_handlers(): pass\nos.kill(os.getpid(), 15)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


async def test_in_another_thread_there_is_nothing_to_keep():
    def block():
        with kept_handlers():
            return True

    assert await asyncio.to_thread(block)
