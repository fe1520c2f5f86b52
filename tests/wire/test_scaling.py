"""The words that scale a pool of servers."""

import pytest

from wire.errors import ConfigError
from wire.scaling import take_command, wanted_count


@pytest.mark.parametrize(
    ("words", "command", "rest"),
    [
        (["3", "--reward_url", "u"], ["3"], ["--reward_url", "u"]),
        (["-1"], ["-1"], []),
        (["status", "--config", "f"], ["status"], ["--config", "f"]),
        (["add", "http://x:1", "--config", "f"], ["add", "http://x:1"], ["--config", "f"]),
    ],
)
def test_the_command_stands_before_the_flags(words, command, rest):
    assert take_command(words) == (command, rest)


@pytest.mark.parametrize("words", [[], ["x"], ["add"], ["add", "x:1"], ["--config", "f"], ["+"], ["1.5"]])
def test_what_is_no_command_is_refused_with_those_there_are(words):
    with pytest.raises(ConfigError, match=r"give a number of servers"):
        take_command(words)


@pytest.mark.parametrize(("word", "now", "count"), [("3", 5, 3), ("+2", 5, 7), ("-5", 5, 0), ("0", 2, 0)])
def test_a_sign_counts_from_what_is_there(word, now, count):
    assert wanted_count(word, now) == count


def test_fewer_than_none_is_refused():
    with pytest.raises(ConfigError, match=r"-3 of 2 servers leaves fewer than none; give at most -2"):
        wanted_count("-3", 2)
