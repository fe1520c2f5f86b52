"""A sample dataset with the columns of HelpSteer3's preference subset.

Prompts of validation use phrasings that training never sees, so what the policy gains there is no recollection.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from deploy.toy.answers import any_answer, mediocre_answer
from deploy.toy.prompts import CODE_PHRASINGS, FOREIGN_PHRASINGS, Split, ask, conversation_about
from deploy.toy.world import GENERAL_TOPICS, STEM_TOPICS, TOPICS, Turn, true_score

Row = dict[str, Any]

ROWS: dict[Split, dict[str, int]] = {
    "train": {"general": 500, "stem": 260, "code": 260, "multilingual": 180},
    "validation": {"general": 68, "stem": 36, "code": 34, "multilingual": 22},
}
CODE_LANGUAGES = ("python", "javascript", "rust", "sql")


def make_rows(split: Split, seed: int) -> list[Row]:
    """All rows of a split, shuffled; no two share a context."""
    rng = Random(f"{seed} {split}")
    rows: list[Row] = []
    seen: set[str] = set()
    for domain, wanted in ROWS[split].items():
        made = 0
        while made < wanted:
            row = _row(rng, split, domain)
            key = json.dumps(row["context"])
            if key not in seen:
                seen.add(key)
                rows.append(row)
                made += 1
    rng.shuffle(rows)
    return rows


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Gzipped JSON lines; the same rows give the same bytes, as no time is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _row(rng: Random, split: Split, domain: str) -> Row:
    language, topic, context = _context(rng, split, domain)
    first, second = mediocre_answer(rng, topic), rng.choice((mediocre_answer, any_answer))(rng, topic)
    gap = round(true_score(context, second) - true_score(context, first))
    votes = sorted(_vote(rng, gap) for _ in range(rng.randint(1, 3)))
    return {
        "domain": domain,
        "language": language,
        "context": context,
        "response1": first,
        "response2": second,
        "overall_preference": votes[len(votes) // 2],
        "individual_preference": [_opinion(vote) for vote in votes],
    }


def _context(rng: Random, split: Split, domain: str) -> tuple[str, str, list[Turn]]:
    """The row's language, its topic and its conversation."""
    if domain in ("general", "stem"):
        topic = rng.choice(list(GENERAL_TOPICS if domain == "general" else STEM_TOPICS))
        return "english", topic, conversation_about(rng, ask(rng, split, topic))
    topic = rng.choice(list(TOPICS))
    if domain == "code":
        language = rng.choice(CODE_LANGUAGES)
        question = rng.choice(CODE_PHRASINGS[split]).format(language=language, topic=topic)
    else:
        language = rng.choice(list(FOREIGN_PHRASINGS))
        question = rng.choice(FOREIGN_PHRASINGS[language][split]).format(topic=topic)
    # Few phrasings: words about the asker keep the contexts of a split apart.
    asker = mediocre_answer(rng, rng.choice(list(TOPICS)))
    return language, topic, conversation_about(rng, f"{question} {asker}")


def _vote(rng: Random, gap: int) -> int:
    """One annotator's preference, -3 (the first is much better) to 3; now and then off by one."""
    slip = rng.choice((-1, 1)) if rng.random() < 0.15 else 0
    return max(-3, min(3, gap + slip))


def _opinion(vote: int) -> Row:
    better = (
        "@Response 1 and @Response 2 are equally good" if vote == 0 else f"@Response {1 if vote < 0 else 2} is better"
    )
    return {
        "score": vote,
        "reasoning": f"{better}, as it says more about what was asked" if vote else better,
        "feedback1": "says more about the topic" if vote < 0 else "says less about the topic",
        "feedback2": "says more about the topic" if vote > 0 else "says less about the topic",
    }
