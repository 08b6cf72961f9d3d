"""The command line, `dd2-fast` or `python -m dd2_fast`."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
