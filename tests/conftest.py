from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads its threads

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # a machine for GPU tests alone
    collect_ignore_glob = ["ops/test_*_properties.py"]
else:
    settings.register_profile("ci", derandomize=True, deadline=None)
    settings.register_profile(
        "explore", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same inputs in every run and in every order."""
    torch.manual_seed(0)
