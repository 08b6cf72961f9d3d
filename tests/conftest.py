from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same inputs in every run and in every order."""
    torch.manual_seed(0)
