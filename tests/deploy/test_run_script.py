"""deploy/run_rloo_training.sh: the real script and the real plan; nothing is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.parsers import PROGRAMS
from tests.deploy.recorded import ROOT, Host

SCRIPT = "deploy/run_rloo_training.sh"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable} | variables
    command = ["bash", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("mode", ["single", "multi", "deepspeed"])
def test_a_mode_plans_its_configuration(mode: str) -> None:
    done = run(mode, "--dry_run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\nsettings\n")[1].splitlines()
    settings = dict(line.split(": ", 1) for line in lines if ": " in line)
    config = yaml.safe_load((ROOT / f"configs/qwen3-8b/{mode}.yaml").read_text())
    assert len(config) > 15
    for name, value in config.items():
        assert json.loads(settings[name]) == value, name


def test_no_mode_is_single_and_variables_and_flags_reach_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"BATCH_SIZE": "4", "GRAD_ACCUM": "3", "LEARNING_RATE": "2e-6", "TOTAL_EPISODES": "600", "RLOO_K": "6"}
    servers = {"REWARD_URL": "http://10.0.0.2:8100", "ROLLOUT_URLS": "http://10.0.0.3:8200 http://10.0.0.3:8201"}
    command = "bash deploy/run_rloo_training.sh --kl_coef 0.02 --rloo_k 2"
    (call,) = Host(tmp_path, ("python",)).run(command, **variables, **servers)
    assert call.argv[:3] == ["python", "-m", "trainer.main"]
    monkeypatch.chdir(ROOT)
    settings, found = PROGRAMS["trainer.main"](call.argv[3:])
    assert found.config == "configs/qwen3-8b/single.yaml"
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (4, 3)
    assert (settings.learning_rate, settings.total_episodes) == (2e-6, 600)
    assert (settings.rloo_k, settings.kl_coef) == (2, 0.02)  # a flag wins over a variable
    assert settings.reward_url == servers["REWARD_URL"]
    assert settings.rollout_urls == servers["ROLLOUT_URLS"].split() and settings.replicas == 0


def test_an_unknown_mode_is_refused_with_one_line() -> None:
    done = run("mutli", "--dry_run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown mode 'mutli'; give single, multi or deepspeed\n"


def test_help_names_every_variable_that_the_script_reads() -> None:
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for name in ("BATCH_SIZE", "GRAD_ACCUM", "LEARNING_RATE", "TOTAL_EPISODES", "RLOO_K", "REWARD_URL", "ROLLOUT_URLS"):
        assert f"\n{name} " in done.stdout, name
    config = yaml.safe_load((ROOT / "configs/qwen3-8b/single.yaml").read_text())
    told = [
        line.split()
        for line in done.stdout.splitlines()
        if line.startswith(("BATCH", "GRAD", "TOTAL", "RLOO", "LEARN"))
    ]
    defaults = [float(words[-1].strip("()")) for words in told]
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "total_episodes", "rloo_k")
    assert defaults == [config[name] for name in names]
