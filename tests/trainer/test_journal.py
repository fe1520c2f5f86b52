"""What a person sees of a run; TensorBoard's own reader reads it back."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.config import RunSettings
from trainer.group import Group
from trainer.journal import Journal, library_versions, open_trace, write_summary
from trainer.prompts import Prompt
from trainer.stats import Moments, StepStats
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict
from wire.waits import WAITS, waiting


def group(score: float | None = 4.0) -> Group:
    """Two completions; the second has a score of 2."""
    completions = [Completion(i, (7, 2), (-0.5, -0.1), True, (VersionSpan("0.0", 0, 2),)) for i in range(2)]
    verdict = Verdict(scores=(4.0, 2.0), ranking=2, text="the first is \\boxed{4, 2}", completion_tokens=9)
    return Group(
        prompt=Prompt(3, ({"role": "user", "content": "what is <b>?"},), (1,)),
        completions=completions,
        texts=["waves & <tides>", "boring"],
        verdict=GroupVerdict(scores=(score, 2.0), verdicts=(PlacedVerdict(first=0, second=1, verdict=verdict),)),
        scores_K=[score, 2.0],
        rewards_K=[score, 2.0],
        kl_K=[0.5, 0.25],
        entropy_K=[1.0, 2.0],
        length_terms_K=[0.0, 0.0],
        seconds={"generate": 1.0, "judge": 2.0, "reference": 0.5},
        advantages_K=[None, None] if score is None else [score - 2.0, 2.0 - score],
    )


def settings_for(folder: Path, **changes: Any) -> RunSettings:
    """Three steps of four completions."""
    return RunSettings(
        device="cpu",
        output_dir=str(folder),
        **{"rloo_k": 2, "gradient_accumulation_steps": 2, "total_episodes": 12, **changes},
    )


STATS = StepStats(ratio=Moments.of([1.0]), loss=-0.5, learning_rate=1e-6, grad_norm=0.25)


async def write(settings: RunSettings, first_step: int = 0, **changes: Any) -> Journal:
    journal = Journal(settings, first_step=first_step, stop_token_ids=(2,), waits=lambda: "the judge")
    async with journal:
        for step in range(first_step + 1, settings.num_steps + 1):
            with journal.timed("wait"):
                await asyncio.sleep(0.002)
            journal.record(
                PolicyVersion(0, step), [group(**changes)] * 2, STATS, lags=[0, 1], num_dropped=step
            )  # fmt: skip
    return journal


def read(settings: RunSettings) -> EventAccumulator:
    events = EventAccumulator(str(settings.runs_dir))
    events.Reload()
    return events


def values(events: EventAccumulator, name: str) -> dict[int, float]:
    return {event.step: event.tensor_proto.float_val[0] for event in events.Tensors(name)} if (
        name in events.Tags()["tensors"]
    ) else {event.step: event.value for event in events.Scalars(name)}  # fmt: skip


async def test_tensorboard_reads_back_every_step(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await write(settings)
    events = read(settings)
    assert values(events, "objective/scores") == {1: 3.0, 2: 3.0, 3: 3.0}
    assert values(events, "episode") == {1: 4.0, 2: 8.0, 3: 12.0}
    assert values(events, "loss/policy_avg") == {1: -0.5, 2: -0.5, 3: -0.5}
    assert values(events, "val/num_eos_tokens")[1] == 4.0
    assert values(events, "sample/dropped_groups") == {1: 1.0, 2: 2.0, 3: 3.0}
    assert all(0.0015 <= seconds < 1 for seconds in values(events, "time/wait").values())


async def test_what_comes_after_the_last_step_is_logged_with_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    journal = Journal(settings, first_step=0, stop_token_ids=(2,), waits=lambda: "the judge")
    async with journal:
        journal.record(PolicyVersion(0, 1), [group()], STATS, lags=[0], num_dropped=0)
        journal.note(1, {"eval/win_rate": 0.75})
        assert journal.latest["eval/win_rate"] == 0.75 and journal.latest["step"] == 1
    assert values(read(settings), "eval/win_rate") == {1: 0.75}


async def test_what_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await write(settings)
    scalars = read(settings).Tags()["scalars"]
    assert "policy/approxkl_avg" not in scalars and "val/ratio" in scalars


async def test_completions_are_logged_with_scores_and_what_the_judge_said(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, log_completions_steps=2)
    await write(settings)
    (tag,) = read(settings).Tags()["tensors"]
    logged = read(settings).Tensors(tag)
    assert [event.step for event in logged] == [1, 2, 3]
    text = logged[0].tensor_proto.string_val[0].decode()
    assert "prompt 3" in text and "*user*: what is &lt;b&gt;?" in text
    assert "waves &amp; &lt;tides&gt;" in text and "score 4.00, reward 4.00, advantage 2.00" in text
    assert "verdict on 0 and 1" in text and "\\boxed{4, 2}" in text


async def test_only_as_many_completions_are_logged_as_asked_for_and_as_often(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, num_logged_completions=1, total_episodes=24, log_completions_steps=4)
    await write(settings)
    (tag,) = read(settings).Tags()["tensors"]
    logged = read(settings).Tensors(tag)
    assert [event.step for event in logged] == [1, 4, 5, 6]  # the first of every four, each fourth, the last
    assert "waves" in (text := logged[0].tensor_proto.string_val[0].decode()) and "boring" not in text


async def test_a_missing_score_is_said_to_be_missing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await write(settings, score=None)
    events = read(settings)
    (tag,) = events.Tags()["tensors"]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "score missing, reward missing, advantage missing" in text
    assert values(events, "objective/scores")[1] == 2.0


async def test_the_summary_has_first_and_last_scores_seconds_and_versions(tmp_path: Path) -> None:
    journal = await write(settings_for(tmp_path))
    journal.add_seconds("start", 1.5)
    summary = journal.summary()
    assert set(summary) == {"scores_first", "scores_last", "seconds", "versions"}
    assert (summary["scores_first"], summary["scores_last"]) == (3.0, 3.0)
    assert summary["seconds"]["start"] == 1.5 and summary["seconds"]["generate"] == 3.0
    assert 0.006 <= summary["seconds"]["wait"] < 1
    assert {"torch", "transformers", "trl", "deepspeed", "ray"} <= set(summary["versions"]) == set(library_versions())


async def test_a_run_without_steps_has_no_scores(tmp_path: Path) -> None:
    journal = await write(settings_for(tmp_path), first_step=3)
    assert journal.summary()["scores_first"] is None and journal.summary()["scores_last"] is None


async def test_a_resumed_run_counts_its_speed_from_where_it_went_on(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await write(settings, first_step=2)
    events = read(settings)
    assert values(events, "episode") == {3: 12.0}
    assert values(events, "eps")[3] > 0


async def test_the_progress_line_says_who_waits_for_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(settings_for(tmp_path), first_step=0, stop_token_ids=(2,), waits=lambda: "the judge")
    async with journal:
        with journal.timed("wait"):
            journal.record(PolicyVersion(0, 1), [group()] * 2, STATS, lags=[0, 1], num_dropped=0)
        line = journal._bar.postfix
        with journal.timed("publish"):
            journal._show()
            assert "publish" in journal._bar.postfix
        with monkeypatch.context() as clock, journal.timed("checkpoint"):
            clock.setattr(asyncio.get_running_loop(), "time", lambda: journal._stage_since + 42.0)
            journal._show()
            assert journal._bar.postfix.endswith("checkpoint 42 s")
    assert "step 1/3" in line and "score 3.00" in line and "lag 0.5" in line and "learner waits for the judge" in line
    assert "4/12" in capsys.readouterr().err


def step_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


async def test_each_step_says_which_prompts_it_trained_on_and_who_wrote_them(tmp_path: Path) -> None:
    await write(settings_for(tmp_path))
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2, 3]
    assert step_lines(tmp_path)[1] == {
        "step": 2, "version": "0.2", "prompts": [3, 3], "lags": [0, 1], "versions": ["0.0"], "dropped": 2,
        "completions_by_replica": {"": 4}
    }  # fmt: skip


async def test_steps_of_an_earlier_life_beyond_the_one_restored_are_gone_and_a_fresh_run_begins_anew(
    tmp_path: Path,
) -> None:
    await write(settings_for(tmp_path))
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "prom')  # its writing was broken off
    Journal(settings_for(tmp_path), first_step=2, stop_token_ids=(), waits=str)._bar.close()
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2]
    await write(settings_for(tmp_path))
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2, 3]


async def test_times_are_those_of_the_loops_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path, picture_steps=0)
    journal = Journal(settings, first_step=0, stop_token_ids=(2,), waits=str)
    async with journal:
        with monkeypatch.context() as clock:
            loop, started = asyncio.get_running_loop(), journal._started
            clock.setattr(loop, "time", lambda: started + 100.0)
            with journal.timed("step"):
                clock.setattr(loop, "time", lambda: started + 107.0)
            journal.record(PolicyVersion(0, 1), [group()] * 2, STATS, lags=[0, 1], num_dropped=0)
    events = read(settings)
    assert values(events, "time/step") == {1: 7.0}
    assert values(events, "eps") == {1: pytest.approx(4 / 107)}


async def test_each_step_says_how_busy_the_parts_were_and_how_a_push_was_spent(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    push = {"fleet/gather_seconds": 0.25, "fleet/transfer_seconds": 1.5}
    journal = Journal(
        settings,
        first_step=0,
        stop_token_ids=(2,),
        waits=str,
        services=lambda: dict(push),
        replicas=lambda: ["replica http://a", "replica http://b"],
    )
    async with journal:
        with waiting("replica http://a", "writes"), waiting("learner 0", "scores"):
            journal.record(PolicyVersion(0, 1), [group()] * 2, STATS, lags=[0, 1], num_dropped=0)
    events = read(settings)
    assert 0 < values(events, "util/replicas")[1] <= 0.5 and 0 < values(events, "util/learner")[1] <= 1
    assert values(events, "util/judge") == {1: 0.0}
    assert values(events, "time/gather") == {1: 0.25} and values(events, "time/broadcast") == {1: 1.5}
    assert journal.summary()["seconds"]["broadcast"] == 1.5


async def test_the_trace_has_the_stages_and_the_waits_and_a_stage_is_nobody_to_wait_for(tmp_path: Path) -> None:
    journal = Journal(settings_for(tmp_path), first_step=0, stop_token_ids=(), waits=str)
    async with journal:
        with journal.timed("wait"), waiting("group 4", "is in the making"):
            assert [wait.peer for wait in WAITS.current] == ["group 4"]
        with journal.timed("step"), waiting("learner 0", "steps"):
            pass
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [(event["name"], event["tid"]) for event in events] == [
        ("group 4 is in the making", 1), ("wait", 0), ("steps", 0), ("step", 0)
    ]  # fmt: skip


async def test_a_trace_that_was_open_before_is_used_and_left_open(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with open_trace(settings, goes_on=False) as trace:
        with waiting("ray", "places a learner"):
            pass
        async with Journal(settings, first_step=0, stop_token_ids=(), waits=str, trace=trace) as journal:
            with journal.timed("wait"):
                pass
        with waiting("disk", "saves"):
            pass
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [event["name"] for event in events] == ["places a learner", "wait", "saves"]


async def test_the_pictures_are_in_tensorboard_and_in_files(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, picture_steps=2)
    await write(settings)
    events = read(settings)
    for name in ("pictures/timeline", "pictures/curves"):
        images = events.Images(name)
        assert images[-1].step == 3 and images[-1].width == 1500
        assert images[-1].encoded_image_string.startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "pictures").glob("*.png")} == {"timeline.png", "curves.png"}


async def test_leaving_ends_the_ticker_after_an_error_too(tmp_path: Path) -> None:
    journal = Journal(settings_for(tmp_path), first_step=0, stop_token_ids=(), waits=str)
    with pytest.raises(RuntimeError, match="boom"):
        async with journal:
            raise RuntimeError("boom")
    assert journal._ticker is not None and journal._ticker.done()


def test_a_summary_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "summary.json"
    write_summary(path, {"steps": 1})
    with pytest.raises(ValueError):
        write_summary(path, {"steps": math.nan})
    assert json.loads(path.read_text()) == {"steps": 1}
