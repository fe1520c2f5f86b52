"""`python -m reward_server.judge_file IN OUT --config FILE`: score the responses of a file, without a run.

IN is .jsonl or .jsonl.gz, its rows as in `rows.py`: K responses to a conversation, which get K scores by the service's
pairing and aggregation, or two responses that people compared, which are judged in both orders; how far judge and
people agree is printed at the end, as a table and as one JSON line. OUT gets a row as soon as it is done. Started again
with the same files the program goes on with the rows that are not there yet. To have one judged again, delete its line
in OUT. `--reward_url URL` uses a service that runs; else one is started and ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from reward_server.aggregate import mean_scores
from reward_server.agreement import JudgedPair, check_answered, judge_pair
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.file_summary import Summary
from reward_server.preferences import PreferencePair
from reward_server.rows import Candidates, Done, Row, read_done, read_rows, without_text
from reward_server.seeds import derived_seed
from reward_server.service import reward_client
from wire.errors import ConfigError
from wire.judgement import GroupVerdict, PlacedVerdict
from wire.settings import parse_settings, run_program

IDENTITY = ("model", "dialect", "principle")


@dataclass
class FileJudge:
    """Judges rows and writes each to `out` when it is done.

    `done` has the verdicts of each row that is written, and who judged them.
    """

    client: RewardClient
    settings: RewardSettings
    out: TextIO
    done: Done

    async def judge_all(self, rows: Sequence[Row], num_at_once: int) -> None:
        """All rows that are not done yet, `num_at_once` at a time; the service's own queue says when to wait.

        Raises:
            ServiceError: the service itself is lost; what was done until then is in the file.
            Unauthorized: the service refuses the token.
        """
        waiting = iter([row for row in rows if row.number not in self.done.verdicts])
        with tqdm(total=len(rows), initial=len(self.done.verdicts), desc="judged", unit="row", mininterval=1.0) as bar:
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(num_at_once, len(rows))):
                        workers.create_task(self._work(waiting, bar))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors

    async def _work(self, waiting: Iterable[Row], bar: Any) -> None:
        for row in waiting:
            self._write(row, await self._verdict(row.task))
            bar.update()

    async def _verdict(self, task: PreferencePair | Candidates) -> GroupVerdict:
        if isinstance(task, PreferencePair):
            both = await judge_pair(self.client, task)
            verdicts = (
                PlacedVerdict(first=0, second=1, verdict=both.in_order),
                PlacedVerdict(first=1, second=0, verdict=both.turned),
            )
            scores = mean_scores(2, verdicts, tie_break=self.settings.tie_break).scores
            return GroupVerdict(scores=scores, verdicts=verdicts)
        seed = derived_seed("file", *task.responses)
        group = await self.client.group(task.conversation, [_given(text) for text in task.responses], seed)
        for placed in group.verdicts:
            check_answered(self.client, placed.verdict)
        return group

    def _write(self, row: Row, verdict: GroupVerdict) -> None:
        reasons = sorted({placed.verdict.missing for placed in verdict.verdicts if placed.verdict.missing})
        line = {"row": row.number, "input": row.digest, "judge": self.done.judge, "scores": verdict.scores}
        line |= {"missing": reasons} | _preference(row.task, verdict.verdicts)
        line |= verdict.model_dump(mode="json", exclude={"scores"})
        self.out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.out.flush()
        self.done.verdicts[row.number] = without_text(verdict.verdicts)


def _given(text: str) -> asyncio.Future[str | None]:
    future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    future.set_result(text)
    return future


def _preference(task: PreferencePair | Candidates, verdicts: Sequence[PlacedVerdict]) -> dict[str, Any]:
    """What people and judge prefer; `lean` as in `agreement.py`."""
    if isinstance(task, Candidates):
        return {}
    both = JudgedPair(task, verdicts[0].verdict, verdicts[1].verdict)
    return {"preference": task.preference, "domain": task.domain, "lean": both.lean, "agrees": both.agrees}


async def judge_file(settings: RewardSettings, rows: Sequence[Row], out: Path, done: Done) -> None:
    """Judge the rows that are not done and add them to `out` and to `done`.

    Raises:
        ConfigError: `out` was written with another judge or scheme, or cannot be written.
        ServiceError: the service did not start, or was lost.
    """
    with closing(_open(out)) as file:
        async with reward_client(settings) as client:
            info = await client.info()
            judge = {name: info[name] for name in IDENTITY} | _scheme(settings)
            if done.judge not in (None, judge):
                raise ConfigError(f"{out} was judged by {done.judge}, and this is {judge}; name another output")
            done.judge = judge
            places = info["limits"]["max_in_flight"] * max(1, len(info["servers"]))
            await FileJudge(client, settings, file, done).judge_all(rows, max(1, places // 2))  # two verdicts a row


def _scheme(settings: RewardSettings) -> dict[str, Any]:
    names = ("judge_pairing", "judge_aggregation", "judge_votes", "judge_calls_per_group", "tie_break")
    return {name.removeprefix("judge_"): getattr(settings, name) for name in names}


def _open(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def take_paths(argv: Sequence[str]) -> tuple[Path, Path, list[str]]:
    """(input, output, the flags that follow). Raises ConfigError where there are not two paths."""
    paths = [word for word in argv[:2] if not word.startswith("-")]
    if len(paths) < 2:
        raise ConfigError("give two paths before the flags: the file to judge and the file to write")
    if Path(paths[0]).resolve() == Path(paths[1]).resolve():
        raise ConfigError(f"{paths[0]} is both input and output; name another output")
    return Path(paths[0]), Path(paths[1]), list(argv[2:])


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read and check the rows, judge, summarise."""
    source, out, flags = take_paths(sys.argv[1:] if argv is None else argv)
    settings, _ = parse_settings(RewardSettings, flags, strict_file=False)
    rows, num_skipped = read_rows(source)
    done = read_done(out, rows)
    if len(done.verdicts) < len(rows):
        asyncio.run(judge_file(settings, rows, out, done))
    summary = Summary.of(rows, done.verdicts, num_skipped)
    print("\n".join([*summary.lines(), json.dumps(summary.as_json())]), flush=True)


if __name__ == "__main__":
    run_program(main)
