"""How much of a GPU does a step of the learner use, and how much faster is it than TRL's?

    python -m benchmarks.learner_gpu [--models 0.6B 1.7B 4B] [--lengths 2048 16384] [--rounds 3]

Needs a CUDA GPU. Qwen3 shapes with random weights in bf16, sequences of equal length, 65,536 tokens a step, one rank of
ZeRO-2, gradient checkpointing on and off. A step is the whole of it: own and reference log-probs, training, AdamW.

Model FLOPs utilisation by TRL's own functions: `compute_flops_per_token` counts a forward and a backward pass (three
forward passes); a step with own and reference pass is five, so it is taken 5/3 times. Nothing that is computed again is
counted. `mfu` takes attention as if every token saw the whole sequence (PaLM), `mfu_causal` only what it does see.

TRL: its fused head is on by itself. Tried are micro-batches of 1 and 4 sequences, weights in fp32 under bf16 autocast
(the optimizer's precision is then ours) and in bf16 (no master weights: leaner, and not the same training); the fastest
is compared. A side that runs out of memory says so and has no number.

The last line is JSON: for each model, length and checkpointing our figures and `speed_ratio`, ours over TRL's.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.child import Answer, Child, ChildEnded
from benchmarks.learner import SIDES
from benchmarks.workload import Shape, Workload, make_workload, write_model

# Source: the models' configurations. All have 128 numbers a head and tied embeddings.
MODELS = {
    "0.6B": Shape(1024, 3072, 28, 16, 8, 128),
    "1.7B": Shape(2048, 6144, 28, 16, 8, 128),
    "4B": Shape(2560, 9728, 36, 32, 8, 128),
}
TOKENS_A_STEP = 65_536
PROMPT_TOKENS = 128  # as benchmarks.workload draws them at most, about
FORWARD_PASSES = 5
COUNTED_PASSES = 3
TRL_TRIES = tuple(itertools.product((1, 4), ("float32", "bfloat16")))


def attention() -> str | None:
    """The same kernel on both sides: flash-attn where it is installed, else each side's own use of sdpa."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") is not None else None


def jobs(model: Path, workload: Workload, *, length: int, checkpointing: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Ours, then TRL's tries; `side` says whose a job is."""
    base: dict[str, Any] = {
        "model": str(model),
        "workload": asdict(workload),
        "seed": seed,
        "device": "cuda",
        "bf16": True,
        "gradient_checkpointing": checkpointing,
        "microbatch_tokens": max(length + PROMPT_TOKENS, 16_384),
    }
    if kernel := attention():
        base["attention"] = kernel
    yield base | {"side": "ours"}
    for size, dtype in TRL_TRIES:
        if len(workload.completions) % size == 0:
            yield base | {"side": "trl", "trl_batch_size": size, "trl_dtype": dtype}


def measure(job: dict[str, Any], rounds: int, folder: Path) -> Answer | None:
    """Median seconds, last loss and peak of a fresh process; None where it did not fit into memory."""
    child = Child(SIDES[job["side"]], job | {"folder": str(folder / "run")}, folder / "child.log")
    try:
        answers = [child.step() for _ in range(rounds + 1)][1:]  # the first warms up
    except ChildEnded as error:
        if "out of memory" not in str(error).lower():
            raise
        return None
    finally:
        child.close()
    return {**answers[-1], "seconds": median(answer["seconds"] for answer in answers)}


def utilisation(config: Any, length: int, tokens_per_second: float) -> dict[str, float | None]:
    """`mfu` and `mfu_causal` in per cent; None on a GPU whose peak TRL does not know."""
    import torch
    from trl.trainer.utils import adjusted_mfu, compute_flops_per_token, compute_mfu, get_peak_flops

    peak = get_peak_flops(torch.cuda.get_device_name(0), "bfloat16")
    if peak is None:
        return {"mfu": None, "mfu_causal": None}
    flops = compute_flops_per_token(config, length) * FORWARD_PASSES // COUNTED_PASSES
    mfu = compute_mfu(flops, tokens_per_second, 1, peak)
    return {"mfu": round(mfu, 1), "mfu_causal": round(adjusted_mfu(mfu, config, length), 1)}


def compare(name: str, length: int, *, checkpointing: bool, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One row: our figures, and the ratio to the fastest of TRL's tries."""
    from transformers import AutoConfig

    completions = [length - PROMPT_TOKENS] * (TOKENS_A_STEP // length)
    workload = make_workload(completions, args.seed, MODELS[name].vocab_size)
    ours: Answer | None = None
    best: float | None = None
    for job in jobs(model, workload, length=length, checkpointing=checkpointing, seed=args.seed):
        answer = measure(job, args.rounds, model.parent)
        what = (
            job["side"] if job["side"] == "ours" else f"trl, {job['trl_batch_size']} a micro-batch, {job['trl_dtype']}"
        )
        print(f"{name} {length} checkpointing {checkpointing}: {what}: {describe(answer, workload)}", flush=True)
        if job["side"] == "ours":
            ours = answer
        elif answer is not None:
            best = min(answer["seconds"], best or answer["seconds"])
    row: dict[str, Any] = {"model": name, "length": length, "gradient_checkpointing": checkpointing}
    if ours is None:
        return row | {"out_of_memory": True}
    speed = workload.num_tokens / ours["seconds"]
    row |= {
        "tokens_per_second": round(speed),
        "loss": ours["loss"],
        "peak_gib": round(ours["peak_gpu_bytes"] / 2**30, 1),
    }
    row |= utilisation(AutoConfig.from_pretrained(model), length, speed)
    return row | {"speed_ratio": None if best is None else round(best / ours["seconds"], 2)}


def describe(answer: Answer | None, workload: Workload) -> str:
    """One measured side in words."""
    if answer is None:
        return "out of memory"
    peak = answer["peak_gpu_bytes"] / 2**30
    return f"{workload.num_tokens / answer['seconds']:.0f} tokens/s, loss {answer['loss']:.4f}, peak {peak:.1f} GiB"


def main() -> None:
    """As the module says."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 16_384], help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            write_model(model, MODELS[name], args.seed, "cuda", "bfloat16")
            torch.cuda.empty_cache()
            for length, checkpointing in itertools.product(args.lengths, (True, False)):
                rows.append(compare(name, length, checkpointing=checkpointing, model=model, args=args))
    print(json.dumps({"gpu": torch.cuda.get_device_name(0), "rows": rows}))


if __name__ == "__main__":
    main()
