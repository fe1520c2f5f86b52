"""Benchmarks' files, read back as each benchmark's own tools read them (the readers here do what those programs do)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.answer_files import FORMS, Answer, Writer, read_questions, write_answers
from wire.errors import ConfigError

WRITER = Writer("rloo-120", temperature=0.0, max_tokens=2048, at=1764036000.5)
TEXT = "# Rivers\n\n1. **Nile**\n2. __Amur__\n- Rhine\n```\n# no header\n- no list\n```\n### End"
V01 = {"question_id": "a1", "category": "arena-hard-v0.1", "cluster": "x", "turns": [{"content": "name rivers"}]}
V2 = {"uid": "u1", "category": "hard_prompt", "subcategory": "coding", "prompt": "name rivers"}
MT = {"question_id": 81, "category": "writing", "turns": ["write a poem", "now shorter"]}
WILD = {
    "session_id": "s1",
    "primary_tag": "Planning",
    "conversation_input": [
        {"role": "user", "content": "hello", "language": "English"},
        {"role": "assistant", "content": "hi", "language": "English"},
        {"role": "user", "content": "plan my day", "language": "English"},
    ],
    "checklist": ["is it a plan?"],
}
ALPACA = {"instruction": "name rivers", "output": "none", "generator": "text_davinci_003", "dataset": "helpful_base"}


def questions_in(folder: Path, *rows: dict[str, Any], as_list: bool = False) -> Path:
    path = folder / "questions"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines) + "\n\n")
    return path


def written(folder: Path, form: str, *rows: dict[str, Any], answers: list[list[Answer]] | None = None) -> Path:
    """The answers file of these questions."""
    questions = read_questions(questions_in(folder, *rows), form)
    answers = answers or [[Answer(TEXT, 40)] * (1 + len(question.later)) for question in questions]
    path = folder / f"{WRITER.model}.jsonl"
    write_answers(path, form, questions, answers, WRITER)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    return path


def model_answers(path: Path, key: str) -> dict[Any, dict[str, Any]]:
    """As load_model_answers of FastChat and of Arena-Hard: by the question's id, under the file's name."""
    assert path.name[:-6] == WRITER.model
    return {row[key]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("form", "row", "contents", "later"),
    [
        ("arena-hard", V01, ["name rivers"], ()),
        ("arena-hard", V2, ["name rivers"], ()),
        ("mt-bench", MT, ["write a poem"], ("now shorter",)),
        ("wildbench", WILD, ["hello", "hi", "plan my day"], ()),
        ("alpaca-eval", ALPACA, ["name rivers"], ()),
    ],
)
def test_questions_are_read_from_lines_and_from_a_list(
    tmp_path: Path, form: str, row: dict[str, Any], contents: list[str], later: tuple[str, ...], as_list: bool
) -> None:
    (question,) = read_questions(questions_in(tmp_path, row, as_list=as_list), form)
    assert [turn["content"] for turn in question.conversation] == contents and question.later == later
    assert question.conversation[-1]["role"] == "user" and question.row == row
    assert all(set(turn) == {"role", "content"} for turn in question.conversation)


def test_arena_hards_first_version_finds_ids_turns_and_style(tmp_path: Path) -> None:
    answer = model_answers(written(tmp_path, "arena-hard", V01, V01 | {"question_id": "a2"}), "question_id")["a1"]
    assert (answer["model_id"], answer["tstamp"]) == (WRITER.model, WRITER.at) and answer["answer_id"]
    # gen_judgment: prompt_args[f"answer_{i+1}"] = turn["content"] for turn in answer["choices"][0]["turns"]
    assert [turn["content"] for turn in answer["choices"][0]["turns"]] == [TEXT]
    assert answer["choices"][0]["index"] == 0 and answer["choices"][0]["turns"][0]["token_len"] == 40
    assert list(answer["conv_metadata"]) == ["token_len", "header_count", "list_count", "bold_count"]


def test_arena_hards_second_version_finds_the_answer_and_its_style_features(tmp_path: Path) -> None:
    answer = model_answers(written(tmp_path, "arena-hard", V2), "uid")["u1"]
    assert answer["model"] == WRITER.model and answer["ans_id"] and answer["tstamp"] == WRITER.at
    assert answer["messages"][0] == {"role": "user", "content": "name rivers"}
    assert answer["messages"][-1]["content"]["answer"] == TEXT  # gen_judgment
    # show_result: [v if isinstance(v, int) else sum(v.values()) for v in metadata.values()], tokens first, three more
    features = [v if isinstance(v, int) else sum(v.values()) for v in answer["metadata"].values()]
    assert features == [40, 2, 3, 2]
    assert answer["metadata"]["header_count"] == {"h1": 1, "h2": 0, "h3": 1, "h4": 0, "h5": 0, "h6": 0}


def test_mt_bench_finds_two_turns_of_text_under_a_whole_number(tmp_path: Path) -> None:
    answers = [[Answer("roses", 1), Answer("ro", 1)]]
    answer = model_answers(written(tmp_path, "mt-bench", MT, answers=answers), "question_id")[81]
    # run_judge_single: answer["choices"][0]["turns"][1]; reorg_answer_file: int(question_id)
    assert answer["choices"] == [{"index": 0, "turns": ["roses", "ro"]}]
    assert set(answer) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert int(answer["question_id"]) == 81 and answer["model_id"] == WRITER.model


def test_wildbench_finds_each_session_in_the_questions_order(tmp_path: Path) -> None:
    path = written(tmp_path, "wildbench", WILD, WILD | {"session_id": "s0"})
    rows = json.loads(path.read_text())
    assert [row["session_id"] for row in rows] == ["s1", "s0"]  # eval.py asserts it row by row
    row = rows[0]
    output = row["output"][0] if isinstance(row["output"], list) else row["output"]  # as eval.py
    assert output == TEXT and row["generator"] == WRITER.model and row["primary_tag"] == "Planning"
    assert row["chat_history"] == ["hello", "hi", "plan my day"]
    assert row["configs"] == {
        "engine": "vllm", "repetition_penalty": 1.0, "temperature": 0.0, "top_p": 1.0, "max_tokens": 2048
    }  # fmt: skip
    assert set(row) == {
        *("session_id", "chat_history", "model_input", "output", "generator", "configs", "dataset", "primary_tag")
    }


def test_alpaca_eval_finds_instruction_output_and_generator(tmp_path: Path) -> None:
    (row,) = json.loads(written(tmp_path, "alpaca-eval", ALPACA).read_text())
    assert row == {
        "instruction": "name rivers", "output": TEXT, "generator": WRITER.model, "dataset": "helpful_base"
    }  # fmt: skip


def test_text_of_any_language_survives(tmp_path: Path) -> None:
    row = MT | {"turns": ["napiš báseň 诗"]}
    path = written(tmp_path, "mt-bench", row, answers=[[Answer("růže\u2028 诗", 3)]])
    assert "růže" in path.read_text()
    (line,) = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert line["choices"][0]["turns"] == ["růže\u2028 诗"]


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        ("mt-bench", {"question_id": 1, "turns": []}, "'turns' is no list of turns"),
        ("mt-bench", {"question_id": 1, "turns": ["a", 5]}, "'turns' holds something that is no text"),
        ("mt-bench", {"turns": ["a"]}, "'question_id' is missing"),
        ("mt-bench", V01, "'turns' holds something that is no text"),
        ("arena-hard", MT, "'turns' holds something that is no text"),
        ("arena-hard", {"uid": "u"}, "'prompt' is no text"),
        ("arena-hard", {"prompt": "p"}, "'uid' is missing"),
        ("wildbench", MT, "'conversation_input' is no list of turns"),
        ("wildbench", WILD | {"conversation_input": WILD["conversation_input"][:2]}, "does not end in a user turn"),
        ("wildbench", WILD | {"conversation_input": [{"content": "x"}]}, "a turn without a role"),
        ("alpaca-eval", {"instruction": ""}, "'instruction' is no text"),
    ],
)
def test_a_row_that_is_no_question_is_named_with_its_line(
    tmp_path: Path, form: str, row: dict[str, Any], words: str
) -> None:
    good = {"arena-hard": V2, "mt-bench": MT, "wildbench": WILD, "alpaca-eval": ALPACA}[form]
    path = questions_in(tmp_path, good, row)
    with pytest.raises(ConfigError) as error:
        read_questions(path, form)
    assert str(error.value).startswith(f"questions {path}, line 2: ") and words in str(error.value)
    assert str(error.value).endswith(f"this is no question of {form}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question_id": 1, "turns": ["a"]}\n{"question', "line 2: "),
        ('[{"question_id": 1, "turns": ["a"]}', "give JSON lines, or one JSON list"),
        ("\n\n", "is empty; name a file with questions of mt-bench"),
        ("[]", "is empty"),
        ("5", "line 1: it is no JSON object"),
        (
            '{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}',
            "line 2: question_id 1 is that of line 1",
        ),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "q").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_questions(tmp_path / "q", "mt-bench")
    assert words in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "q").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "q"):
        with pytest.raises(ConfigError, match=f"questions {path} cannot be read"):
            read_questions(path, next(iter(FORMS)))
