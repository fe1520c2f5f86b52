"""In which folder a process works that Ray has started for a driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import cloudpickle

from wire.placement import working_in


def test_it_works_in_the_drivers_folder_where_its_host_has_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    sent = cloudpickle.dumps(working_in(str(tmp_path / "project")))  # as Ray takes it to the other hosts
    cloudpickle.loads(sent)()
    assert Path.cwd() == tmp_path / "project"
    working_in(str(tmp_path / "elsewhere"))()
    assert Path.cwd() == tmp_path / "project"
