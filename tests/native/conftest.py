from __future__ import annotations

import pytest
from native.structs import Shim


@pytest.fixture(scope="session")
def conditional_score_shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim("conditional_score", tmp_path_factory.mktemp("conditional_score"))


@pytest.fixture(scope="session")
def flow_solve_shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim("flow_solve", tmp_path_factory.mktemp("flow_solve"))


@pytest.fixture(scope="session")
def image_normal_shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim("image_normal", tmp_path_factory.mktemp("image_normal"))


@pytest.fixture(scope="session")
def nearest_code_shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim("nearest_code", tmp_path_factory.mktemp("nearest_code"))


@pytest.fixture(scope="session")
def sample_code_shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim("sample_code", tmp_path_factory.mktemp("sample_code"))
