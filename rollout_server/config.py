"""Settings of the rollout servers and of the generation contract they keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.engine import resolve_device
from wire.errors import ConfigError
from wire.settings import ServiceSettings

# vLLM's other ways to move weights, and why none of them can be fed here.
OTHER_BACKENDS = {
    "ipc": "it hands over device memory, and a learner rank and a replica share no GPU here",
    "sparse_nccl": "it sends patches, and a step changes every weight",
    "nccl_m2n": "its source must describe how each rank's shards are laid out, and ZeRO cuts parameters without regard "
    "to their shape",
    "sharded_rdt": "its producers are Ray actors that hold whole parameters, and a ZeRO-3 rank holds a part of each",
    "modelexpress": "it has no sender that takes a source",
}


@dataclass
class RolloutSettings(ServiceSettings):
    """How completions are written, and by which servers."""

    model_name_or_path: str = field(default="Qwen/Qwen3-8B", metadata={"help": "The policy: folder or Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the policy."})

    replicas: int = field(default=1, metadata={"help": "Rollout servers that the run starts itself."})
    rollout_urls: list[str] = field(
        default_factory=list, metadata={"help": "Running rollout servers to join; they survive the run.", "nargs": "*"}
    )
    rollout_discovery: bool = field(
        default=True,
        metadata={
            "help": "With ray_address, replicas started by hand tell the cluster, and a run joins those that fit it."
        },
    )
    rollout_ports: list[int] = field(
        default_factory=list, metadata={"help": "A port for each started replica; free ones by default.", "nargs": "*"}
    )
    rollout_dtype: str = field(default="bfloat16", metadata={"help": "Type of the replicas' weights."})
    fp32_lm_head: bool = field(
        default=False, metadata={"help": "Compute logits in fp32 from a lower-precision head, replicas and learner."}
    )
    rollout_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs (or cores) a replica is split over."})
    rollout_gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of a GPU a replica takes."})
    rollout_max_num_seqs: int = field(default=128, metadata={"help": "Completions a replica writes at once."})
    adaptive_in_flight: bool = field(
        default=True, metadata={"help": "Give a replica fewer completions while its KV cache holds no more."}
    )
    rollout_timeout_s: float = field(default=1800.0, metadata={"help": "Deadline of one prompt's completions."})
    rollout_extra_args: str = field(default="", metadata={"help": "More flags for vLLM, as one string."})

    weight_transfer_backend: str = field(
        default="auto", metadata={"help": "nccl, gloo, or auto: nccl on GPUs, gloo on CPUs."}
    )
    transfer_bucket_mib: int = field(
        default=256,
        metadata={"help": "Weights are gathered and sent in buckets of this size; gloo's are 32 at most."},
    )
    transfer_staging_mib: int = field(
        default=1024, metadata={"help": "Weights that a replica takes in before it loads them (gloo), in MiB."}
    )
    transfer_timeout_s: float = field(
        default=120.0, metadata={"help": "Deadline of a push; who has not answered by then is lost."}
    )
    verify_transfer: bool = field(
        default=False, metadata={"help": "Compare a checksum of every bucket of weights that arrives (gloo)."}
    )
    inflight_updates: bool = field(
        default=True,
        metadata={"help": "Requests in flight go on with new weights; off: they are finished before a push."},
    )

    probe_interval_s: float = field(default=2.0, metadata={"help": "Time between two probes of a replica."})
    probe_timeout_s: float = field(
        default=15.0, metadata={"help": "A replica whose engine does not answer for so long is lost."}
    )
    drain_timeout_s: float = field(
        default=120.0, metadata={"help": "A leaving replica may finish what it writes for so long."}
    )
    min_replicas: int = field(default=1, metadata={"help": "With fewer replicas the run waits."})
    replica_wait_s: float = field(
        default=1800.0, metadata={"help": "The run ends when it had fewer than min_replicas for so long."}
    )
    replica_restarts: int = field(
        default=5, metadata={"help": "Deaths in a row, none of them after two minutes, before a replica is given up."}
    )
    fleet_port: int = field(default=0, metadata={"help": "Port of the fleet's control API; 0: a free one."})

    response_length: int = field(default=1024, metadata={"help": "Longest completion, in tokens."})
    max_prompt_length: int = field(
        default=4096, metadata={"help": "Longer prompts are dropped and counted, never cut."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; the learner divides by it too."})
    top_p: float = field(default=1.0, metadata={"help": "Only 1.0: the learner cannot reproduce a cut distribution."})
    top_k: int = field(default=0, metadata={"help": "Only 0 (off), for the same reason."})
    enable_thinking: bool = field(default=False, metadata={"help": "Let the policy think before it answers."})

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        return self.max_prompt_length + self.response_length

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of its node that a replica has; 0 on a CPU."""
        return self.rollout_tensor_parallel_size if resolve_device(self.device) == "cuda" else 0

    @property
    def finds_replicas(self) -> bool:
        """Whether replicas by hand and the run find one another in a cluster."""
        return self.rollout_discovery and self.ray_address is not None

    @property
    def transfer_backend(self) -> str:
        """The weight-transfer backend with `auto` resolved."""
        if self.weight_transfer_backend != "auto":
            return self.weight_transfer_backend
        return "nccl" if resolve_device(self.device) == "cuda" else "gloo"

    def check(self) -> None:
        """Raises ConfigError on values that cannot work together."""
        super().check()
        for name in ("response_length", "max_prompt_length", "rollout_tensor_parallel_size", "rollout_max_num_seqs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 1")
        positive = ("rollout_timeout_s", "transfer_timeout_s", "transfer_bucket_mib", "transfer_staging_mib")
        for name in (*positive, "probe_interval_s", "probe_timeout_s", "replica_wait_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be positive")
        if self.deterministic and self.rollout_tensor_parallel_size > 1:
            raise ConfigError(
                f"deterministic needs rollout_tensor_parallel_size 1, and it is {self.rollout_tensor_parallel_size}: "
                "a sum over the ranks of a server has no promised order; set it to 1, or deterministic to false"
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature ({self.temperature}) must be positive: greedy completions have no gradient")
        if self.top_p != 1.0 or self.top_k not in (0, -1):
            raise ConfigError(
                f"top_p ({self.top_p}) must be 1.0 and top_k ({self.top_k}) 0: the learner trains on the whole "
                "distribution, so the replicas must sample from it"
            )
        self._check_fleet()
        self._check_transfer()

    def _check_fleet(self) -> None:
        if self.replicas < 0 or self.replicas + len(self.rollout_urls) + self.finds_replicas < 1:
            raise ConfigError(f"replicas ({self.replicas}) with no rollout_urls leaves nobody to write completions")
        if self.rollout_ports and len(self.rollout_ports) != self.replicas:
            raise ConfigError(f"rollout_ports names {len(self.rollout_ports)} ports for {self.replicas} replicas")
        if self.min_replicas < 1:
            raise ConfigError(f"min_replicas ({self.min_replicas}) must be at least 1: nobody else writes completions")
        for name in ("drain_timeout_s", "replica_restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 0")
        if not 0 <= self.fleet_port <= 65535:
            raise ConfigError(f"fleet_port ({self.fleet_port}) must lie in 0..65535; 0 takes a free one")
        if self.fp32_lm_head and "--hf-overrides" in self.rollout_extra_args.replace("_", "-"):
            raise ConfigError(
                f"fp32_lm_head needs vLLM's --hf-overrides for itself, and rollout_extra_args "
                f"({self.rollout_extra_args!r}) takes it; leave one of the two out"
            )

    def _check_transfer(self) -> None:
        if self.transfer_backend not in ("nccl", "gloo"):
            reason = OTHER_BACKENDS.get(self.transfer_backend, "it is not among auto, nccl, gloo")
            raise ConfigError(
                f"weight_transfer_backend {self.weight_transfer_backend!r}: {reason}; use nccl on GPUs, gloo on CPUs"
            )
        if self.verify_transfer and self.transfer_backend == "nccl":
            raise ConfigError(
                "verify_transfer (true) needs weight_transfer_backend gloo: vLLM's nccl engine packs by itself; "
                "set verify_transfer to false"
            )
        if self.transfer_backend == "nccl" and resolve_device(self.device) == "cpu":
            raise ConfigError(
                f"weight_transfer_backend {self.weight_transfer_backend!r} needs GPUs and this host has none; use gloo"
            )
