"""Every worker's answer is read, whoever failed.

vLLM's executor reads its workers' answers one after the other and stops at the first that is an error. The answers
behind it stay in their queues and are taken for those of the next call: from the first weight update that fails, a
replica of several workers is a call behind for good. So the calls of a weight update do not fail in a worker: the error
travels as an answer, and is raised when all answers are in.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

CALLS = frozenset(
    {"init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"}
    | {"shutdown_weight_transfer_engine"}
)


@dataclass(frozen=True)
class Refusal:
    """A worker's error as an answer."""

    message: str


def attempt(worker: Any, *args: Any, method: str, **kwargs: Any) -> Any:
    """Run in a worker: the method's result, or a `Refusal`."""
    try:
        return getattr(worker, method)(*args, **kwargs)
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", method)
        return Refusal(f"{type(error).__name__}: {error}")


def raise_refusals(method: str, answers: list[Any]) -> list[Any]:
    """The answers; RuntimeError where one is a refusal."""
    refusals = [f"worker {rank}: {a.message}" for rank, a in enumerate(answers) if isinstance(a, Refusal)]
    if refusals:
        raise RuntimeError(f"{method}: {'; '.join(refusals)}")
    return answers


def read_every_answer() -> None:
    """Teach it to vLLM's executor for several workers, in this process."""
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    original = MultiprocExecutor.collective_rpc
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def collective_rpc(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        if method not in CALLS or kwargs.get("non_block") or kwargs.get("unique_reply_rank") is not None:
            return original(self, method, *args, **kwargs)
        answers = original(self, functools.partial(attempt, method=method), *args, **kwargs)
        return raise_refusals(method, answers)

    MultiprocExecutor.collective_rpc = collective_rpc  # type: ignore[method-assign]  # see the module's description
