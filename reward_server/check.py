"""`python -m reward_server.check --config FILE`: is the judge fit for a run?

Renders the judge's own chat template and proves that nothing is left out of it, then lets the judge compare pairs of
which people said what is better. Exit code 2 where the template or a figure is beyond its limit (`limits.py`), with the
figure, the limit and the usual causes. `--reward_url URL` checks a service that runs; else one is started and ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from reward_server.agreement import Figures, judge_pairs
from reward_server.client import RewardClient
from reward_server.limits import CheckSettings, faults
from reward_server.preferences import PreferencePair, load_pairs
from reward_server.service import reward_client
from reward_server.template import Template, prove_template
from wire.errors import ConfigError
from wire.settings import parse_settings, run_program


@dataclass(frozen=True)
class Checked:
    """A judge that passed. `prefix_cache_hits` is a share of its servers' prompt tokens, since they started."""

    model: str
    dialect: str
    template: Template
    figures: Figures
    prefix_cache_hits: float | None

    def lines(self, settings: CheckSettings) -> list[str]:
        """A table for people, with the limits."""
        f, s = self.figures, settings
        return [
            f"judge           {self.model}, dialect {self.dialect}",
            "chat template   every turn and response once, in its place; a system turn is " + self.template.system_turn,
            f"agreement       {_percent(f.agreement)} of {f.num_compared} pairs (at least {s.check_min_agreement:.0%})",
            f"flips           {_percent(f.flip_share)} of {f.num_both_orders} pairs (at most {s.check_max_flips:.0%})",
            f"contradictions  {_percent(f.contradiction_share)} (at most {s.check_max_contradictions:.0%})",
            f"ties            {_percent(f.tie_share)}",
            f"unreadable      {_percent(f.unreadable_share)} (at most {s.check_max_unreadable:.0%})",
            f"missing         {_percent(f.missing_share)} (at most {s.check_max_missing:.0%}): {f.reasons}",
            f"a verdict       {f.seconds:.1f} s, {f.tokens:.0f} tokens; {f.num_verdicts} were asked for",
            f"prefix cache    {_percent(self.prefix_cache_hits)} hits since the servers started",
        ]


async def check_judge(
    client: RewardClient, settings: CheckSettings, pairs: Sequence[PreferencePair], say: Callable[[str], None]
) -> Checked:
    """Prove the template, judge `check_pairs` of `pairs` in both orders, and hold the figures against the limits.

    Args:
        client: asks the service.
        settings: the limits. Who judges is asked of the service.
        pairs: what `load_pairs` gives; always the same ones are drawn of it.
        say: told the figures as lines, whether they pass or not.

    Raises:
        ConfigError: the template is not the judge's, or a figure is beyond its limit; the message gives figure, limit
            and the usual causes.
        ServiceError: the service is lost.
        Unauthorized: the service refuses the token.
    """
    info = await client.info()
    template = await prove_template(client, info["dialect"])
    judged = await judge_pairs(client, drawn(pairs, settings.check_pairs), "judge check")
    hits = (await client.info())["prefix_cache_hit_share"]
    checked = Checked(info["model"], info["dialect"], template, Figures.of(judged), hits)
    say("\n".join(checked.lines(settings)))
    found = faults(settings, checked.figures)
    if found:
        raise ConfigError("the judge is not fit: " + "; ".join(found))
    return checked


def drawn(pairs: Sequence[PreferencePair], num: int) -> list[PreferencePair]:
    """`num` of the pairs from all over the split, the same at each call; all where there are fewer."""
    return Random(0).sample(list(pairs), min(num, len(pairs)))


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _say(text: str) -> None:
    print(text, flush=True)


async def _run(settings: CheckSettings, pairs: Sequence[PreferencePair]) -> None:
    async with reward_client(settings) as client:
        await check_judge(client, settings, pairs, _say)
    _say("the judge is fit")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load the pairs, check."""
    settings, _ = parse_settings(CheckSettings, argv, strict_file=False)
    pairs, num_skipped = load_pairs(settings, settings.eval_split)
    _say(
        f"{len(pairs)} pairs of {settings.dataset_name} ({settings.eval_split}); {num_skipped} rows without one skipped"
    )
    asyncio.run(_run(settings, pairs))


if __name__ == "__main__":
    run_program(main)
