"""What a stock vLLM server loads from us, through the entry point `vllm.general_plugins`.

vLLM calls `register` in every process of a server, before it builds anything: in the API process, the engine and each
worker. It may be called more than once.
"""

from __future__ import annotations

from rollout_server.rendezvous import listen_on_named_host_only


def register() -> None:
    """Register the `gloo` weight-transfer backend, and keep rendezvous sockets off the public interfaces."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    listen_on_named_host_only()
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "rollout_server.transfer", "GlooWeightTransferEngine")
