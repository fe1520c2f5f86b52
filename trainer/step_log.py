"""`<output_dir>/steps.jsonl`: what each step was made of, one line a step.

    {"step": 7, "version": "0.7", "prompts": [24, 25, 27, 28], "lags": [1, 0, 0, 0], "versions": ["0.5", "0.6"],
     "dropped": 1, "completions_by_replica": {"http://10.0.0.7:8000": 12, "http://10.0.0.8:8000": 4}}

`prompts` are places in the prompt stream (occurrences) in the order in which the groups were trained on, `version` the
weights that the step made, `lags` one a group, `versions` all weights that wrote any of its tokens, `dropped` the
groups dropped since the run's start. In the stream no place is skipped but by a drop, and none is trained on twice:
that can be read off here.

A fresh run begins the file anew. A resumed one goes on in it after the step that it was restored to: what its earlier
life wrote of later steps is gone with the weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.group import Group
from wire.generation import PolicyVersion

STEPS_FILE = "steps.jsonl"


class StepLog:
    """Writes the lines of one run.

    Args:
        folder: the run's output_dir; made where it is missing.
        first_step: steps done before, by the run that is resumed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._path = folder / STEPS_FILE
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= first_step]
        aside = self._path.with_suffix(".partial")
        aside.write_text("".join(f"{line}\n" for line in kept))
        aside.rename(self._path)

    def write(self, version: PolicyVersion, groups: Sequence[Group], lags: Sequence[int], num_dropped: int) -> None:
        """Add the line of one step."""
        written_by = Counter(completion.replica for group in groups for completion in group.completions)
        labels = {span.version for group in groups for completion in group.completions for span in completion.versions}
        line = {
            "step": version.step,
            "version": version.label,
            "prompts": [group.prompt.occurrence for group in groups],
            "lags": list(lags),
            "versions": sorted(labels, key=PolicyVersion.parse),
            "dropped": num_dropped,
            "completions_by_replica": dict(sorted(written_by.items())),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """The lines of the file, without one whose writing was broken off; none where there is no file."""
    with suppress(FileNotFoundError):
        return [line for line in path.read_text().split("\n")[:-1] if line]
    return []
