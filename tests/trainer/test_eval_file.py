"""Files of prompts, whole ones and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.eval_file import read_conversations
from wire.errors import ConfigError


def test_three_shapes_of_a_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(
        '{"context": [{"role": "user", "content": "a"}], "language": "english", "response1": "x"}\n\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]}\n'
        '{"prompt": "c"}\n'
        '{"prompt": [{"role": "user", "content": "d"}]}\n'
    )
    conversations = read_conversations(path)
    assert [turns[-1] for turns in conversations] == [{"role": "user", "content": text} for text in "abcd"]
    assert [len(turns) for turns in conversations] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "no object with one of context, messages, prompt"),
        ('{"text": "a"}', "no object with one of"),
        ('{"context": "a"}', "`context` must be a list of role/content turns"),
        ('{"messages": [{"role": "user"}]}', "`messages` must be a list of role/content turns"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "must end in a user's turn"),
        ('{"messages": []}', "must end in a user's turn"),
        ('{"prompt": " "}', "must end in a user's turn that says something"),
        ('{"prompt": 3}', "`prompt` must be a list"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ConfigError, match=f"eval.jsonl, line 2: .*{why}.*correct it"):
        read_conversations(path)


def test_a_file_that_is_not_there_or_is_empty_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_conversations(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"empty.jsonl holds no prompt"):
        read_conversations(tmp_path / "empty.jsonl")
