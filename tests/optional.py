"""Libraries that a test needs and an installation may lack; under CI they must be there."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require(name: str, *, by_ci: bool = True) -> None:
    """Skip the test where a module is not installed, or fail it under CI, unless CI has none of it
    (`by_ci=False`)."""
    if importlib.util.find_spec(name) is None:
        if by_ci and os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and comes with the test extra")
        pytest.skip(f"{name} is not installed")
