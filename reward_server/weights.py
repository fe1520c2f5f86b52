"""The judge's files on their way to a node where nothing serves them yet, in a process of their own."""

from __future__ import annotations

import os
from pathlib import Path

from reward_server.config import RewardSettings
from reward_server.fetch_state import FetchState
from reward_server.fetched import fetched_command
from reward_server.genrm import fetch_state_file
from reward_server.startup import GenrmProcess
from wire.errors import ServiceError
from wire.models import is_hub_id

NAME = "judge-files"


class Weights:
    """Begun with the first look. A service that starts afterwards finds them here."""

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._process: GenrmProcess | None = None

    def look(self) -> FetchState | None:
        """How far they are; None where there is nothing to fetch.

        Raises:
            ConfigError: there is no such model, it is gated, or the disk is too small.
            ServiceError: the hub gave nothing for too long, or the process was ended.
        """
        if not is_hub_id(self._settings.judge_model_name_or_path) or not self._settings.judge_servers:
            return None
        if self._process is None:
            self._process = self._begun()
        is_alive = self._process.is_alive()  # before its last words are read, lest they come between
        state = self._process.startup().fetch or FetchState()
        if not is_alive and state.is_under_way:
            raise ServiceError(self._process.obituary())
        state.raise_failure("the reward service")
        return state

    def _begun(self) -> GenrmProcess:
        settings, path = self._settings, fetch_state_file(self._settings, NAME)
        command = fetched_command(
            path, settings.judge_model_name_or_path, settings.judge_revision, settings.judge_fetch_stall_s, ["true"]
        )
        log = Path(settings.log_dir) / f"{NAME}.log"
        process = GenrmProcess(NAME, command, dict(os.environ), log, "", state_file=path)
        process.start()
        return process

    def stop(self) -> None:
        """End the fetch; whole files stay."""
        if self._process is not None:
            self._process.stop()
