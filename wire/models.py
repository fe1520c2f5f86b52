"""Whether a model or data set that a setting names can be had, asked before anything is started."""

from __future__ import annotations

import re
from pathlib import Path

from wire.errors import ConfigError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` and is not the path of something on this disk."""
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).exists()


def check_model(name: str, setting: str) -> None:
    """Check that `name` is a model folder or looks like a Hub id.

    Raises:
        ConfigError: neither; the message names the setting.
    """
    if is_hub_id(name):
        return
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{setting} {name!r} is neither a folder nor a Hub id (owner/name); check the path")
    if not (path / "config.json").is_file():
        raise ConfigError(f"{setting} {name!r} holds no config.json; name a Hugging Face model folder")
