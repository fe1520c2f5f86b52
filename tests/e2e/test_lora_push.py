"""After a push of merged adapters, what a replica says of given tokens is what the learner's adapted model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Program
from tests.e2e.test_push import FP32, check, push
from wire.process import free_port


@pytest.fixture(scope="module")
def replica(start: Callable[..., Program]) -> Iterator[str]:
    """One replica of one worker, in fp32."""
    port = str(free_port("127.0.0.1"))
    program = start("rollout_server.main", "--replicas", "1", "--rollout_ports", port, name="lora")
    program.wait_for("replica-")
    yield f"http://127.0.0.1:{port}"
    program.stop()


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_the_replicas_logprobs_are_those_of_policy_and_adapters(
    replica: str, folder: Path, token_file: Path, stage: int, ranks: int
) -> None:
    """The tolerance is that of whole weights: (W + s B A) x and W x + s B (A x) are two orders of the same sums."""
    case = {"stage": stage, "ranks": ranks, "dtype": "float32", "use_peft": True, "learning_rate": 1e-2}
    (found,) = push(folder, token_file, [[replica]], **case)
    check(found, [replica], FP32)
