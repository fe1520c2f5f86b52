"""What is checked before anything is started: every mistake that can be known early, as one clear line."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from trainer.config import RunSettings
from trainer.dataset import load_conversations, pairs_to_check_judge
from trainer.eval_file import read_conversations
from trainer.evaluate import load_truth
from wire.engine import resolve_device
from wire.errors import ConfigError
from wire.models import check_model, is_hub_id

PROBE_TIMEOUT_S = 5.0
# Data sets of the shipped configurations: a dry run does not download them.
KNOWN_DATASETS = frozenset({"nvidia/HelpSteer3"})


def check_environment(settings: RunSettings) -> list[str]:
    """Check what the settings name outside of themselves. Returns notes on what was not checked.

    Raises:
        ConfigError: a model, data set, URL, function or device that is not there.
    """
    notes = []
    if not settings.reward_url:
        check_model(settings.judge_model_name_or_path, "judge_model_name_or_path")
    load_truth(settings.truth_function)
    if settings.dry_run and is_hub_id(settings.dataset_name) and settings.dataset_name in KNOWN_DATASETS:
        notes.append(f"{settings.dataset_name} is not downloaded in a dry run; the run itself checks its columns")
    else:
        load_conversations(settings, settings.dataset_split)
        if settings.num_eval_prompts and not settings.eval_file:
            load_conversations(settings, settings.eval_split)
        pairs_to_check_judge(settings)
    if settings.num_eval_prompts and settings.eval_file:
        read_conversations(Path(settings.eval_file))
    for url in [*settings.rollout_urls, *filter(None, [settings.reward_url, settings.second_reward_url])]:
        check_url(url)
    # In a cluster the driver may stand on a host without GPUs: Ray finds them for what it places.
    if settings.device == "cuda" and not settings.ray_address and not Path("/dev/nvidiactl").exists():
        message = "device 'cuda': this host shows no NVIDIA GPU; use device cpu, or start on a GPU host"
        if not settings.dry_run:
            raise ConfigError(message)
        notes.append(message)
    if resolve_device(settings.device) == "cpu" and not settings.reward_url and settings.judge_tensor_parallel_size > 1:
        notes.append(f"the judge is split over {settings.judge_tensor_parallel_size} CPU ranks")
    return notes


def check_url(url: str) -> None:
    """Raises ConfigError unless `<url>/health` answers within 5 s; a server that is still loading answers 503."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise ConfigError(f"{url} is not ready yet (HTTP 503 from /health); wait until it is") from error
        raise ConfigError(f"{url}/health answers HTTP {error.code}; is this the right server?") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"nobody answers at {url} ({reason}); start the server or correct the URL") from error
