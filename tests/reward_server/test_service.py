"""A service for the length of one program: what it is told, and that it ends."""

import pytest

from reward_server.config import RewardSettings
from reward_server.service import reward_client, service_flags
from wire.errors import ConfigError, ServiceError
from wire.settings import parse_settings


def parsed(settings):
    return parse_settings(RewardSettings, service_flags(settings), strict_file=False)[0]


def test_settings_survive_the_way_through_flags():
    plain = RewardSettings(device="cpu")
    odd = RewardSettings(
        device="cpu",
        judge_urls=["http://10.0.0.1:8000", "http://10.0.0.2:8000"],
        judge_servers=0,
        judge_dialect="json",
        judge_principle="be brief",
        judge_trust_remote_code=False,
        tie_break=0.03,
    )
    assert parsed(plain) == plain and parsed(odd) == odd


async def test_a_service_that_cannot_be_had_is_told_before_anything_starts(tmp_path, token_file):
    settings = RewardSettings(
        token_file=token_file, log_dir=str(tmp_path / "logs"), judge_model_name_or_path="./nowhere", device="cpu"
    )
    with pytest.raises(ConfigError, match=r"judge_model_name_or_path '\./nowhere' is neither a folder"):
        async with reward_client(settings):
            pass
    assert not (tmp_path / "logs").exists()


async def test_a_service_that_does_not_start_ends_with_its_last_words(tmp_path, token_file):
    settings = RewardSettings(
        token_file=token_file,
        log_dir=str(tmp_path / "logs"),
        judge_servers=0,
        judge_urls=["http://127.0.0.1:9"],
        startup_timeout_s=2.0,
        device="cpu",
    )
    with pytest.raises(ServiceError, match="no GenRM server answered within 2 s"):
        async with reward_client(settings):
            pass


async def test_a_joined_service_must_answer(token_file):
    with pytest.raises(ServiceError, match=r"no reward service answers at http://127\.0\.0\.1:9"):
        async with reward_client(RewardSettings(reward_url="http://127.0.0.1:9", token_file=token_file)):
            pass


async def test_a_joined_service_needs_the_token_it_was_given(tmp_path):
    with pytest.raises(ConfigError, match="token_file"):
        async with reward_client(RewardSettings(reward_url="http://127.0.0.1:9", token_file=str(tmp_path / "none"))):
            pass
