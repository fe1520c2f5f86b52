"""vLLM's layer-wise reload, begun late and begun clean.

The reload takes a model's layers apart until their new weights are there. Begun at the start of an update, as vLLM's
engines do, a transfer that fails leaves a replica without weights; so it begins when there is something to load.
"""

from __future__ import annotations

import functools
import sys
from typing import Any


class Reload:
    """The reload of one model; `model` and `model_config` are vLLM's."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self, model: Any) -> None:
        """Let the model take checkpoint-format weights; nothing where it already does."""
        if not self._begun:
            forget_half_loaded(model)
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(model)
            self._begun = True

    def finish(self, model: Any, model_config: Any) -> None:
        """Rebuild fused and re-laid-out weights from what was loaded; nothing where nothing was."""
        if self._begun:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(model, model_config)
            self._begun = False

    def abandon(self) -> None:
        """What was loaded is not the whole: the next `begin` starts over."""
        self._begun = False


def forget_half_loaded(model: Any) -> None:
    """Drop what an update that failed left waiting in the model's layers.

    vLLM counts the elements that a layer has got and puts them in place when there are enough: elements of a push that
    broke off would count for the next one, and be mixed into it.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


def let_updates_start_over() -> None:
    """Let an update begin though the one before was never finished, in a process that holds a vLLM worker.

    A learner that dies after its weights have arrived finishes nothing. vLLM's worker would refuse every update from
    then on, also those of the learner that is started in its place.
    """
    module = sys.modules.get("vllm.v1.worker.gpu_worker")  # the CPU's worker derives from this one
    if module is None:
        return
    original = module.Worker._start_weight_update
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        self._weight_update_active = False
        original(self, *args, **kwargs)

    module.Worker._start_weight_update = start
