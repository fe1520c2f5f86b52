"""The layouts of `benchmarks/layouts/`: settings and rates of a cluster, and what the driver makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trainer.capacity import HOUR_S, capacities, expected_step_s
from trainer.config import RunSettings
from trainer.rates import Rates, make_layout
from trainer.simulate import simulate

FOLDER = Path(__file__).parent / "layouts"
PATIENT = {"rollout_timeout_s": 1e6, "judge_timeout_s": 1e6, "learner_timeout_s": 1e6}  # no deadline ends a wait


@dataclass(frozen=True)
class Case:
    """One file: `steps` are simulated, `balanced` says that no part alone is the bottleneck."""

    name: str
    settings: RunSettings
    rates: Rates
    steps: int
    balanced: bool


def load_case(path: Path) -> Case:
    """Read a layout. K is 4 and max_lag 1 unless the file says otherwise."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    settings = RunSettings(device="cpu", **PATIENT, **content["settings"])
    settings.check()
    return Case(path.stem, settings, Rates(**content["rates"]), content["steps"], content["balanced"])


def load_cases() -> list[Case]:
    """All of them."""
    return [load_case(path) for path in sorted(FOLDER.glob("*.yaml"))]


@dataclass(frozen=True)
class Outcome:
    """Of one run. `capacity` is the least of the parts' in episodes a second, `of` is whose; seconds are a step's."""

    capacity: float
    of: str
    episodes_s: float
    expected_s: float
    simulated_s: float
    num_completions: int
    real_s: float
    utilisation: dict[str, float]

    @property
    def efficiency(self) -> float:
        """Achieved over analytic capacity."""
        return self.episodes_s / self.capacity

    @property
    def prediction(self) -> float:
        """What preflight expects over what the simulation does: 1.05 is 5 % too slow."""
        return self.expected_s / self.simulated_s


def run_case(case: Case, *, max_lag: int | None = None, steps: int | None = None) -> Outcome:
    """Simulate it; with another lag than the file's, where given."""
    settings = case.settings if max_lag is None else replace(case.settings, max_lag=max_lag)
    layout = make_layout(settings, case.rates)
    parts = capacities(layout)
    least = min(parts, key=parts.__getitem__)
    steps = steps or case.steps
    summary = simulate(settings, case.rates, steps=steps)
    return Outcome(
        capacity=parts[least] / HOUR_S,
        of=least,
        episodes_s=summary["episodes_per_second"],
        expected_s=expected_step_s(layout),
        simulated_s=summary["seconds_per_step"],
        num_completions=steps * layout.per_step,
        real_s=summary["real_seconds"],
        utilisation=summary["utilisation"],
    )
