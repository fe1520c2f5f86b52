"""How fast the parts of a run are: given in a file, or measured by a run. What preflight and simulation reckon with.

completion_tokens: 620       # one flat YAML file; what it leaves out has the default below
token_s: 0.022
verdict_s: 38
step_s: 55
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from reward_server.pairings import drawn_order
from reward_server.scheme import Scheme
from trainer.config import RunSettings
from trainer.durations import Duration
from wire.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """Times in seconds. Lengths and verdicts are log-normal, cut at their longest (`trainer.durations`)."""

    completion_tokens: float = field(metadata={"help": "Mean length before the cut at response_length, in tokens."})
    token_s: float = field(metadata={"help": "Time a token of one completion, the replica's slots in use."})
    verdict_s: float = field(metadata={"help": "Median time of a verdict, the GenRM server's slots in use."})
    step_s: float = field(metadata={"help": "Time of a step."})

    completion_spread: float = field(default=0.5, metadata={"help": "Sigma of the log-normal of the lengths."})
    prefill_s: float = field(default=0.0, metadata={"help": "Time until a completion's first token."})
    replica_slots: int = field(default=0, metadata={"help": "Completions a replica writes at once; 0: as configured."})
    replica_tokens_s: float = field(
        default=0.0, metadata={"help": "Tokens a second of a whole replica, if they bound token_s; 0: they do not."}
    )
    verdict_spread: float = field(default=0.5, metadata={"help": "Sigma of the log-normal of the verdicts' times."})
    verdict_tail: float = field(default=10.0, metadata={"help": "The longest verdict takes so many times the median."})
    verdict_tokens: float = field(default=0.0, metadata={"help": "Mean tokens of a verdict; 0: not known."})
    genrm_servers: int = field(default=0, metadata={"help": "GenRM servers; 0: as configured."})
    genrm_slots: int = field(default=0, metadata={"help": "Verdicts a GenRM server writes at once; 0: as configured."})
    reference_s: float = field(default=0.0, metadata={"help": "Time a completion takes a rank in the no-grad pass."})
    push_s: float = field(default=0.0, metadata={"help": "Time of a push: the learner sends, replicas stand still."})
    push_beside: bool = field(
        default=True, metadata={"help": "No-grad passes go on during a push, as below ZeRO-3; false: they wait."}
    )


POSITIVE = ("completion_tokens", "token_s", "verdict_s", "step_s")
AT_LEAST = {"verdict_tail": 1.0}  # the others: 0


def load_rates(path: str) -> Rates:
    """The rates in a YAML file.

    Raises:
        ConfigError: no such file, no mapping, a name that nobody knows, one that is missing, or a value that cannot be.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rates {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"rates {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"rates {path} must hold `name: value` lines")
    kinds = {f.name: f.type for f in fields(Rates)}
    for name in content:
        if name not in kinds:
            raise ConfigError(f"rates {path}: unknown rate {name!r}; there are {', '.join(kinds)}")
    missing = [name for name in POSITIVE if name not in content]
    if missing:
        raise ConfigError(f"rates {path}: {missing[0]} is missing; it has no default")
    values: dict[str, Any] = {n: _checked(path, n, value, str(kinds[n])) for n, value in content.items()}
    return Rates(**values)


def _checked(path: str, name: str, value: object, kind: str) -> float | bool:
    """The value, if it can be this rate's."""
    try:
        if isinstance(value, bool) is not (kind == "bool") or isinstance(value, (list, dict)):
            raise ValueError
        # YAML takes 1e-3, which has no dot, for text.
        number = value if isinstance(value, bool) else {"int": int, "float": float}[kind](str(value))
    except ValueError:
        raise ConfigError(f"rates {path}: {name}: invalid value {value!r}; give a {kind}") from None
    if name in POSITIVE and not number > 0:  # NaN too
        raise ConfigError(f"rates {path}: {name} ({value}) must be positive")
    least = AT_LEAST.get(name, 0.0)
    if not float("inf") > number >= least:
        raise ConfigError(f"rates {path}: {name} ({value}) must be at least {least:g}, and finite")
    return number


@dataclass(frozen=True)
class Layout:
    """A run's parts with their rates: what settings and rates come to, for `make_layout` to say.

    `prompts` a step (P), K `completions` of each, `verdicts` a group, of two completions each where the pairing
    `compares`. A *slot* is room for one completion in a replica,
    or for one verdict in a GenRM server. `completion` and `verdict` are seconds of one.
    """

    prompts: int
    completions: int
    verdicts: int
    compares: bool
    max_lag: int
    replicas: int
    replica_slots: int
    genrm_servers: int
    genrm_slots: int
    ranks: int
    completion: Duration
    tokens: Duration
    verdict: Duration
    verdict_tokens: float
    step_s: float
    reference_s: float
    push_s: float
    push_beside: bool
    early: int = 0  # groups that a part of a step's gradient is made of, begun before all are there; 0: none is

    @property
    def per_step(self) -> int:
        """Completions of a step (N)."""
        return self.prompts * self.completions

    @property
    def writing(self) -> int:
        """Slots of all replicas."""
        return self.replicas * self.replica_slots

    @property
    def judging(self) -> int:
        """Slots of all GenRM servers."""
        return self.genrm_servers * self.genrm_slots


def make_layout(settings: RunSettings, rates: Rates) -> Layout:
    """What the settings and the rates come to.

    Raises:
        ConfigError: the number of replicas or of GenRM servers is in neither.
    """
    replicas = settings.replicas + len(settings.rollout_urls)
    if not replicas:
        raise ConfigError("how many replicas will be found in the cluster? give --replicas so many, for the reckoning")
    servers = rates.genrm_servers or (0 if settings.reward_url else settings.judge_servers + len(settings.judge_urls))
    if not servers:
        raise ConfigError(f"how many GenRM servers stand behind {settings.reward_url}? give genrm_servers in the rates")
    slots = rates.replica_slots or settings.rollout_max_num_seqs
    token_s = max(rates.token_s, slots / rates.replica_tokens_s if rates.replica_tokens_s else 0.0)
    tokens = Duration.of_mean(rates.completion_tokens, rates.completion_spread, float(settings.response_length))
    return Layout(
        prompts=settings.prompts_per_step,
        completions=settings.rloo_k,
        verdicts=verdicts_per_group(settings),
        compares=settings.judge_pairing != "single",
        max_lag=settings.max_lag,
        replicas=replicas,
        replica_slots=slots,
        genrm_servers=servers,
        genrm_slots=rates.genrm_slots or settings.judge_max_num_seqs,
        ranks=settings.num_learner_ranks,
        completion=tokens.scaled(token_s, rates.prefill_s),
        tokens=tokens,
        verdict=Duration(rates.verdict_s, rates.verdict_spread, rates.verdict_s * rates.verdict_tail),
        verdict_tokens=rates.verdict_tokens,
        step_s=rates.step_s,
        reference_s=rates.reference_s,
        push_s=rates.push_s,
        push_beside=rates.push_beside,
        early=-(-settings.completions_per_micro_step // settings.rloo_k) if settings.begins_early else 0,
    )


def verdicts_per_group(settings: RunSettings) -> int:
    """Verdicts of a group of K completions that all differ and all have something to judge."""
    scheme, num = Scheme.of(settings), settings.rloo_k
    answers = {index: str(index) for index in range(num)}
    return len(scheme.pairing.pairs(drawn_order(num, 0), answers)) * scheme.votes
