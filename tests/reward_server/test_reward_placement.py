"""The actor's class, without a cluster: it supervises the real program, which here finds a mistake in its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reward_server.config import RewardSettings
from reward_server.placement import RewardHost, reward_identity, reward_plan
from wire.claim import NotYours, Owner
from wire.errors import ServiceError

OWNER = Owner("/runs/a", "1", "01", 100.0)


def test_a_service_that_cannot_start_says_why_and_stopping_it_is_harmless(tmp_path: Path) -> None:
    settings = RewardSettings(
        judge_model_name_or_path="./nowhere",
        log_dir=str(tmp_path),
        startup_timeout_s=30.0,
        token_file=str(tmp_path / "token"),
    )
    host = RewardHost(settings, reward_identity(settings), 0, OWNER)
    with pytest.raises(ServiceError, match="the server was not started"):
        host.check("1")
    with pytest.raises(NotYours):
        host.start("2")
    with pytest.raises(ServiceError, match=r"exit code 2.*judge_model_name_or_path './nowhere'"):
        host.start("1")
    with pytest.raises(ServiceError, match="exit code 2"):
        host.check("1")
    host.stop("1")


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"log_dir": "elsewhere", "startup_timeout_s": 3.0, "orphan_timeout_s": 20.0, "ray_address": "a:1"}, True),
        ({"reward_url": "http://a"}, True),
        ({"judge_max_tokens": 77}, False),
        ({"judge_servers": 2}, False),
        ({"judge_model_name_or_path": "b/other"}, False),
        ({"judge_urls": ["http://a"]}, False),
        ({"bind_address": "node"}, False),
        ({"deterministic": True}, False),
    ],
)
def test_a_service_is_taken_for_another_where_it_would_judge_and_listen_alike(
    tmp_path: Path, changes: dict[str, Any], is_same: bool
) -> None:
    settings = RewardSettings(device="cpu", ray_address="auto", token_file=str(tmp_path / "token"))
    assert (reward_identity(replace(settings, **changes)) == reward_identity(settings)) is is_same


def test_it_has_the_gpus_of_its_genrm_servers_on_one_node(tmp_path: Path) -> None:
    settings = RewardSettings(
        device="cuda", judge_servers=2, judge_tensor_parallel_size=4, token_file=str(tmp_path / "token")
    )
    assert str(reward_plan(settings).needs) == "1 x {GPU: 8, reward: 1}"
