"""What is said of a start, while it goes on and afterwards."""

import sys

from reward_server.fetch_state import ByteRate, FetchState
from reward_server.fetch_teller import BarTeller, LineTeller
from reward_server.fetch_wait import until_fetched
from reward_server.model_files import needed
from reward_server.startup import GenrmProcess, Startup

GB = 10**9
HALF = FetchState("fetches", 12_300_000_000, 99_800_000_000, 410e6, 30.0, 12_300_000_000)
HERE = FetchState("here", 99_800_000_000, 99_800_000_000, 0.0, 812.0, 99_800_000_000)


def test_a_fetch_says_what_is_done_how_fast_and_how_long_yet():
    assert HALF.line == "12.3 GB of 99.8 GB, 410 MB/s, 3 min 34 s left"
    assert HERE.line == "99.8 GB here, 99.8 GB fetched in 13 min 32 s"
    assert FetchState("waits", 1, 2 * GB).line == "1 B of 2.0 GB (another process fetches)"


def test_the_rate_is_that_of_the_last_half_minute():
    rate = ByteRate()
    assert rate.note(0.0, 0) == 0.0 and rate.note(10.0, 100) == 10.0
    assert [rate.note(float(second), 100) for second in (30, 45, 80)][-1] == 0.0


def test_a_start_is_its_files_and_its_loading():
    done = Startup("", 812.0, 143.2, HERE)
    assert done.line == (
        "ready in 15 min 56 s: files 99.8 GB here, 99.8 GB fetched in 13 min 32 s, loaded in 2 min 24 s"
    )
    assert Startup("", 0.0, 48.0).line == "ready in 48 s: loaded in 48 s"


def test_a_process_says_what_it_does_until_it_answers_and_forgets_an_earlier_start(tmp_path):
    state_file = tmp_path / "judge-0.fetch.json"
    HERE.write(state_file)
    process = GenrmProcess("judge-0", [sys.executable, "-c", ""], {}, tmp_path / "log", "http://a:1", "", state_file)
    process.start()
    try:
        assert process.startup() == Startup("fetches: asks the hub for its files", None, None, FetchState())
        HALF.write(state_file)
        assert process.startup().doing == "fetches: 12.3 GB of 99.8 GB, 410 MB/s, 3 min 34 s left"
        HERE.write(state_file)
        assert process.startup() == Startup("loads", 812.0, None, HERE)
    finally:
        process.stop()


def test_a_log_gets_a_line_when_something_begins_and_now_and_then():
    said = []
    teller = LineTeller("toys/judge", said.append)
    for state in (FetchState(), HALF, HALF, HERE, HERE):
        teller.tell(state)
    assert said == [f"toys/judge: {HALF.line}", f"toys/judge: {HERE.line}"]


def test_a_terminal_gets_one_line_that_moves_and_ends_once(capsys):
    teller = BarTeller("toys/judge", sys.stdout)
    for state in (FetchState(), HALF, HERE, HERE):
        teller.tell(state)
    drawn = capsys.readouterr().out
    assert drawn.count("\n") == 1 and drawn.count("\r") == 3
    assert "[###                     ] 12.3 GB" in drawn and f"[{24 * '#'}] {HERE.line}\n" in drawn


async def test_who_waits_for_files_elsewhere_hears_of_them_and_of_nothing_where_all_are_there():
    states, said = iter([FetchState(), FetchState("here", GB, GB)]), []

    async def look():
        return next(states)

    await until_fetched(look, "toys/judge", said.append)
    assert said == []
    states = iter([HERE])
    await until_fetched(look, "toys/judge", said.append)
    assert said == [f"toys/judge: {HERE.line}"]


def test_of_a_repository_one_format_of_weights_is_needed_and_what_is_small():
    names = ["config.json", "model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "original/a.json"]
    assert needed([*names, "README.md", "code/x.py", "training_args.bin", "tokenizer.model"]) == [
        "config.json", "model.safetensors", "code/x.py", "tokenizer.model",
    ]  # fmt: skip
    assert needed(["config.json", "pytorch_model.bin", "training_args.bin"]) == ["config.json", "pytorch_model.bin"]
    assert needed(["params.json", "consolidated.safetensors"]) == ["params.json", "consolidated.safetensors"]
