"""What the push is measured against, inside a vLLM worker: one flat broadcast over the worker's own transfer group.

A stock server takes the class by `--worker-extension-cls`; its method is called through the route `/collective_rpc`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import BroadcastOptions


def flat_broadcast(group: Any, buffer: torch.Tensor) -> None:
    """Gloo's own broadcast of the whole buffer from rank 0, with nothing around it."""
    options = BroadcastOptions()
    options.rootRank = 0
    group._group.broadcast([buffer], options).wait()


class BareBroadcast:
    """Mixed into vLLM's worker."""

    _flat: torch.Tensor | None = None

    def bare_broadcast(self, num_bytes: int, push: str) -> None:
        """Receive `num_bytes` into memory that is kept from call to call; say when it begins and when it is over."""
        engine: Any = self.weight_transfer_engine  # type: ignore[attr-defined]  # the worker's
        if self._flat is None or self._flat.numel() != num_bytes:
            self._flat = torch.zeros(num_bytes, dtype=torch.uint8)  # written once, so that its pages are there
        engine._store.set(f"bare-ready/{push}/{engine._rank}", "1")
        flat_broadcast(engine._group, self._flat)
        engine._store.set(f"bare-arrived/{push}/{engine._rank}", "1")
