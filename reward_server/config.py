"""Settings of the reward service and of the judge behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from reward_server.aggregate import AGGREGATIONS, TIE_BREAK, TIE_BREAK_LIMIT
from reward_server.dialects import dialect_named
from reward_server.pairings import PAIRINGS
from wire.engine import resolve_device
from wire.errors import ConfigError
from wire.settings import ServiceSettings


@dataclass
class RewardSettings(ServiceSettings):
    """How completions are judged, and by which server."""

    reward_url: str | None = field(
        default=None, metadata={"help": "Running reward service to join; it survives the run. None: one is started."}
    )
    reward_port: int = field(default=0, metadata={"help": "TCP port of the scoring API; 0: a free one."})

    reward_announce: bool = field(
        default=True,
        metadata={"help": "With ray_address, tell the cluster of this service: it has its place, and runs find it."},
    )

    judge_model_name_or_path: str = field(
        default="nvidia/Llama-3_3-Nemotron-Super-49B-GenRM-Multilingual",
        metadata={"help": "The judge: folder or Hub id."},
    )
    judge_revision: str | None = field(
        default=None, metadata={"help": "The judge's branch, tag or commit on the Hub; None: its main branch."}
    )
    judge_fetch_stall_s: float = field(
        default=300.0, metadata={"help": "Fetching the judge's files is given up where nothing came for so long."}
    )
    judge_dialect: str = field(
        default="boxed",
        metadata={"help": "How the judge is asked and read: boxed (the 49B GenRMs) or json (the 235B GenRMs)."},
    )
    judge_principle: str | None = field(
        default=None, metadata={"help": "What the judge is to look at; dialect json only."}
    )
    judge_servers: int = field(
        default=1,
        metadata={"help": "GenRM servers that the service starts, judge_tensor_parallel_size GPUs each."},
    )
    judge_urls: list[str] = field(
        default_factory=list, metadata={"help": "Running GenRM servers that the service joins.", "nargs": "*"}
    )
    judge_tensor_parallel_size: int = field(default=4, metadata={"help": "GPUs the judge is split over; 1 on a CPU."})
    judge_dtype: str = field(
        default="bfloat16",
        metadata={"help": "Type of the judge's weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    judge_gpu_memory_utilization: float = field(default=0.92, metadata={"help": "Share of a GPU the judge takes."})
    judge_trust_remote_code: bool = field(
        default=True, metadata={"help": "Run the code in the judge's repository (its configuration class needs it)."}
    )
    judge_max_model_len: int = field(default=40000, metadata={"help": "Judge's prompt plus output, in tokens."})
    judge_max_tokens: int = field(
        default=8192, metadata={"help": "Longest output of the judge, in tokens; a verdict that exceeds it is missing."}
    )
    judge_max_num_seqs: int = field(default=64, metadata={"help": "Verdicts the judge's server writes at once."})
    judge_max_in_flight: int = field(
        default=256,
        metadata={"help": "Requests that one GenRM server gets at once, at the most; more wait in the service."},
    )
    judge_adaptive_in_flight: bool = field(
        default=True, metadata={"help": "Give a GenRM server fewer requests while it could only queue them."}
    )
    judge_max_queue: int = field(
        default=1024,
        metadata={"help": "Requests that wait in the service; beyond, clients are told to wait."},
    )
    judge_health_timeout_s: float = field(
        default=15.0,
        metadata={"help": "A GenRM server that gives no sign for so long is lost."},
    )
    judge_temperature: float = field(default=0.0, metadata={"help": "Sampling temperature of a first verdict."})
    judge_timeout_s: float = field(
        default=900.0, metadata={"help": "Deadline of a verdict in seconds, waiting and retries included."}
    )
    judge_retries: int = field(default=2, metadata={"help": "More attempts when an output cannot be read."})
    judge_pairing: str = field(
        default="ring",
        metadata={"help": "Who is compared with whom.", "choices": list(PAIRINGS)},
    )
    judge_aggregation: str = field(
        default="least_squares", metadata={"help": "How scores come of verdicts.", "choices": list(AGGREGATIONS)}
    )
    judge_votes: int = field(default=1, metadata={"help": "Verdicts of each pair."})
    judge_calls_per_group: int = field(
        default=0, metadata={"help": "Verdicts of a group in all, for pairing ring_extra; the ring's at the least."}
    )
    tie_break: float = field(
        default=TIE_BREAK,
        metadata={"help": "Points a ranking step gives one of two equal scores and takes from the other."},
    )

    @property
    def gpus_per_genrm(self) -> int:
        """GPUs of its node that a GenRM server has; 0 on a CPU."""
        return self.judge_tensor_parallel_size if resolve_device(self.device) == "cuda" else 0

    def check(self) -> None:
        """Raises ConfigError on values that cannot work, alone or together."""
        super().check()
        dialect_named(self.judge_dialect, self.judge_principle)
        self._check_counts()
        self._check_ranges()
        self._check_scheme()
        starts_judge = self.judge_servers > 0 and self.reward_url is None
        if self.deterministic and starts_judge and self.judge_tensor_parallel_size > 1:
            raise ConfigError(
                f"deterministic needs judge_tensor_parallel_size 1, and it is {self.judge_tensor_parallel_size}: "
                "a sum over the ranks of a server has no promised order; set it to 1, or deterministic to false"
            )
        if self.judge_max_tokens >= self.judge_max_model_len:
            raise ConfigError(
                f"judge_max_tokens ({self.judge_max_tokens}) leaves no room for a prompt in judge_max_model_len "
                f"({self.judge_max_model_len}); lower the first or raise the second"
            )

    def _check_counts(self) -> None:
        at_least_one = (
            "tensor_parallel_size", "max_model_len", "max_tokens", "max_num_seqs", "max_in_flight", "max_queue",
            "votes",
        )  # fmt: skip
        for name in (f"judge_{suffix}" for suffix in at_least_one):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 1")
        for name in ("judge_retries", "judge_servers", "judge_calls_per_group"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 0")
        if self.judge_servers + len(self.judge_urls) < 1:
            raise ConfigError("judge_servers (0) with no judge_urls leaves nobody to judge; start one or name a URL")

    def _check_ranges(self) -> None:
        if not 0 <= self.reward_port <= 65535:
            raise ConfigError(f"reward_port ({self.reward_port}) must lie in 0..65535; 0 takes a free one")
        for name, url in [("reward_url", self.reward_url), *(("judge_urls", url) for url in self.judge_urls)]:
            if url is not None and not url.startswith(("http://", "https://")):
                raise ConfigError(f"{name} {url!r} must start with http:// or https://")
        for name in ("judge_timeout_s", "judge_health_timeout_s", "judge_fetch_stall_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be positive")
        if not self.judge_temperature >= 0:
            raise ConfigError(f"judge_temperature ({self.judge_temperature}) must be at least 0")
        if not 0 < self.judge_gpu_memory_utilization <= 1:
            raise ConfigError(
                f"judge_gpu_memory_utilization ({self.judge_gpu_memory_utilization}) is a share: give 0.05 to 1"
            )
        if not 0 <= self.tie_break < TIE_BREAK_LIMIT:
            raise ConfigError(
                f"tie_break ({self.tie_break}) must be at least 0 and below {TIE_BREAK_LIMIT}: "
                "more would let a broken tie outrank a real point"
            )

    def _check_scheme(self) -> None:
        for name, known in (("judge_pairing", PAIRINGS), ("judge_aggregation", AGGREGATIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; choose from {', '.join(known)}")
        if self.judge_votes > 1 and self.judge_temperature == 0:
            raise ConfigError(
                f"judge_votes ({self.judge_votes}) at judge_temperature 0 would be the same verdict each time; "
                "set judge_temperature to 0.6 or more, or judge_votes to 1"
            )
        if self.judge_calls_per_group and self.judge_pairing != "ring_extra":
            raise ConfigError(
                f"judge_calls_per_group ({self.judge_calls_per_group}) is for judge_pairing ring_extra, and this is "
                f"{self.judge_pairing!r}; leave it at 0"
            )
