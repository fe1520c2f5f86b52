"""What the environment must say before Ray is imported: its core reads these variables once, at import."""

from __future__ import annotations

import os
import secrets


def prepare_embedded_ray() -> None:
    """Make an embedded Ray private to this host and this run.

    It listens on the loopback interface only, and every call to it carries a token that nobody else has. Ray replaces
    a loopback address by the host's public one wherever clusters are possible, and then listens on every interface; the
    last switch (named for the systems that lack clusters) turns that off, since an embedded Ray has one host.

    Its workers run at this process's own priority. Ray's default is 15 steps lower, and the learner would then wait for
    every joined server, and whatever else the host does, that wants a processor at the same time. How far it shall is
    `learner_niceness`, which the servers that these workers start do not inherit (trainer/niceness.py).
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = (
        "0"  # an actor without a GPU keeps the visible devices as they are
    )
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - the name is Ray's
