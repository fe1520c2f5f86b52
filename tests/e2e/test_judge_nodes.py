"""Further GenRM servers on another node of a real Ray cluster, and a judge that is fetched from a hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROOT


def test_the_judge_grows_to_another_node_and_back_with_no_verdict_lost(folder: Path, token_file: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.nodes_case", str(folder), str(token_file)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "all is well [null]" in done.stdout, told
    assert "toys/judge: " in done.stdout and " here, " in done.stdout, told
    assert "judge-1 http://127.0.0.2:" in done.stdout and " is ready in " in done.stdout, told
