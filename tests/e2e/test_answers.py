"""A benchmark's questions answered by a checkpoint and by an export of one and the same step, over one replica."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, START_S, TOY, Program
from wire.process import free_port

ASKED = ["what do you find in the forest", "learn some words about the sea", "say something about the kitchen"]
MT = [{"question_id": 81 + i, "category": "writing", "turns": [text, "in one line"]} for i, text in enumerate(ASKED)]
V2 = [{"uid": f"u{i}", "category": "hard_prompt", "prompt": text} for i, text in enumerate(ASKED)]


@pytest.fixture(scope="module")
def run_dir(folder: Path, token_file: Path) -> Path:
    """What a run left: `checkpoint-1` and `export-1`, after one step far enough to change what is answered."""
    path = folder / "answers"
    case = {"output_dir": str(path), "token_file": str(token_file)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.answer_case", json.dumps(case)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def replica(start: Callable[..., Program]) -> Iterator[str]:
    """One replica, which all of this module's programs join."""
    port = str(free_port("127.0.0.1"))
    program = start("rollout_server.main", "--replicas", "1", "--rollout_ports", port, name="answering")
    program.wait_for("replica-")
    yield f"http://127.0.0.1:{port}"
    program.stop()


def answers(
    start: Callable[..., Program], replica: str, checkpoint: Path, form: str, rows: list[dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """The lines of the answers file."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, output = folder / "question.jsonl", folder / "toy-policy.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = start(
        *("trainer.evaluate", "--checkpoint", str(checkpoint), "--export", form, "--questions", str(questions)),
        *("--output", str(output), "--replicas", "0", "--rollout_urls", replica, "--output_dir", str(folder)),
        name=f"answers-{folder.name}",
    )
    assert program.process.wait(START_S) == 0, program.text()[-3000:]
    assert "answers: " in program.text() and "turn" in program.text()
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_checkpoint_and_its_export_give_the_same_answers_and_the_untrained_policy_others(
    start: Callable[..., Program], replica: str, run_dir: Path, tmp_path: Path
) -> None:
    two_turns = answers(start, replica, run_dir / "checkpoint-1", "mt-bench", MT, tmp_path / "checkpoint")
    assert [row["question_id"] for row in two_turns] == [81, 82, 83]
    assert {row["model_id"] for row in two_turns} == {"toy-policy"}
    turns = [row["choices"][0]["turns"] for row in two_turns]
    assert all(len(texts) == 2 for texts in turns)
    exported = answers(start, replica, run_dir / "export-1", "arena-hard", V2, tmp_path / "export")
    assert [row["uid"] for row in exported] == ["u0", "u1", "u2"]
    # Greedy, so the same first question has the same answer, whichever way the weights came.
    firsts = [row["messages"][-1]["content"]["answer"] for row in exported]
    assert firsts == [first for first, _ in turns]
    assert all(row["metadata"]["token_len"] >= 0 for row in exported)
    untrained = answers(start, replica, TOY / "policy", "arena-hard", V2, tmp_path / "untrained")
    assert [row["messages"][-1]["content"]["answer"] for row in untrained] != firsts
    assert all(row["messages"][-1]["content"]["answer"] for row in untrained)
