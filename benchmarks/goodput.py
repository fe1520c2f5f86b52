"""`python -m benchmarks.goodput`: how much of what a preempted fleet could write is trained on.

A third of the replicas is taken away at once, again and again, and each comes back after a time of its own. The real
driver code runs over them: loop, pipeline, collector, client, fleet, the learner's and the push's control traffic.
Stand-ins are the replicas (real HTTP, `benchmarks/standin_replica.py`), the judge, and the learner's ranks: they take
their time and compute nothing. All times are those of a real run divided by `--scale`; the clock is real.

    goodput           completions trained on, over what the replicas that were there could have written: their slots,
                      times the seconds they were there, over the mean seconds that a completion takes on an engine
                      that never stands still. One is there from its answering again to its being cut off; so noticing
                      it, its catching up, pauses for pushes, what was lost half written and slots without work all
                      count as losses. A completion counts when it is written: each that is written whole is trained
                      on, none is dropped, and the thousands in the pipeline at either end of a short window would
                      else decide the figure (`trained` in the details counts them by step). The window is from one
                      step's end to another's, the first few left out.
    recovery_p95_s    95th percentile, in seconds of a real run, of the time from a replica's being given back (it
                      answers) until the driver holds the first completion that it wrote, with the live version alone.
                      A completion's own time is part of it.
    reroute_p95_s     in the details: from a loss until each prompt that the lost one was writing is with another
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from benchmarks.preempted_run import WARM_STEPS, Recorder, run_for
from benchmarks.preemption import make_trace, percentile, present_seconds
from benchmarks.standin_fleet import StandInFleet


def arguments() -> argparse.Namespace:
    """The flags. Seconds are a real run's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--scale", type=float, default=12.0, help="Divides every time.")
    add("--duration_s", type=float, default=1440.0, help="Length of the run.")
    add("--replicas", type=int, default=12, help="Replicas.")
    add("--slots", type=int, default=16, help="Completions that a replica writes at once.")
    add("--completion_s", type=float, default=20.0, help="Mean seconds of a completion.")
    add("--mean_tokens", type=float, default=200.0, help="Mean tokens of a completion: what is sent, not how long.")
    add("--spread", type=float, default=0.5, help="Sigma of the log-normal of the lengths.")
    add("--judge_s", type=float, default=20.0, help="Median seconds of a verdict.")
    add("--reference_s", type=float, default=0.5, help="Seconds of a reference pass.")
    add("--step_s", type=float, default=20.0, help="Seconds of a step.")
    add("--open_s", type=float, default=0.7, help="Seconds until a transfer group is open.")
    add("--load_s", type=float, default=0.7, help="Seconds until weights are received and loaded.")
    add("--prompts_per_step", type=int, default=128, help="Prompts of a step.")
    add("--max_lag", type=int, default=4, help="As the run's flag.")
    add("--share", type=float, default=1 / 3, help="Share of the fleet that a wave takes; 0: none.")
    add("--every_s", type=float, default=360.0, help="Mean seconds between waves.")
    add("--away_s", type=float, default=120.0, help="Mean seconds away, its start included.")
    add("--queue_at_replicas", action="store_true", help="Send all prompts at once: who is full queues them itself.")
    add("--seed", type=int, default=1, help="Of the trace.")
    return parser.parse_args()


async def measure(flags: argparse.Namespace) -> dict[str, float]:
    """Both figures."""
    scale, recorder = flags.scale, Recorder()
    trace = make_trace(
        flags.replicas,
        flags.duration_s / scale,
        share=flags.share,
        every_s=flags.every_s / scale,
        away_s=flags.away_s / scale,
        seed=flags.seed,
    )
    token_s = flags.completion_s / flags.mean_tokens / scale
    standins = StandInFleet(
        flags.replicas,
        slots=flags.slots,
        mean_tokens=flags.mean_tokens,
        spread=flags.spread,
        token_s=token_s,
        open_s=flags.open_s / scale,
        load_s=flags.load_s / scale,
    )
    cpu, began = time.process_time(), time.monotonic()
    async with standins:
        preemption = await run_for(flags, standins, recorder, trace)
    cores = (time.process_time() - cpu) / (time.monotonic() - began)
    start, end, grew = recorder.at_start["time"], recorder.at_end["time"], recorder.in_window
    there_s = present_seconds(flags.replicas, preemption.away, start, end)
    completion_s = token_s * grew("written_tokens") / grew("written")
    could = there_s * flags.slots / completion_s
    goodput = grew("written") / could
    show(
        window_s=(end - start) * scale,
        steps=recorder.num_steps - WARM_STEPS,
        written=grew("written"),
        trained=grew("completions"),
        could=could,
        completion_s=completion_s * scale,
        there=there_s / (end - start) / flags.replicas,
        losses=grew("losses"),
        joins=grew("joins"),
        rerouted_prompts=grew("rerouted_prompts"),
        retries=grew("retries"),
        driver_cores=cores,
    )
    discarded, paused = grew("tokens_discarded") * token_s / flags.slots / there_s, grew("paused") / there_s
    show(discarded=discarded, paused=paused, rest=1 - goodput - discarded - paused)
    show(**{stage: grew(stage) / (end - start) for stage in ("wait", "step", "publish")})
    show(
        recoveries=len(recorder.recoveries),
        recovery_p50_s=percentile(recorder.recoveries, 0.5) * scale,
        reroutes=len(recorder.reroutes),
        reroute_p50_s=percentile(recorder.reroutes, 0.5) * scale,
        reroute_p95_s=percentile(recorder.reroutes, 0.95) * scale,
    )
    recovery_s = percentile(recorder.recoveries, 0.95) * scale if recorder.recoveries else None  # JSON knows no NaN
    return {"goodput": goodput, "recovery_p95_s": recovery_s}


def show(**figures: float) -> None:
    """One line of detail."""
    print("  ".join(f"{name} {float(f'{value:.4g}'):g}" for name, value in figures.items()), flush=True)


def main() -> None:
    """Measure and print; the last line is JSON."""
    flags = arguments()
    with asyncio.Runner() as runner:
        figures = runner.run(measure(flags))
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
