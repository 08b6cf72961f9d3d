"""Where a run came from: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import __version__


def provenance() -> dict[str, Any]:
    """Versions, CPU threads and, in a git checkout, the commit (None elsewhere)."""
    return {
        "dd2_fast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the checkout this package lies in, with ``-dirty`` where files differ."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
