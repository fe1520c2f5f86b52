"""How a program reads its settings: one YAML file, the flags, and every mistake as one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wire.errors import ConfigError, ServiceError
from wire.settings import ServiceSettings, parse_settings, run_program


@dataclass
class Brew(ServiceSettings):
    """Settings of each type that the real ones use."""

    cups: int = field(default=3, metadata={"help": "How many."})
    strength: float = field(default=0.5, metadata={"help": "How strong."})
    bean: str = field(default="arabica", metadata={"help": "Which bean."})
    milk: bool = field(default=True, metadata={"help": "With milk."})
    sugar: bool = field(default=False, metadata={"help": "With sugar."})
    origin: str | None = field(default="java", metadata={"help": "Where from."})
    size: str = field(default="small", metadata={"help": "Which size.", "choices": ["small", "large"]})
    rollout_urls: list[str] = field(default_factory=list, metadata={"help": "Where to.", "nargs": "*"})
    ports: list[int] = field(default_factory=list, metadata={"help": "Ports.", "nargs": "*"})


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., Brew]:
    """Parse the text of a file (or no file) and flags."""

    def call(text: str | None = None, *flags: str, strict: bool = True) -> Brew:
        argv = list(flags)
        if text is not None:
            path = tmp_path / "brew.yaml"
            path.write_text(text)
            argv = ["--config", str(path), *argv]
        return parse_settings(Brew, argv, strict_file=strict)[0]

    return call


def test_a_flag_beats_the_file_and_the_file_beats_the_default(parse) -> None:
    settings = parse("cups: 5\nstrength: 2\nmilk: false\n", "--cups", "7", "--sugar")
    assert (settings.cups, settings.strength, settings.bean) == (7, 2.0, "arabica")
    assert (settings.milk, settings.sugar) == (False, True)
    assert isinstance(settings.strength, float)


def test_a_flag_may_be_written_with_an_equals_sign_and_so_may_the_config(tmp_path) -> None:
    path = tmp_path / "a=b.yaml"
    path.write_text("bean: robusta\n")
    settings, namespace = parse_settings(Brew, ["--cups=4", f"--config={path}", "--milk=false"], strict_file=True)
    assert (settings.cups, settings.bean, settings.milk) == (4, "robusta", False)
    assert namespace.config == str(path)


def test_without_a_file_the_defaults_stand(parse) -> None:
    assert parse() == Brew()


def test_numbers_that_yaml_takes_for_text_are_numbers(parse) -> None:
    assert parse("strength: 1e-6\n").strength == 1e-6  # YAML 1.1 wants a dot in the mantissa


def test_a_list_may_be_given_by_flag_or_file_and_one_value_is_a_list_of_one(parse) -> None:
    assert parse(None, "--rollout_urls", "http://a", "http://b", "--cups", "1").rollout_urls == ["http://a", "http://b"]
    assert parse("rollout_urls: [http://a, http://b]\nports: [1, '2']\n").ports == [1, 2]
    assert parse("rollout_urls: http://a\n").rollout_urls == ["http://a"]
    assert parse("rollout_urls: []\n").rollout_urls == []
    with pytest.raises(ConfigError, match=r"rollout_urls.*at least one"):
        parse("rollout_urls: [http://a]\n", "--rollout_urls")


def test_lists_of_two_parses_are_not_one_list(parse) -> None:
    parse().rollout_urls.append("http://a")
    assert parse().rollout_urls == []


def test_an_empty_value_is_none_where_none_is_a_value(parse) -> None:
    assert parse("origin:\n").origin is None
    assert parse("origin: null\n", "--origin", "sumatra").origin == "sumatra"


def test_a_key_that_nobody_knows_is_refused_by_the_trainer_and_skipped_by_a_server(parse) -> None:
    with pytest.raises(ConfigError, match=r"brew\.yaml: unknown setting 'tea'"):
        parse("cups: 2\ntea: 1\n")
    assert parse("cups: 2\ntea: 1\n", strict=False).cups == 2


MISTAKES = {
    "an unknown flag": (None, ["--tea", "1"], "--tea"),
    "a flag's abbreviation": (None, ["--cup", "1"], "--cup"),
    "a bare word": (None, ["tea"], "tea"),
    "text for a flag's int": (None, ["--cups", "x"], "cups.*'x'"),
    "a flag without its value": (None, ["--cups"], "cups: expected one argument"),
    "a flag's choice": (None, ["--size", "huge"], "size.*huge"),
    "text for an int": ("cups: x\n", [], "cups: invalid value 'x'"),
    "a list for an int": ("cups: [1, 2]\n", [], r"cups: invalid value \[1, 2\]"),
    "a fraction for an int": ("cups: 2.5\n", [], "cups: invalid value 2.5"),
    "a bool for an int": ("cups: true\n", [], "cups: invalid value True"),
    "a bool for a float": ("strength: no\n", [], "strength: invalid value False"),
    "a bool for a text": ("bean: no\n", [], "bean: invalid value False"),
    "a mapping for a text": ("bean: {a: 1}\n", [], "bean: invalid value"),
    "a list for a text": ("bean: [a, b]\n", [], "bean: invalid value"),
    "text for a bool": ("milk: maybe\n", [], "milk: invalid value 'maybe'"),
    "a list for a bool": ("milk: [true]\n", [], "milk: invalid value"),
    "text in a list of ints": ("ports: [1, x]\n", [], "ports: invalid value"),
    "a mapping for a list": ("rollout_urls: {a: 1}\n", [], "rollout_urls: invalid value"),
    "a choice": ("size: huge\n", [], "size: invalid choice 'huge'.*small, large"),
    "nothing for an int": ("cups:\n", [], "cups: invalid value None"),
    "nothing for a text": ("bean: null\n", [], "bean: invalid value None"),
    "nothing for a list": ("ports:\n", [], "ports: invalid value None"),
    "a file that is a list": ("- cups\n", [], "must hold `name: value` lines"),
    "an empty file": ("", [], "must hold `name: value` lines"),
    "no YAML": ("cups: [1\nmilk: {", [], "is no YAML"),
    "a value the check refuses": ("startup_timeout_s: 0\n", [], r"startup_timeout_s \(0.0\) must be positive"),
    "an address that is a name": ("bind_address: localhost\n", [], "bind_address 'localhost' is no IP address"),
}


@pytest.mark.parametrize(("text", "flags", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_that_names_it(parse, text, flags, message) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse(text, *flags)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"cups: \xff\xfe\n")
    for path, message in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory"), (binary, "no YAML")):
        with pytest.raises(ConfigError, match=message) as error:
            parse_settings(Brew, ["--config", str(path)], strict_file=True)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="--config needs the path"):
        parse_settings(Brew, ["--config"], strict_file=True)


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [(0, 0, ""), (None, 0, ""), (130, 130, ""), (ConfigError("cups (0)"), 2, "error: cups (0)\n"),
     (ServiceError("replica-0 ended"), 1, "error: replica-0 ended\n"), (KeyboardInterrupt(), 130, "")],
)  # fmt: skip
def test_a_program_ends_with_a_code_and_at_most_one_line(capsys, outcome, code, line) -> None:
    def main() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == line
