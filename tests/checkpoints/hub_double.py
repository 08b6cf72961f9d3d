"""A Hub in a folder: as much of `huggingface_hub` as the package calls."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Hub:
    """Repositories as folders `owner/name/revision`; `module` stands for `huggingface_hub`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.module: Any = ModuleType("huggingface_hub")
        self.module.snapshot_download = self._download
        self.module.HfApi = lambda: SimpleNamespace(
            create_repo=self._create, create_branch=self._branch, upload_folder=self._upload
        )

    def _repository(self, repo_id: str, revision: str | None) -> Path:
        return self.folder / "there" / repo_id / (revision or "main")

    def _download(
        self, repo_id: str, *, revision: str | None = None, allow_patterns: list[str]
    ) -> str:
        self.calls.append(
            ("snapshot_download", {"revision": revision, "allow_patterns": allow_patterns})
        )
        there, cache = self._repository(repo_id, revision), self.folder / "cache" / repo_id
        if not there.is_dir():
            raise LookupError(f"404: {repo_id}, {revision}")
        cache.mkdir(parents=True, exist_ok=True)
        for path in there.rglob("*"):
            name = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, p) for p in allow_patterns):
                (cache / name).parent.mkdir(exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    def _create(self, **arguments: Any) -> None:
        self.calls.append(("create_repo", arguments))
        (self._repository(arguments["repo_id"], None)).mkdir(
            parents=True, exist_ok=arguments["exist_ok"]
        )

    def _branch(self, **arguments: Any) -> None:
        self.calls.append(("create_branch", arguments))
        self._repository(arguments["repo_id"], arguments["branch"]).mkdir(
            exist_ok=arguments["exist_ok"]
        )

    def _upload(self, **arguments: Any) -> Any:
        self.calls.append(("upload_folder", arguments))
        there = self._repository(arguments["repo_id"], arguments["revision"])
        shutil.copytree(arguments["folder_path"], there, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{arguments['repo_id']}/commit/1")
