"""The embedded Ray, started in a process of its own: Ray reads its environment at import."""

import os
import subprocess
import sys

PROGRAM = """
import os
from trainer.environment import prepare_embedded_ray
prepare_embedded_ray()
from trainer.config import RunSettings
from trainer.placement import ray, ray_cluster
with ray_cluster(RunSettings()):
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()))
"""


def test_a_worker_has_the_priority_of_the_run():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False
    )
    assert f"niceness {os.nice(0)}" in ran.stdout.splitlines(), ran.stderr[-2000:]
