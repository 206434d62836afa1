"""Hugging Face hub ids: found in the local cache, downloaded only when asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lora_core.errors import InputError, ModelError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model")
_WANTED_OF_ADAPTERS = (*_WANTED, "*.gguf")


def is_hub_id(ref: str) -> bool:
    """Say whether `ref` is spelled like a hub id, `organization/name`."""
    return _ID.fullmatch(ref) is not None and ".." not in ref


def cache_directory() -> Path:
    """Return the hub cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else the user's cache, as huggingface_hub has it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "huggingface" / "hub"


def find_snapshot(ref: str) -> Path | None:
    """Return the directory of the cached snapshot that `main` of hub id `ref` points to, or None."""
    repository = cache_directory() / f"models--{ref.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def id_of_snapshot(directory: Path) -> str | None:
    """Return the hub id of a directory that is a snapshot in a hub cache (`models--org--name/snapshots/COMMIT`)."""
    repository = directory.parent.parent.name
    if directory.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    ref = repository.removeprefix("models--").replace("--", "/", 1)
    return ref if is_hub_id(ref) else None


def resolve(
    ref: str,
    *,
    download: bool,
    what: Literal["Model", "Adapter"] = "Model",
    error: type[InputError] = ModelError,
) -> Path:
    """Return the directory of hub id `ref`, a `what`; reaches the network only with `download`. Raises `error`."""
    if download:
        return _download(ref, _WANTED if what == "Model" else _WANTED_OF_ADAPTERS, error)
    snapshot = find_snapshot(ref)
    if snapshot is None:
        raise error(
            f"{what} {ref!r} is neither a directory nor in the local Hugging Face cache",
            where=str(cache_directory()),
            remedy="Give a directory, or allow the download with --download.",
        )
    return snapshot


def _download(ref: str, wanted: Sequence[str], kind: type[InputError]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise kind(
            f"Downloading {ref!r} needs huggingface_hub", remedy="Install it with `pip install lora-core[download]`."
        ) from error
    try:
        return Path(snapshot_download(ref, cache_dir=cache_directory(), allow_patterns=list(wanted)))
    except Exception as error:
        raise kind(f"Downloading {ref!r} failed: {error}", where="huggingface_hub") from error
