"""The toy judge, a real one, checked before a run; and a file of responses scored by it, in two goes."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, TOY, TOY_CONFIG, Program

VALIDATION = TOY / "helpsteer3" / "preference" / "validation.jsonl.gz"
DEADLINE_S = 300.0

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(start: Callable[..., Program], reward_url: str) -> Run:
    """Run a program of ours against the session's reward service; gives its exit code and what it printed."""

    def call(module: str, *flags: str, name: str) -> tuple[int, str]:
        program = start(module, *flags, "--reward_url", reward_url, name=name)
        return program.process.wait(DEADLINE_S), program.text()

    return call


@pytest.fixture
def judge_file(reward_url: str, token_file: Path) -> Iterator[Callable[[Path, Path], subprocess.Popen[str]]]:
    """Start the program on two paths; what still runs at the end is ended."""
    programs: list[subprocess.Popen[str]] = []

    def begin(source: Path, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "reward_server.judge_file", str(source), str(out), "--config", str(TOY_CONFIG)]
        command += ["--reward_url", reward_url, "--token_file", str(token_file)]
        programs.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return programs[-1]

    yield begin
    for program in programs:
        with program:
            program.kill()


def test_the_toy_judge_is_fit(run: Run) -> None:
    code, text = run("reward_server.check", name="check")
    assert code == 0, text
    assert "the judge is fit" in text and "every turn and response once, in its place" in text


def test_a_figure_beyond_its_limit_ends_the_check_with_exit_code_2_and_one_line(run: Run) -> None:
    code, text = run("reward_server.check", "--check_pairs", "8", "--check_min_agreement", "1.01", name="unfit")
    assert code == 2
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "check_min_agreement is 101.0%" in error and "agreement " in error


def test_a_file_is_scored_and_a_killed_program_goes_on_where_it_stopped(
    folder: Path, judge_file: Callable[[Path, Path], subprocess.Popen[str]]
) -> None:
    with gzip.open(VALIDATION, "rt") as file:
        rows = [json.loads(line) for line in file]
    english = [row for row in rows if row["language"] == "english" and row["response1"] and row["response2"]]
    groups = [{"conversation": row["context"], "responses": [row["response1"], row["response2"]]} for row in english]
    source, out = folder / "responses.jsonl", folder / "scores.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*english * 3, *groups]))
    first = judge_file(source, out)
    while not out.exists() or out.read_bytes().count(b"\n") < 20:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = out.read_text()
    kept = before[: before.rfind("\n") + 1]
    assert 20 <= kept.count("\n") < 4 * len(english)
    second = judge_file(source, out)
    text, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0
    assert out.read_text().startswith(kept)
    done = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["row"] for row in done) == list(range(1, 4 * len(english) + 1))
    check_summary(json.loads(text.splitlines()[-1]), done)


def check_summary(summary: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """The last line says what the rows say."""
    outcomes = [row["agrees"] for row in done if row.get("agrees") is not None]
    assert summary["pairs"]["all"]["compared"] == len(outcomes)
    assert summary["pairs"]["all"]["agreement"] == pytest.approx(sum(outcomes) / len(outcomes))
    assert summary["pairs"]["all"]["agreement"] > 0.75
    margins = [figures for sort, figures in summary["pairs"].items() if sort.startswith("margin")]
    assert sum(figures["pairs"] for figures in margins) == summary["pairs"]["all"]["pairs"]
    assert all(1 <= score <= 5 for row in done for score in row["scores"] if score is not None)
