"""A failed update leaves nothing behind in a vLLM server: no unread answer, no update that bars the next."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rollout_server.reload import forget_half_loaded, let_updates_start_over
from rollout_server.worker_answers import Refusal, attempt, raise_refusals, read_every_answer


class Worker:
    def update_weights(self, update_info: str) -> str:
        if update_info == "bad":
            raise ValueError("cannot load")
        return "done"


def test_an_error_of_a_worker_is_an_answer_that_is_raised_when_all_are_in() -> None:
    assert attempt(Worker(), "good", method="update_weights") == "done"
    answers = [attempt(Worker(), info, method="update_weights") for info in ("good", "bad", "bad")]
    assert answers == ["done", Refusal("ValueError: cannot load"), Refusal("ValueError: cannot load")]
    with pytest.raises(RuntimeError, match="update_weights: worker 1: ValueError: cannot load; worker 2: ValueError"):
        raise_refusals("update_weights", answers)
    assert raise_refusals("update_weights", ["done", None]) == ["done", None]


# vLLM's executor imports a module of PyTorch's that PyTorch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_only_the_calls_of_an_update_are_changed_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    called: list[Any] = []

    def original(self: Any, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
        called.append(method)
        return [method(Worker(), *args) if callable(method) else method]

    monkeypatch.setattr(MultiprocExecutor, "collective_rpc", original)
    read_every_answer()
    read_every_answer()  # vLLM may load a plug-in more than once
    executor: Any = object.__new__(MultiprocExecutor)
    executor.shutdown = lambda: None
    assert executor.collective_rpc("execute_model") == ["execute_model"] == called
    assert executor.collective_rpc("update_weights", "good") == ["done"]
    with pytest.raises(RuntimeError, match="worker 0: ValueError: cannot load"):
        executor.collective_rpc("update_weights", "bad")


def test_an_update_begins_though_the_one_before_was_never_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    class VllmWorker:
        _weight_update_active = False

        def _start_weight_update(self, is_draft: bool = False) -> None:
            if self._weight_update_active:
                raise RuntimeError("already active")
            self._weight_update_active = True

    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_worker", SimpleNamespace(Worker=VllmWorker))
    let_updates_start_over()
    let_updates_start_over()
    worker = VllmWorker()
    for _ in range(2):
        worker._start_weight_update(is_draft=False)
    assert worker._weight_update_active


def test_what_a_broken_push_left_in_a_layer_does_not_count_for_the_next() -> None:
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    info = get_layerwise_info(model[0])
    info.load_numel, info.loaded_weights = 3, [("weight", object())]
    forget_half_loaded(model)
    assert info.load_numel == 0 and info.loaded_weights == []
