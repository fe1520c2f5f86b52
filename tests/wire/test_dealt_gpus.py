"""How one command deals a host's GPUs out to its replicas."""

from __future__ import annotations

import pytest

from wire.engine import dealt_gpus
from wire.errors import ConfigError


def test_each_replica_gets_gpus_of_its_own() -> None:
    assert [dealt_gpus("replica-1", index, 2, None) for index in range(2)] == ["0,1", "2,3"]
    assert [dealt_gpus("replica-1", index, 1, "5,7") for index in range(2)] == ["5", "7"]


def test_more_replicas_than_visible_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"replica-1 .* CUDA_VISIBLE_DEVICES \(5,7,9\)"):
        dealt_gpus("replica-1", 1, 2, "5,7,9")
