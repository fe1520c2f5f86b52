"""Files of responses, scored through the real API: in, out, interrupted, continued, refused where they do not fit."""

import asyncio
import gzip
import json

import pytest

from reward_server.config import RewardSettings
from reward_server.file_summary import Summary
from reward_server.judge_file import judge_file, main, take_paths
from reward_server.rows import Candidates, read_done, read_rows
from wire.errors import ConfigError, ServiceError
from wire.judgement import Verdict

USER = {"role": "user", "content": "sea?"}
GROUP = {"conversation": [USER], "responses": ["a 4", "b 2", "c 5"]}


def compared(first, second, preference, domain="general"):
    row = {"context": [USER], "response1": first, "response2": second, "domain": domain}
    return row | {"overall_preference": preference}


class Judge:
    """Scores an answer by the number it ends with. `missing` gets no verdict; `hang` none until `release` is set."""

    def __init__(self):
        self.asked, self.release = [], asyncio.Event()

    async def judge(self, conversation, responses, seed, vote=0):
        self.asked.append(responses)
        if any("hang" in text for text in responses):
            await self.release.wait()
        if any("missing" in text for text in responses):
            return Verdict(missing="too_long", text="...")
        scores = tuple(float(text[-1]) for text in responses)
        ranking = None if len(scores) == 1 else 3 if scores[0] > scores[1] else 4
        return Verdict(scores=scores, ranking=ranking, text="because", server="judge-0", completion_tokens=7)

    async def render(self, conversation, responses):
        raise AssertionError("nothing is to be rendered here")


@pytest.fixture
def source(tmp_path):
    def write(*rows, name="in.jsonl"):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return tmp_path / name

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def score(serve, token_file, out):
    """Judge a file into `out`, as the program does between its arguments and its summary."""

    async def run(source, judge, **changes):
        rows, num_skipped = read_rows(source)
        done = read_done(out, rows)
        async with serve(judge) as url:
            await judge_file(RewardSettings(reward_url=url, token_file=token_file, **changes), rows, out, done)
        return Summary.of(rows, done.verdicts, num_skipped)

    return run


def written(out):
    return sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda row: row["row"])


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
async def test_a_group_gets_its_scores_with_their_provenance(source, score, out, name):
    await score(source(GROUP, {"context": [USER], "responses": ["d 3"]}, name=name), Judge())
    first, second = written(out)
    assert (first["row"], first["scores"], first["missing"]) == (1, [4, 2, 5], [])
    assert sorted(v["verdict"]["text"] for v in first["verdicts"]) == ["because"] * 3
    assert {v["first"] for v in first["verdicts"]} == {v["second"] for v in first["verdicts"]} == {0, 1, 2}
    assert first["judge"]["model"] == RewardSettings.judge_model_name_or_path and first["judge"]["pairing"] == "ring"
    assert (second["row"], second["scores"]) == (2, [3])


async def test_a_pair_is_judged_in_both_orders_and_held_against_people(source, score, out):
    judge = Judge()
    summary = await score(source(compared("a 4", "b 2", -2), compared("c 1", "d 2", -1, "stem")), judge)
    assert sorted(judge.asked) == [("a 4", "b 2"), ("b 2", "a 4"), ("c 1", "d 2"), ("d 2", "c 1")]
    first, second = written(out)
    assert (first["scores"], first["lean"], first["preference"], first["agrees"]) == ([4, 2], -0.5, -2, True)
    assert (second["lean"], second["agrees"], second["domain"]) == (0.5, False, "stem")
    found = summary.as_json()["pairs"]
    agreement = {sort: figures["agreement"] for sort, figures in found.items()}
    assert agreement == {"all": 0.5, "domain general": 1, "domain stem": 0, "margin 1": 0, "margin 2": 1}
    assert any(line.split() == ["all", "2", "2", "50.0%", "0.0%", "0.0%", "0.0%"] for line in summary.lines())


async def test_a_missing_verdict_stays_null_with_its_reason(source, score, out):
    summary = await score(source(compared("a 4", "missing", -2), {**GROUP, "responses": ["missing"]}), Judge())
    pair, single = written(out)
    assert (pair["scores"], pair["missing"], pair["lean"], pair["agrees"]) == ([None, None], ["too_long"], None, None)
    assert (single["scores"], single["missing"]) == ([None], ["too_long"])
    assert summary.as_json()["missing"] == 3
    assert summary.as_json()["pairs"]["all"]["missing"] == {"too_long": 2}


async def test_a_row_is_on_disk_before_the_next_one_is_done_and_a_second_start_asks_only_for_the_rest(
    source, score, out
):
    path = source(compared("a 4", "b 2", -2), compared("hang 1", "d 2", 1), GROUP)
    judge = Judge()
    work = asyncio.create_task(score(path, judge))
    while not out.exists() or out.read_text().count("\n") < 2:
        await asyncio.sleep(0.01)
    assert [row["row"] for row in written(out)] == [1, 3]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    before = out.read_text()
    again = Judge()
    again.release.set()
    summary = await score(path, again)
    assert sorted(again.asked) == [("d 2", "hang 1"), ("hang 1", "d 2")]
    assert out.read_text().startswith(before) and [row["row"] for row in written(out)] == [1, 2, 3]
    assert summary.as_json()["pairs"]["all"]["agreement"] == 1 and summary.num_rows == 3


async def test_a_line_that_was_cut_by_a_kill_is_judged_again(source, score, out):
    path = source(compared("a 4", "b 2", -2), compared("c 1", "d 2", 1))
    await score(path, Judge())
    whole = out.read_text()
    out.write_text(whole[:-20])
    judge = Judge()
    await score(path, judge)
    assert len(judge.asked) == 2
    assert [row["scores"] for row in written(out)] == [[4, 2], [1, 2]]


async def test_a_line_that_was_deleted_is_judged_again(source, score, out):
    path = source(compared("a 4", "b 2", -2), compared("c 1", "d 2", 1))
    await score(path, Judge())
    kept = [line for line in out.read_text().splitlines() if json.loads(line)["row"] == 2]
    out.write_text(kept[0] + "\n")
    judge = Judge()
    await score(path, judge)
    assert sorted(judge.asked) == [("a 4", "b 2"), ("b 2", "a 4")]


async def test_an_output_of_another_input_is_refused_and_left_alone(source, score, out):
    await score(source(GROUP), Judge())
    before = out.read_text()
    other = source({**GROUP, "responses": ["a 4", "b 2", "c 4"]}, name="other.jsonl")
    with pytest.raises(ConfigError, match="line 1, belongs to another input, whose row 1 is not this one's"):
        await score(other, Judge())
    with pytest.raises(ConfigError, match="belongs to another input"):
        await score(source(compared("a 4", "b 2", 1), GROUP, name="shifted.jsonl"), Judge())
    assert out.read_text() == before


async def test_the_same_rows_in_another_spelling_are_the_same_input(source, score, out):
    await score(source(GROUP), Judge())
    judge = Judge()
    spelt = json.dumps(dict(reversed(GROUP.items())), indent=None, separators=(",", ":"))
    await score(source(spelt, GROUP, name="longer.jsonl"), judge)
    assert len(judge.asked) == 3 and [row["row"] for row in written(out)] == [1, 2]


async def test_an_output_of_another_judge_or_scheme_is_refused(source, score, out):
    path = source(GROUP, GROUP)
    await score(path, Judge())
    out.write_text(out.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=r"was judged by .*'tie_break': 0\.08.*and this is .*'tie_break': 0\.02"):
        await score(path, Judge(), tie_break=0.02)


@pytest.mark.parametrize("text", ["notes of mine\n", '{"row": 1}\n', '["row"]\n', '{"row": 1, "input": "x"}\n'])
async def test_a_file_that_is_no_output_is_not_written_to(source, out, text):
    rows, _ = read_rows(source(GROUP))
    out.write_text(text)
    with pytest.raises(ConfigError, match="line 1, was not written by judge_file; name another output file"):
        read_done(out, rows)
    assert out.read_text() == text


async def test_a_service_that_goes_away_ends_the_program_and_keeps_what_was_done(
    source, out, serve, token_file, monkeypatch
):
    monkeypatch.setattr("reward_server.service.CLIENT_MARGIN_S", 0.0)
    rows, _ = read_rows(source(compared("a 4", "b 2", -2), compared("hang 1", "d 2", 1)))
    async with serve(Judge()) as url:
        settings = RewardSettings(reward_url=url, token_file=token_file, judge_timeout_s=4.0)
        work = asyncio.create_task(judge_file(settings, rows, out, read_done(out, rows)))
        while not out.exists() or not out.read_text():
            await asyncio.sleep(0.01)
    with pytest.raises(ServiceError, match="is lost"):
        await work
    assert [row["row"] for row in written(out)] == [1]


BAD_ROWS = [
    ("{", "line 3: Expecting property name"),
    ("[1]", "line 3: a row must be an object, not list"),
    ({"conversation": [USER]}, "line 3: a row needs `conversation` and `responses`, or `context`, `response1`"),
    ({"conversation": [USER], "responses": []}, "line 3: `responses` must be a list of one text or more"),
    ({"conversation": [USER], "responses": ["a", None]}, "line 3: `responses` must be a list of one text or more"),
    ({"conversation": [], "responses": ["a"]}, "line 3: the conversation must end in a user turn"),
    ({"conversation": "sea?", "responses": ["a"]}, "line 3: `context` must be a list of role/content turns"),
    (compared("a", "b", 5), r"line 3: `overall_preference` \(5\)"),
    (
        '{"conversation": [{"role": "user", "content": "x"}], "responses": ["\\ud800"]}',
        "line 3: .*surrogates not allowed",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_one_error_with_its_line_number(source, row, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_rows(source(GROUP, "", row))
    assert "\n" not in str(error.value)


def test_rows_without_a_pair_are_skipped_and_counted_and_blank_lines_keep_the_numbers(source):
    rows, num_skipped = read_rows(source(compared("a", None, 1), "", compared("a", "b", None), GROUP))
    assert ([row.number for row in rows], num_skipped) == ([4], 2)
    assert isinstance(rows[0].task, Candidates)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"", r"must be a \.jsonl or \.jsonl\.gz file"),
        ("in.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("in.jsonl", b"\xff", "cannot be read: 'utf-8' codec"),
        ("in.jsonl", b"", "holds nothing to judge"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}.*{message}"):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_rows(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("argv", [[], ["a.jsonl"], ["--config", "x"], ["a.jsonl", "--config", "x"]])
def test_two_paths_come_before_the_flags(argv):
    with pytest.raises(ConfigError, match="give two paths before the flags"):
        take_paths(argv)


def test_input_and_output_are_two_files():
    with pytest.raises(ConfigError, match="both input and output"):
        take_paths(["a.jsonl", "./a.jsonl"])


async def test_a_file_that_is_done_needs_no_service(source, score, out, capsys):
    path = source(compared("a 4", "b 2", -2))
    await score(path, Judge())
    await asyncio.to_thread(main, [str(path), str(out), "--reward_url", "http://127.0.0.1:9", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["pairs"]["all"]["agreement"] == 1 and "1 rows, 0 skipped" in lines[0]
