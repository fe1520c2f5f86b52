"""deploy/slurm.sbatch, really run with a Slurm that has three hosts: what Ray is told on each of them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.deploy.parsers import parse_ray, split_entrypoint
from tests.deploy.recorded import ROOT, Host

# As much of Slurm as the file uses: a step runs its command once a task, with the task's number.
SRUN = """
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
for ((SLURM_PROCID = 0; SLURM_PROCID < tasks; SLURM_PROCID++)); do export SLURM_PROCID; "$@"; done
"""
SLURM = {"srun": SRUN, "scontrol": "printf 'n1\\nn2\\nn3\\n'", "hostname": "echo 10.0.0.1 172.17.0.1"}


def test_every_host_starts_ray_with_what_it_offers_and_the_same_run(tmp_path: Path) -> None:
    host = Host(tmp_path, ("ray",), SLURM)
    variables = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_SUBMIT_DIR": str(host.project)}
    calls = host.run("bash deploy/slurm.sbatch --replicas 8 --output_dir 'runs/a b'", **variables)
    assert [call.argv[1] for call in calls] == ["symmetric-run"] * 3
    started = [parse_ray(call.argv[1:]) for call in calls]
    assert [json.loads(one["resources"]) for one in started] == [{"learner": 8}, {"reward": 1}, {"rollout": 8}]
    for call, parameters in zip(calls, started, strict=True):
        assert (parameters["address"], parameters["min_nodes"]) == ("10.0.0.1:6379", 3)
        _, entrypoint = split_entrypoint(call.argv)
        assert entrypoint[:3] == ["python", "-m", "trainer.main"]
        assert entrypoint[-4:] == ["--replicas", "8", "--output_dir", "runs/a b"]
        assert call.environment["RAY_AUTH_MODE"] == "token"


def test_the_job_asks_for_one_task_a_host_and_whole_hosts() -> None:
    lines = (ROOT / "deploy/slurm.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"nodes=3", "ntasks-per-node=1", "gpus-per-node=8", "exclusive"} <= options
