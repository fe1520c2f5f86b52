"""The memory of a run: `<output_dir>/ledger.sqlite`.

    completions   what replicas wrote: tokens, log-probs, version spans            until no checkpoint needs them
    verdicts      what the judge said of pairs                                     until no checkpoint needs them
    trained       which group was trained on in which step, and with what numbers  for ever
    dropped       which were passed over, and why                                  for ever
    steps         every version that was made, and the learner's numbers           for ever
    lineages      where each branched off                                          for ever
    lives         where each life of the run went on, and with which settings      for ever

Whatever died, what was paid for is there at the next start: completions of weights that are ancestors of those that are
trained now are used as long as the bound on lag allows, and verdicts whatever the weights, for a verdict is on texts.
Groups come in the order of the prompt stream, so a resumed run makes the same steps of the same prompts.

What was trained carries digests of all that it follows from (`trainer/provenance.py`), and `python -m trainer.audit`
holds the one against the other.

A version is written down before it is pushed. So at a resume it is known whether weights beyond the checkpoint may have
written something, and only then does the run begin a new lineage: see `Ledger.open`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger_past import KEEP_FROM, KEPT_FROM, LEDGER_FILE, Made, Past, Remembered, Restored, read_past
from trainer.ledger_writer import LedgerWriter, Statement
from trainer.provenance import (
    STEP_NUMBERS,
    completion_marks,
    number_marks,
    packed,
    said,
    step_digest,
    step_marks,
    verdict_marks,
)
from trainer.shaping import characters_of
from trainer.stats import StepStats
from wire.errors import ServiceError
from wire.generation import Completion, PolicyVersion
from wire.judgement import Verdict

LASTING = frozenset({None, "unreadable", "too_long"})  # whether and why it is missing: no loss to time or to a server


class GroupMemory:
    """One group's share of the ledger, while it is in the making.

    `completions` are those that may be used, by index. The other methods are those of `reward_server.client`'s
    `VerdictMemory`.
    """

    def __init__(self, ledger: Ledger, occurrence: int, remembered: Remembered) -> None:
        self._ledger, self._occurrence, self._verdicts = ledger, occurrence, remembered.verdicts
        self.completions: Mapping[int, Completion] = remembered.completions

    def wrote(self, completion: Completion) -> None:
        """A replica wrote it."""
        self._ledger.note_completion(self._occurrence, completion)

    def recall(self, seed: int, vote: int) -> Verdict | None:
        """The verdict on the pair of this seed, if it was given before."""
        verdict = self._verdicts.get((seed, vote))
        self._ledger.counts["reused_verdicts"] += verdict is not None
        return verdict

    def note(self, seed: int, vote: int, verdict: Verdict) -> None:
        """A verdict was given. One that was lost to time is not kept: it may be had the next time."""
        if verdict.missing in LASTING:
            self._ledger.note_verdict(self._occurrence, seed, vote, verdict)


class Ledger:
    """The ledger of one run; an asynchronous context manager that writes while it is open. See `open`.

    `version` is what the run goes on from, `lineage` says whose completions may be used, and `counts` is what became of
    what was remembered: reused_completions, discarded_completions, reused_verdicts.
    """

    def __init__(self, folder: Path, past: Past) -> None:
        self._path, self._remembered, self._made = folder / LEDGER_FILE, past.remembered, past.made
        self._digest = past.digest  # of the last step
        self.version, self.lineage = past.version, past.lineage
        self.counts: Counter[str] = Counter()
        self._writer: LedgerWriter | None = None

    async def __aenter__(self) -> Self:
        self._writer = LedgerWriter(self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None
        await self._writer.close()

    @classmethod
    def open(cls, settings: RunSettings, restored: Restored | None, say: Callable[[str], None]) -> Ledger:
        """The ledger in `settings.output_dir`. A run that is no resume begins it anew.

        A resumed run goes on in the lineage of its checkpoint where no weights beyond the checkpoint were made in it,
        or where the run is deterministic and so repeats them to the last bit. Else it begins a new one.

        Args:
            settings: the run's.
            restored: the checkpoint's position; None where the run begins with the untrained policy.
            say: told what is used again, and what cannot be.

        Raises:
            ConfigError: the file is no ledger.
        """
        folder = Path(settings.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LEDGER_FILE
        if settings.resume_from_checkpoint is None:
            for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-shm"):
                (folder / name).unlink(missing_ok=True)
        past = read_past(path, settings, restored, say)
        remembered = past.remembered
        if remembered:
            num, verdicts = (sum(len(getattr(r, n)) for r in remembered.values()) for n in ("completions", "verdicts"))
            say(f"ledger: {num} completions and {verdicts} verdicts of {len(remembered)} groups are there already")
        return cls(folder, past)

    # --- what was paid for

    def recall(self, occurrence: int, oldest_step: int) -> GroupMemory:
        """What is there of a group. Completions of weights older than `oldest_step`, or of none of the lineage's, are
        not; they are counted as discarded."""
        remembered = self._remembered.pop(occurrence, Remembered())
        usable = {
            index: completion
            for index, completion in remembered.completions.items()
            if all(self._is_usable(PolicyVersion.parse(span.version), oldest_step) for span in completion.versions)
        }
        self.counts["reused_completions"] += len(usable)
        self.counts["discarded_completions"] += len(remembered.completions) - len(usable)
        return GroupMemory(self, occurrence, Remembered(usable, remembered.verdicts))

    def _is_usable(self, version: PolicyVersion, oldest_step: int) -> bool:
        return version.step >= oldest_step and self.lineage.holds(version)

    def note_completion(self, occurrence: int, completion: Completion) -> None:
        """Keep what a replica wrote."""
        token_ids, logprobs, versions = packed(completion)
        values = (
            occurrence,
            completion.index,
            token_ids,
            logprobs,
            completion.finished,
            versions.decode(),
            completion.replica,
        )
        self._note(("INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    def note_verdict(self, occurrence: int, seed: int, vote: int, verdict: Verdict) -> None:
        """Keep what the judge said of the pair of this seed."""
        values = (occurrence, seed, vote, verdict.model_dump_json())
        self._note(("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", values))

    def _note(self, statement: Statement) -> None:
        if self._writer is not None:
            self._writer.note(statement)

    # --- what was done

    async def record_step(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        dropped: Sequence[tuple[int, str]],
    ) -> None:
        """Write down that `version` was made of `groups`; returns when it is committed. To be called before the push.

        Args:
            version: the new one.
            groups: in the order in which they were trained on.
            stats: of the learner.
            dropped: (occurrence, reason) of those that were passed over for this step.

        Raises:
            ServiceError: the ledger cannot be written; or the step was made before, in this lineage, of other groups or
                with other numbers.
        """
        assert self._writer is not None
        key = (version.lineage, version.step)
        rows = [(*key, place, group.prompt.occurrence, _numbers(group)) for place, group in enumerate(groups)]
        learned: dict[str, Any] = {name: getattr(stats, name) for name in STEP_NUMBERS}
        self._digest = step_digest(self._digest, version.label, learned, [row[3:] for row in rows])
        outcome = json.dumps(learned | {"marks": step_marks(learned), "digest": self._digest})
        before = self._made.pop(version.step, None)
        if before is not None:
            _check_replay(version, before, (outcome, [row[2:] for row in rows]))
            return
        await self._writer.write(
            ("INSERT INTO steps VALUES (?, ?, ?)", (*key, outcome)),
            *(("INSERT INTO trained VALUES (?, ?, ?, ?, ?)", row) for row in rows),
            *(("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?, ?)", (*key, *drop)) for drop in dropped),
        )

    async def prune(self, next_prompt: int) -> None:
        """Forget completions and verdicts of groups before `next_prompt`: no checkpoint goes back to them."""
        assert self._writer is not None
        await self._writer.write(
            *((f"DELETE FROM {table} WHERE occurrence < ?", (next_prompt,)) for table in KEPT_FROM),
            *((KEEP_FROM, (fact, str(next_prompt))) for fact in KEPT_FROM.values()),
        )

    def metrics(self) -> dict[str, float]:
        """The ledger's part of a step's metrics, by TensorBoard name: counts since the start."""
        names = ("reused_completions", "discarded_completions", "reused_verdicts")
        return {f"sample/{name}": float(self.counts[name]) for name in names}


def _check_replay(version: PolicyVersion, before: Made, now: Made) -> None:
    for then, again in zip(before, now, strict=True):
        if then != again:
            raise ServiceError(
                f"step {version.step} was made before and is not what it was: {str(then)[:300]} then, "
                f"{str(again)[:300]} now. A deterministic run resumed with the settings that it had repeats itself to "
                "the last bit; set deterministic to false to go on in a new lineage"
            )


def _numbers(group: Group) -> str:
    """What made the group's advantages, and the marks of all of it, for whoever checks them later."""
    placed = group.verdict.verdicts
    characters = [characters_of(text) for text in group.texts]
    numbers = {
        "verdict_scores": group.verdict.scores,
        "scores": group.scores_K,
        "rewards": group.rewards_K,
        "kl": group.kl_K,
        "length_terms": group.length_terms_K,
        "advantages": group.advantages_K,
        "finished": [completion.finished for completion in group.completions],
        "num_tokens": [len(completion.token_ids) for completion in group.completions],
        "answer_chars": [answer for answer, _ in characters],
        "thought_chars": [thought for _, thought in characters],
        "oldest": group.oldest_version.label,
        "versions": [version.label for version in sorted(group.versions)],
        "scored_by": group.scored_by.label if group.scored_by else None,
        "pairs": [[each.first, each.second, each.vote] for each in placed],
        "judged": [said(each.verdict) for each in placed],
        "unjudged": group.verdict.unjudged,
        "same_as": group.verdict.same_as,
    }
    verdicts = verdict_marks([each.verdict for each in placed], LASTING)
    marks = completion_marks(group.completions) | verdicts
    return json.dumps(numbers | {"marks": number_marks(numbers) | marks})
