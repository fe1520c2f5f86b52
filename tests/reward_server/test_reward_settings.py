"""The settings of the reward service, alone and beside others."""

from dataclasses import dataclass, fields

import pytest

from reward_server.config import RewardSettings
from reward_server.genrm import check_genrm, genrm_process
from rollout_server.config import RolloutSettings
from wire.errors import ConfigError
from wire.settings import ServiceSettings, parse_settings


def own(settings_class):
    return {f.name for f in fields(settings_class)} - {f.name for f in fields(ServiceSettings)}


def test_defaults_pass_and_every_field_is_explained():
    RewardSettings().check()
    assert all(f.metadata.get("help") for f in fields(RewardSettings))


def test_a_class_may_inherit_the_rollout_settings_too():
    @dataclass
    class Both(RewardSettings, RolloutSettings):
        pass

    assert not own(RewardSettings) & own(RolloutSettings)
    with pytest.raises(ConfigError, match="response_length"):
        Both(response_length=0).check()
    with pytest.raises(ConfigError, match="judge_retries"):
        Both(judge_retries=-1).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [("judge_dialect", "xml"), ("judge_pairing", "star"), ("judge_aggregation", "median"), ("judge_votes", 2),
     ("judge_calls_per_group", 6), ("judge_servers", 0), ("judge_max_queue", 0),
     ("judge_principle", "be brief"), ("judge_health_timeout_s", 0),
     ("reward_url", "node1:8000"), ("reward_port", 70000), ("judge_max_tokens", 40000),
     ("judge_max_tokens", 0), ("judge_max_num_seqs", 0), ("judge_tensor_parallel_size", 0), ("judge_max_in_flight", 0),
     ("judge_temperature", -0.1), ("judge_temperature", float("nan")), ("judge_timeout_s", 0), ("judge_retries", -1),
     ("judge_gpu_memory_utilization", 1.5), ("tie_break", 0.1), ("tie_break", -0.01), ("bind_address", "localhost")],
)  # fmt: skip
def test_a_value_that_cannot_work_is_named(name, value):
    with pytest.raises(ConfigError, match=name) as error:
        RewardSettings(**{name: value}).check()
    assert str(value) in str(error.value)


def test_settings_come_from_a_file_with_other_programs_keys_and_from_flags(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("judge_max_tokens: 512\nlearning_rate: 1e-6\njudge_trust_remote_code: false\n")
    settings, _ = parse_settings(RewardSettings, ["--config", str(file), "--judge_timeout_s", "60"], strict_file=False)
    assert (settings.judge_max_tokens, settings.judge_trust_remote_code, settings.judge_timeout_s) == (512, False, 60)


def test_a_judge_that_is_not_there_or_is_split_over_a_cpu_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="judge_model_name_or_path"):
        check_genrm(RewardSettings(judge_model_name_or_path=str(tmp_path / "nowhere"), device="cpu"))
    with pytest.raises(ConfigError, match=r"judge_tensor_parallel_size \(4\).*set it to 1"):
        check_genrm(RewardSettings(device="cpu"))
    check_genrm(RewardSettings(device="cpu", judge_tensor_parallel_size=1))


def test_the_genrm_is_started_behind_the_token_with_the_judges_limits():
    process = genrm_process(RewardSettings(device="cuda", log_dir="logs"), 0)
    command = " ".join(process._command)
    for flags in ("--tensor-parallel-size 4", "--max-model-len 40000", "--max-num-seqs 64", "--trust-remote-code",
                  "--gpu-memory-utilization 0.92", "--middleware wire.token.TokenMiddleware"):  # fmt: skip
        assert flags in command
    assert str(process.log_path) == "logs/judge-0.log"
    untrusting = genrm_process(RewardSettings(device="cuda", judge_trust_remote_code=False), 0)
    assert "--trust-remote-code" not in untrusting._command


def test_a_deterministic_judge_is_one_rank_unless_it_is_somebody_elses():
    with pytest.raises(ConfigError, match=r"judge_tensor_parallel_size 1, and it is 4.*set it to 1, or determ"):
        RewardSettings(deterministic=True).check()
    RewardSettings(deterministic=True, judge_tensor_parallel_size=1).check()
    RewardSettings(deterministic=True, reward_url="http://node1:8000").check()
    process = genrm_process(RewardSettings(device="cuda", deterministic=True, judge_tensor_parallel_size=1), 0)
    assert process._env["VLLM_BATCH_INVARIANT"] == "1" and "--no-enable-prefix-caching" in process._command
