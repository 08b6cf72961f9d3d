"""Repositories of the Hugging Face Hub, which the extra `hub` fetches and sends; nothing else
does."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..reading import shown
from .folder import is_folder_of_weights

TEACHER = "teacher"  # a folder in a sampler's

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAFE = ("config.json", "model*.safetensors", "model.safetensors.index.json", "README.md")
_OLDER = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetched(
    source: str | os.PathLike[str], revision: str | None = None, *, teacher: bool = False
) -> Path:
    """The folder or file at a path, or that of a repository `owner/name`, fetched unless it is in
    the Hub's cache.

    Of a repository the weights in safetensors are fetched, or PyTorch's where there are none, the
    configuration and the card; with `teacher` the folder of that name, too.

    Raises:
        FileNotFoundError: no such path, and no name of a repository. ValueError: a revision of a
            path. ModuleNotFoundError: `huggingface_hub` is needed and not installed.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision: expected none for a folder that is here, got {revision!r}")
        return path
    name = os.fspath(source)
    if not isinstance(source, str) or not _NAME.fullmatch(name):
        raise FileNotFoundError(
            f"source: expected a folder or a repository of the Hub, owner/name, got {shown(name)}"
        )
    library = _library()
    wanted = [*_SAFE, *(f"{TEACHER}/{pattern}" for pattern in _SAFE if teacher)]
    folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=wanted))
    if not is_folder_of_weights(folder):
        wanted = list(_OLDER)
        folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=wanted))
    return folder


def push(folder: Path, name: str, *, revision: str | None, private: bool, message: str) -> str:
    """Send what is in a folder to a repository, made unless it is there; the commit's address.

    Raises:
        ValueError: no name of a repository. ModuleNotFoundError: as of :func:`fetched`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"repo_id: expected owner/name, got {shown(name)}")
    hub = _library().HfApi()
    hub.create_repo(repo_id=name, private=private, exist_ok=True)
    if revision is not None:
        hub.create_branch(repo_id=name, branch=revision, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=name, folder_path=str(folder), revision=revision, commit_message=message
    )
    return str(commit.commit_url)


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "huggingface_hub is not installed, which fetches and sends repositories: pip install "
            "'dd2-fast[hub]'; a folder that is here needs nothing"
        ) from error
    return huggingface_hub
