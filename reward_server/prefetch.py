"""`python -m reward_server.prefetch --config FILE`: bring the judge's files to this host, and end.

A reward service fetches what is missing by itself. This is for who wants it done before, or on a disk that is shared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reward_server import hub
from reward_server.config import RewardSettings
from reward_server.fetch import Fetch
from reward_server.fetch_teller import teller_for
from reward_server.fetched import run_and_leave
from reward_server.genrm import check_judge_model
from wire.models import is_hub_id
from wire.settings import parse_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, fetch."""
    settings, _ = parse_settings(RewardSettings, argv, strict_file=False)
    model = settings.judge_model_name_or_path
    check_judge_model(settings)
    if not is_hub_id(model):
        print(f"{model} is a folder: there is nothing to fetch")
        return
    hub.be_quiet()
    teller = teller_for(sys.stdout, model)
    print(Fetch(model, settings.judge_revision, settings.judge_fetch_stall_s, teller.tell).run())


if __name__ == "__main__":
    run_and_leave(main)
