"""The reward service's door to the Hugging Face Hub: what a model needs, what of it is here, and the rest.

`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN` are heeded as the library heeds them.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from httpx2 import HTTPError
from huggingface_hub import constants
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import disable_progress_bars

from reward_server.fetch_state import size
from reward_server.model_files import needed, weights_among
from wire.errors import ConfigError

# What the library raises where it cannot do what it is asked, connections and disk included.
TROUBLE = (OSError, RuntimeError, HTTPError, XetDownloadError, HFValidationError)
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; `blob` is its name among the cache's blobs."""

    name: str
    num_bytes: int
    blob: str


@dataclass(frozen=True)
class Snapshot:
    """The files that a server needs of `model` at a commit."""

    model: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def done_bytes(self) -> int:
        """What of them is on this disk, unfinished files included."""
        return sum(self._present(file) for file in self.files)

    def _present(self, file: HubFile) -> int:
        folder = cache_folder(self.model)
        if (folder / "snapshots" / self.commit / file.name).exists() or (folder / "blobs" / file.blob).exists():
            return file.num_bytes
        # A file that is written in pieces may have holes: what is allocated counts.
        found = [path.stat() for path in (folder / "blobs").glob(f"{file.blob}.*.incomplete")]
        return min(file.num_bytes, max((min(at.st_size, at.st_blocks * 512) for at in found), default=0))


def be_quiet() -> None:
    """Its bars and retries are no news: what matters is told, or raised."""
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def cache_folder(model: str) -> Path:
    """Where the library keeps a model's files."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")


def is_offline() -> bool:
    """Whether the hub must not be asked."""
    return bool(constants.HF_HUB_OFFLINE)


def look_up(model: str, revision: str | None) -> Snapshot:
    """Ask the hub, once.

    Raises: whatever the library does; see `mistake_in`.
    """
    info = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    assert info.sha is not None and info.siblings is not None
    known = {file.rfilename: file for file in info.siblings}
    files = tuple(
        HubFile(name, file.size or 0, str(file.lfs.sha256 if file.lfs is not None else file.blob_id))
        for name, file in ((name, known[name]) for name in needed(known))
    )
    if not weights_among(known):
        raise _mistake(model, "has no weights that vLLM loads; name another repository")
    return Snapshot(model, info.sha, files)


def download(snapshot: Snapshot, revision: str | None) -> Path:
    """Bring all files here that are not; returns their folder. Blocks; whole files stay where it is broken off.

    Raises: whatever the library does; see `mistake_in`.
    """
    names = [file.name for file in snapshot.files]
    return Path(huggingface_hub.snapshot_download(snapshot.model, revision=revision, allow_patterns=names))


def cached(model: str, revision: str | None) -> Path | None:
    """The folder of a model whose files are all here, without asking anybody; None where one is missing."""
    config = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        names = needed(file.path for file in huggingface_hub.get_cached_repo_tree(model, revision=revision))
    except CachedRepoTreeNotFoundError:  # another program, or another version, has brought them
        names = _weights_named_in(folder)
    return folder if names and all((folder / name).exists() for name in names) else None


def _weights_named_in(folder: Path) -> list[str]:
    try:
        return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError):
        return weights_among(path.name for path in folder.iterdir())


def check_space(snapshot: Snapshot) -> None:
    """Raises ConfigError where the disk has no room for what is missing."""
    missing = snapshot.total_bytes - snapshot.done_bytes
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if missing > free:
        raise _mistake(
            snapshot.model,
            f"needs {size(missing)} more in {folder}, and {size(free)} are free there: make room, or let HF_HOME name "
            "a folder on a larger disk",
        )


def mistake_in(error: BaseException, model: str, revision: str | None) -> ConfigError | None:
    """What a person has to change, where that is what `error` says; None where trying again may help."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    number = error.errno if isinstance(error, OSError) else None
    cases = (  # the first that applies: a gated repository is, to the library, one kind of a missing one
        (
            isinstance(error, GatedRepoError) or status == 403,
            f"is gated at {constants.ENDPOINT}: ask for access on its page there, and give this host a token of an "
            "account that has it (HF_TOKEN, or `hf auth login`)",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            f"has no branch, tag or commit {revision!r}: change judge_revision",
        ),
        (
            isinstance(error, RepositoryNotFoundError),
            f"is not at {constants.ENDPOINT}, or it is private: check the name; a private model needs a token of an "
            "account that sees it (HF_TOKEN, or `hf auth login`)",
        ),
        (status == 401, f"cannot be had: {constants.ENDPOINT} refuses this host's token; give another (HF_TOKEN)"),
        (isinstance(error, HFValidationError), f"is no name of a model: {error}"),
        (
            number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
            f"cannot be written to {constants.HF_HUB_CACHE} ({error}): make room, or let HF_HOME name another folder",
        ),
    )
    return next((_mistake(model, text) for applies, text in cases if applies), None)


def _mistake(model: str, text: str) -> ConfigError:
    return ConfigError(f"judge_model_name_or_path {model!r} {text}")


def missing_offline(model: str, revision: str | None) -> ConfigError:
    """The hub must not be asked, and not all files are here."""
    at = f" at {revision!r}" if revision else ""
    return _mistake(
        f"{model}{at}",
        f"is not whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it: unset it once for "
        "`python -m reward_server.prefetch`, or name a folder",
    )
