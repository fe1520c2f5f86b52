"""What is checked before anything is started: every mistake that can be known early, as one clear line."""

from __future__ import annotations

from pathlib import Path

from trainer.config import RunSettings
from trainer.dataset import load_conversations, pairs_to_check_judge
from trainer.eval_file import read_conversations
from trainer.evaluate import load_truth
from trainer.joined import is_ready
from wire.engine import resolve_device
from wire.errors import ConfigError
from wire.models import check_model, is_hub_id

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
    notes += [f"{url} is still loading (HTTP 503 from /health)" for url in joined(settings) if not is_ready(url)]
    # In a cluster the driver may stand on a host without GPUs: Ray finds them for what it places.
    if settings.device == "cuda" and not settings.ray_address and not Path("/dev/nvidiactl").exists():
        message = "device 'cuda': this host shows no NVIDIA GPU; use device cpu, or start on a GPU host"
        if not settings.dry_run:
            raise ConfigError(message)
        notes.append(message)
    if resolve_device(settings.device) == "cpu" and not settings.reward_url and settings.judge_tensor_parallel_size > 1:
        notes.append(f"the judge is split over {settings.judge_tensor_parallel_size} CPU ranks")
    return notes


def joined(settings: RunSettings) -> list[str]:
    """The URLs of all servers that the run does not start."""
    return [*settings.rollout_urls, *filter(None, [settings.reward_url, settings.second_reward_url])]
