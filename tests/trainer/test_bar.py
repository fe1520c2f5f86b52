"""Progress in a log is lines that people can read."""

import io

from tqdm import tqdm

from trainer import bar as module
from trainer.bar import LogLines


def test_a_log_gets_whole_lines_and_the_last_state(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with LogLines(total=8, unit="ep", file=log, mininterval=0) as lines:
        for _ in range(8):
            lines.update()
        tqdm.write("ready: learner", file=log)
    assert "\r" not in log.getvalue() and "\n\n" not in log.getvalue()
    said = log.getvalue().splitlines()
    assert "ready: learner" in said and "8/8" in said[-1]


def test_a_log_is_not_filled_and_a_bar_that_does_not_stay_leaves_nothing():
    log = io.StringIO()
    for _ in LogLines(range(100_000), file=log, mininterval=0, leave=False):
        pass
    assert log.getvalue() == ""
    with LogLines(total=2, file=log) as lines:
        lines.update(2)
    (line,) = log.getvalue().splitlines()
    assert line.startswith("100%")


def test_each_step_of_a_run_has_a_line_with_what_belongs_to_it():
    log = io.StringIO()
    with LogLines(total=8, file=log, mininterval=0) as lines:
        for step in (1, 2):
            lines.update(4)
            for tail in ("learner waits for replicas", "learner waits for the judge"):
                lines.set_postfix_str(f"step {step}/2 · {tail}")
    first, second, last = log.getvalue().splitlines()
    assert " 4/8 " in first and "step 1/2 · learner waits for replicas" in first
    assert " 8/8 " in second and "step 2/2 · learner waits for replicas" in second
    assert "step 2/2 · learner waits for the judge" in last
