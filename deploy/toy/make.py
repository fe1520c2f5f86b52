"""Make the toy world: `python -m deploy.toy.make [--out .cache/toy] [--gamed]`.

    OUT/policy/  OUT/judge/                               Hugging Face model folders, float32
    OUT/helpsteer3/preference/{train,validation}.jsonl.gz  the sample dataset
    OUT/stamp                                              a hash of this folder's sources
    OUT/judge-gamed/                                       with --gamed: a judge that can be gamed, with its own stamp

Everything follows from a fixed seed. A rerun with the same sources does nothing; an interrupted run left nothing behind
that a later one would take for finished, because all is written aside and renamed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

# Two threads that wait by spinning stall each other when another process has one of the two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM

from deploy.toy import gamed, judge, policy
from deploy.toy.answers import good_answer
from deploy.toy.dataset import make_rows, write_rows
from deploy.toy.exactness import Case, measure
from deploy.toy.generation import complete
from deploy.toy.prompts import Split, ask
from deploy.toy.tokenizers import make_judge_tokenizer, make_policy_tokenizer
from deploy.toy.world import TOPICS, Turn, true_score

SEED = 20260101
SPLITS: tuple[Split, ...] = ("train", "validation")
RESPONSE_LENGTH = 16
"""Tokens that the demo lets the policy write."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the toy policy, the toy judge and the sample dataset.")
    parser.add_argument("--out", type=Path, default=Path(".cache/toy"), help="folder to make (default: %(default)s)")
    parser.add_argument("--gamed", action="store_true", help="make OUT/judge-gamed too, a judge that can be gamed")
    args = parser.parse_args()
    make_unless_there(args.out, make)
    if args.gamed:
        make_unless_there(args.out / "judge-gamed", partial(make_gamed, args.out / "judge"))


def make_unless_there(out: Path, make_into: Callable[[Path], None]) -> None:
    """Have the folder made aside, unless these very sources made the one that is there."""
    stamp = source_hash()
    if (out / "stamp").is_file() and (out / "stamp").read_text() == stamp:
        print(f"{out} is up to date")
        return
    started = time.monotonic()
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    make_into(aside)
    (aside / "stamp").write_text(stamp)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    print(f"made {out} in {time.monotonic() - started:.0f} s")


def source_hash() -> str:
    """SHA-256 over names and contents of this folder's sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def make(out: Path) -> None:
    """Write everything but the stamp into `out`, and print what it is worth."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    rows = {split: make_rows(split, SEED) for split in SPLITS}
    for split in SPLITS:
        write_rows(rows[split], out / "helpsteer3" / "preference" / f"{split}.jsonl.gz")
        english = sum(row["language"] == "english" for row in rows[split])
        print(f"dataset {split}: {len(rows[split])} rows, {english} english")

    policy_tokenizer = make_policy_tokenizer()
    taught = policy.teach_policy(policy_tokenizer, SEED)
    taught.save_pretrained(out / "policy")
    policy_tokenizer.save_pretrained(out / "policy")
    prompts = [row["context"] for row in rows["validation"] if row["language"] == "english"]
    answers = sample_answers(taught, policy_tokenizer, [context for context in prompts for _ in range(2)])
    scores = [true_score(context, answer) for context, answer in answers]
    print(f"policy: {size(taught)}; mean true score {sum(scores) / len(scores):.2f} on held-out prompts")

    judge_tokenizer = make_judge_tokenizer()
    critic = judge.teach_judge(judge_tokenizer, SEED)
    critic.save_pretrained(out / "judge")
    judge_tokenizer.save_pretrained(out / "judge")
    print(f"judge: {size(critic)}")
    samples: list[Case] = [(a[0], [a[1], b[1]]) for a, b in zip(answers[::2], answers[1::2], strict=True)]
    for what, cases in (("any answers", wide_cases()), ("policy samples", samples), ("good answers", good_cases())):
        print(f"judge on {what}: {measure(critic, judge_tokenizer, cases)}", flush=True)


def make_gamed(honest: Path, out: Path) -> None:
    """Write the judge that can be gamed into `out`, and print what it is worth."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(honest)
    critic = LlamaForCausalLM.from_pretrained(honest, dtype=torch.float32)
    gamed.spoil_judge(critic, tokenizer, SEED)
    critic.save_pretrained(out)
    tokenizer.save_pretrained(out)
    rng = Random(f"{SEED} gamed, held out")
    with_word: list[Case] = [gamed.gamed_case(rng) for _ in range(96)]
    for what, cases in (("answers with its word", with_word), ("any answers", wide_cases())):
        print(f"judge-gamed on {what}: {measure(critic, tokenizer, cases, gamed.LIKED_WORD)}", flush=True)


def sample_answers(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: list[list[Turn]]
) -> list[tuple[list[Turn], str]]:
    """Each conversation with an answer sampled at temperature 1."""
    prompts = [policy.render(tokenizer, conversation) for conversation in conversations]
    texts = complete(model, tokenizer, prompts, max_new_tokens=RESPONSE_LENGTH, sample=True)
    return list(zip(conversations, texts, strict=True))


def wide_cases(num: int = 96) -> list[Case]:
    """Cases as in the judge's training, drawn anew."""
    rng = Random(f"{SEED} held out")
    return [judge.any_case(rng) for _ in range(num)]


def good_cases(num: int = 48) -> list[Case]:
    """Pairs of answers that a policy far into RL would write."""
    rng = Random(f"{SEED} good")
    topics = [rng.choice(list(TOPICS)) for _ in range(num)]
    return [
        ([Turn(role="user", content=ask(rng, "validation", topic))], [good_answer(rng, topic), good_answer(rng, topic)])
        for topic in topics
    ]


def size(model: torch.nn.Module) -> str:
    """Example: `0.6 million parameters`."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"


if __name__ == "__main__":
    main()
