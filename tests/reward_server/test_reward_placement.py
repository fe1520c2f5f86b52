"""The actor's class, without a cluster: it supervises the real program, which here finds a mistake in its settings."""

import pytest

from reward_server.config import RewardSettings
from reward_server.placement import RewardHost
from wire.errors import ServiceError


def test_a_service_that_cannot_start_says_why_and_stopping_it_is_harmless(tmp_path):
    settings = RewardSettings(judge_model_name_or_path="./nowhere", log_dir=str(tmp_path), startup_timeout_s=30.0)
    host = RewardHost(settings)
    with pytest.raises(ServiceError, match="the server was not started"):
        host.check()
    with pytest.raises(ServiceError, match=r"exit code 2.*judge_model_name_or_path './nowhere'"):
        host.start()
    with pytest.raises(ServiceError, match="exit code 2"):
        host.check()
    host.stop()
