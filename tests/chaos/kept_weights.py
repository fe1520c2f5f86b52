"""A worker extension of vLLM: `--worker-extension-cls tests.chaos.kept_weights.KeptWeights`.

On a CPU vLLM packs the weight of each linear layer and lets go of the original, so that its checksums of these layers
are checksums of nothing. With this extension the originals stay beside the packed ones, made anew with them at each
push, and every tensor of the model has a checksum that tells.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers import utils

_pack = utils.dispatch_cpu_unquantized_gemm


def _pack_and_keep(layer: Any, remove_weight: bool) -> None:
    _pack(layer, remove_weight=False)


utils.dispatch_cpu_unquantized_gemm = _pack_and_keep


class KeptWeights:
    """Adds nothing to the worker: what counts is that this module was loaded before the model."""
