from __future__ import annotations

import pytest
from checkpoints import tiny


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader knows the made-up family of tests/checkpoints and no other."""
    tiny.install(monkeypatch)
