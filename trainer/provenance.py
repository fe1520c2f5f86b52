"""Digests by which the ledger shows that something in it was altered later.

    trained.numbers     marks of the group's completions, of the judge's texts, and of the numbers themselves
    steps.stats         marks of the learner's numbers, and the digest of the step
    digest of a step    of the digest of the step before it, the version, the learner's numbers, and every group's row

Numbers have two kinds of mark, one a field over all completions and one a completion over all fields: where one number
was altered, the two that fail cross at it. A row that was replaced with its marks shows in the step's digest, and that
replaced too in the digest of the next. Whoever writes down the last one elsewhere has a witness of the whole.

What two lives of a deterministic run may have different is in no digest: who wrote or judged something, how long it
took, how often it was asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec

from wire.generation import Completion
from wire.judgement import Verdict

DIGITS = 16
# Of `trained.numbers`: lists with an entry a completion, then what is of the whole group.
PER_COMPLETION = (
    "verdict_scores", "scores", "rewards", "kl", "length_terms", "advantages", "finished", "num_tokens",
    "answer_chars", "thought_chars",
)  # fmt: skip
PER_GROUP = ("oldest", "versions", "scored_by", "pairs", "judged", "unjudged", "same_as")
STEP_NUMBERS = ("loss", "grad_norm", "learning_rate", "num_tokens")
COMPLETION_FIELDS = ("tokens", "logprobs", "versions")

encode = msgspec.json.encode


def short_digest(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:DIGITS]


def packed(completion: Completion) -> tuple[bytes, bytes, bytes]:
    """Tokens (int32), log-probs (float64) and version spans (JSON) of a completion, as the ledger keeps them."""
    return completion.token_ids.tobytes(), completion.logprobs.tobytes(), encode(completion.versions)


def said(verdict: Verdict) -> list[Any]:
    """What a verdict says in numbers: scores, ranking, why it is missing."""
    return [verdict.scores, verdict.ranking, verdict.missing]


def number_marks(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The marks of a group's numbers: `fields` by name, and `rows`, one a completion."""
    columns = [numbers[name] for name in PER_COMPLETION]
    num = max(map(len, columns))
    fields = {name: short_digest(encode(numbers[name])) for name in (*PER_COMPLETION, *PER_GROUP)}
    return {"fields": fields, "rows": [short_digest(encode([c[k : k + 1] for c in columns])) for k in range(num)]}


def completion_marks(completions: Sequence[Completion]) -> dict[str, list[str]]:
    """The marks of what was trained on: for each of `COMPLETION_FIELDS` one a completion."""
    rows = [[short_digest(part) for part in packed(completion)] for completion in completions]
    return {name: [row[index] for row in rows] for index, name in enumerate(COMPLETION_FIELDS)}


def verdict_marks(verdicts: Sequence[Verdict], lasting: Container[str | None]) -> dict[str, list[str]]:
    """The judgements' names, and the marks of what the judge wrote; empty where `missing` is none of `lasting`.

    What a server says when it fails is not the judge's word, and may be another the next time.
    """
    texts = [verdict.text if verdict.missing in lasting else None for verdict in verdicts]
    return {
        "verdict_keys": [verdict.key for verdict in verdicts],
        "verdict_texts": ["" if t is None else short_digest(t.encode(errors="surrogatepass")) for t in texts],
    }


def step_marks(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The marks of the learner's numbers of a step."""
    return {name: short_digest(encode(numbers[name])) for name in STEP_NUMBERS}


def step_digest(before: str, label: str, numbers: Mapping[str, Any], rows: Sequence[tuple[int, str]]) -> str:
    """The digest of a step.

    Args:
        before: that of the step before it; empty where there is none.
        label: the version that the step made.
        numbers: the learner's.
        rows: (occurrence, numbers as they are written) of its groups, in their order.
    """
    head = [before, label, [numbers[name] for name in STEP_NUMBERS]]
    return short_digest(encode(head), *(part for o, text in rows for part in (b"\0%d\0" % o, text.encode())))
