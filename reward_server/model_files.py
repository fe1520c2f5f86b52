"""Which files of a model's repository vLLM reads: one format of weights, and what is small beside them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

# Configuration, tokenizer, chat templates, and the repository's own code.
BESIDE = ("*.json", "*.txt", "*.jinja", "*.py", "*.model*", "*.tiktoken")
# vLLM takes the first of these that there is; a folder may hold the same weights in several.
FORMATS = ("*.safetensors", "*.bin", "*.pt")
OTHER_LAYOUT = "consolidated*"  # the same weights once more, for another program
NOT_READ = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "original/*", "onnx/*")


def weights_among(names: Iterable[str]) -> list[str]:
    """The files of weights that vLLM loads, of a repository's file names."""
    top = [name for name in names if "/" not in name and not _is_one_of(name, NOT_READ)]
    for form in FORMATS:
        found = [name for name in top if fnmatch(name, form)]
        if found:
            return [name for name in found if not fnmatch(name, OTHER_LAYOUT)] or found
    return []


def needed(names: Iterable[str]) -> list[str]:
    """All files that a server reads, in the order of the names."""
    known = list(names)
    weights = set(weights_among(known))
    beside = {name for name in known if _is_one_of(name, BESIDE) and not _is_one_of(name, NOT_READ)}
    return [name for name in known if name in weights | beside]


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
