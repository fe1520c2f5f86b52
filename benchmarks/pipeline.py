"""`python -m benchmarks.pipeline`: how much of what the parts could do the pipeline gets out of them, and its cost.

efficiency               for each layout in `benchmarks/layouts/`: episodes a second of the real driver over
                         stand-ins on a virtual clock (`trainer.simulate`), over the analytic capacity: the least of
                         what fleet, judge and learner allow (slots over mean time; the push counts with the
                         learner) and of what is in flight over the latency (`trainer.capacity.capacities`).
                         Verdicts have a tail of 10 times the median. A generation- or judge-bound layout has at
                         least 4 times as many completions a step as its bottleneck has slots
efficiency_on_policy     the same with max_lag 0, over the same capacity
driver_ms_per_completion CPU time of the driver's process, all its threads, a completion of 1,000 tokens: real HTTP
                         and its streams, tokens to text by a real tokenizer, pairs, verdicts over real HTTP, the
                         ledger, the step's batch. See `benchmarks/driver_cost.py`
plain_json_ms_per_completion  beside it, what Python's `json.loads` alone takes on this machine for such a completion

With `--early_gradients` the steps are begun early, and what is in flight allows more: its latency is shorter.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from benchmarks.driver_cost import driver_cost, plain_json_ms
from benchmarks.pipeline_layouts import load_cases, run_case
from wire import event_loop


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="*", help="Names of layouts; all by default.")
    parser.add_argument(
        "--early_gradients", action="store_true", help="Begin steps early; see trainer/accumulation.py."
    )
    parser.add_argument("--steps", type=int, help="Steps of each layout, in place of its own.")
    parser.add_argument("--parts", default="ld", help="l: layouts, d: the driver's cost.")
    parser.add_argument("--completions", type=int, default=4096, help="That the driver's cost is measured over.")
    parser.add_argument("--profile", help="File for cProfile's statistics of the driver; its figure then misleads.")
    return parser.parse_args()


def layouts(flags: argparse.Namespace) -> dict[str, dict[str, float | bool]]:
    """The layouts' figures, by name."""
    figures: dict[str, dict[str, float | bool]] = {}
    cases = load_cases()
    for case in [replace(c, settings=replace(c.settings, early_gradients=flags.early_gradients)) for c in cases]:
        if flags.only is not None and case.name not in flags.only:
            continue
        steps = flags.steps or case.steps
        lagged = run_case(case, steps=steps)
        on_policy = run_case(case, max_lag=0, steps=max(8, steps // 2))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in lagged.utilisation.items())
        print(
            f"{case.name:18} {lagged.of} allows {lagged.capacity:.4g} episodes a second, achieved "
            f"{lagged.episodes_s:.4g}; in use: {shares}; preflight / simulation {lagged.prediction:.3f}, on-policy "
            f"{on_policy.prediction:.3f}; {lagged.num_completions} completions in {lagged.real_s:.0f} s",
            flush=True,
        )
        figures[case.name] = {
            "efficiency": float(f"{lagged.efficiency:.4g}"),
            "efficiency_on_policy": float(f"{on_policy.episodes_s / lagged.capacity:.4g}"),
            "balanced": case.balanced,
        }
    return figures


def main() -> None:
    """Measure and print; the last line is JSON."""
    flags, figures = arguments(), dict[str, object]()
    if "l" in flags.parts:
        figures["layouts"] = layouts(flags)
    if "d" in flags.parts:
        cost = event_loop.run(driver_cost(flags.completions, profile=flags.profile))
        figures["driver_ms_per_completion"] = float(f"{cost:.4g}")
        figures["plain_json_ms_per_completion"] = float(f"{plain_json_ms():.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
