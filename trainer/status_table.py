"""A run's state as a table for people."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 16  # of one kind; what has trouble comes first
MOST_REASONS = 8
URL_WIDTH = 28


def lines(state: Mapping[str, Any], width: int) -> list[str]:
    """The table of a status file's content (see `trainer/status_file.py`), no line longer than `width`.

    What tells most comes first: a small terminal shows the beginning.
    """
    parts = [
        _progress(state["progress"]),
        [f"WARNING {warning}" for warning in state["warnings"]],
        _waits(state["waits"], width),
        [*_queue(state["queue"]), *_learner(state["learner"])],
        _replicas(state["replicas"], width),
        _judge(state["judge"], width),
        _said(state["said"], width),
    ]
    found = [line for part in parts if part for line in (*part, "")][:-1]
    return [_cut(line, width) for line in found]


def duration(seconds: float | None) -> str:
    """A time for people: `3 s`, `2 min`, `1 h 05 min`, `3 d 4 h`."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _progress(progress: Mapping[str, Any]) -> list[str]:
    lag = "-" if progress["lag_mean"] is None else f"{progress['lag_mean']:.1f}, at most {_number(progress['lag_max'])}"
    return [
        f"step {progress['step']}/{progress['num_steps']} · version {progress['version'] or 'none yet'} · "
        f"{progress['episodes']:,} of {progress['total_episodes']:,} episodes · {duration(progress['left_s'])} left",
        f"{_number(progress['episodes_per_s'], 2)} episodes/s · {_number(progress['tokens_per_s'])} tokens/s · "
        f"lag {lag} · score {_number(progress['score'], 2)}",
    ]


def _replicas(replicas: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    if not replicas:
        return ["REPLICAS   none yet"]
    head = f"{'REPLICA':<{URL_WIDTH}} {'STATE':<9} {'SINCE':>10} {'VERSION':>9} {'PROMPTS':>8} {'TOKENS/S':>9}"
    rows: list[str] = []
    for row in _trouble_first(replicas)[:MOST_ROWS]:
        rows.append(
            f"{_cut(row['url'], URL_WIDTH):<{URL_WIDTH}} {row['state']:<9} {duration(row['since_s']):>10} "
            f"{row['version'] or '-':>9} {_number(row['in_flight']):>8} {_number(row['tokens_per_s']):>9}"
        )
        if row["reason"] and row["state"] != "ready":
            rows += _wrapped(row["reason"], width, "    ")
    return [head, *rows, *_rest(replicas)]


def _judge(judge: Mapping[str, Any], width: int) -> list[str]:
    if judge["url"] is None:
        return ["JUDGE      not up yet"]
    age = f", as of {duration(judge['age_s'])} ago" if judge["age_s"] and judge["age_s"] > 15 else ""
    title = f"JUDGE {judge['url']}, {_number(judge['queue_depth'])} calls wait there{age}"
    head = f"{'GENRM SERVER':<{URL_WIDTH}} {'STATE':<9} {'IN FLIGHT':>10} {'ANSWERS':>9} {'ANSWERS/S':>9} {'LOSSES':>8}"
    rows: list[str] = []
    for row in _trouble_first(judge["servers"])[:MOST_ROWS]:
        rows.append(
            f"{_cut(row['url'], URL_WIDTH):<{URL_WIDTH}} {row['state']:<9} {_number(row['in_flight']):>10} "
            f"{_number(row['answers']):>9} {_number(row['answers_per_s'], 2):>9} {_number(row['losses']):>8}"
        )
        if row.get("doing") and row["state"] == "starting":
            rows += _wrapped(row["doing"], width, "    ")
    return [title, head, *rows, *_rest(judge["servers"])]


def _learner(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ranks that do the same share a row: they go in step."""
    doing: dict[str, list[Mapping[str, Any]]] = {}
    for rank in ranks:
        doing.setdefault(rank["does"] or "nothing", []).append(rank)
    rows = []
    for does, group in doing.items():
        name = _ranges([rank["rank"] for rank in group])
        since = max((rank["since_s"] for rank in group if rank["since_s"] is not None), default=None)
        rows.append(f"{'LEARNER rank' if len(group) == 1 else 'LEARNER ranks'} {name}: {does}, {duration(since)}")
    return rows


def _queue(queue: Mapping[str, Any]) -> list[str]:
    if not queue["groups"]:
        return []
    groups = " · ".join(f"{_number(num)} {name}" for name, num in queue["groups"].items())
    stages = ", ".join(f"{_number(num)} at {name.removeprefix('the ')}" for name, num in queue["stages"].items())
    return [f"QUEUE   groups: {groups}{' (' if stages else ''}{stages}{')' if stages else ''}"]


def _waits(waits: Mapping[str, Any], width: int) -> list[str]:
    if not waits["by_reason"]:
        return []
    kinds = waits["by_reason"]
    rows = []
    for kind in kinds[:MOST_REASONS]:
        whom = kind["peers"] if kind["num_peers"] == 1 else f"{kind['num_peers']} x {kind['peers']}"
        what = f"{kind['num']:>6}  {whom}: {kind['reason']}"
        rows.append(f"{what:<42} oldest {duration(kind['oldest_s']):>6}: {kind['oldest']}")
    more = [f"        and {len(kinds) - MOST_REASONS} other reasons"] if len(kinds) > MOST_REASONS else []
    chains = [line for chain in waits["chains"] for line in _wrapped(chain, width, "  ")]
    return ["WHO WAITS FOR WHOM", *chains, *rows, *more]


def _said(said: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    if not said:
        return []
    rows = []
    for one in said:
        at = time.strftime("%H:%M:%S", time.localtime(one["at"]))
        rows += _wrapped(f"{at}  {one['line']}", width, "  ")
    return ["LAST SAID", *rows]


def _trouble_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: row["state"] == "ready")


def _rest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows that are not shown come to."""
    if len(rows) <= MOST_ROWS:
        return []
    states: dict[str, int] = {}
    for row in _trouble_first(rows)[MOST_ROWS:]:
        states[row["state"]] = states.get(row["state"], 0) + 1
    return ["and " + ", ".join(f"{count} more {state}" for state, count in states.items())]


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """A long text on a few lines, those after the first further in."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + 4 * " ", max_lines=3, placeholder=" …"
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
