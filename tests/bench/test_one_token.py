"""The tool that shows what stage 2 makes of single tokens: its columns, and that it trains."""

from __future__ import annotations

import runpy

import pytest
import torch
from result_files import BENCH

from dd2_fast.training.config import CsdConfig


@pytest.fixture(scope="module")
def problem():
    tool = runpy.run_path(str(BENCH / "tools" / "one_token.py"))
    logits = torch.tensor([[2.0, 1.0, -30.0, -30.0], [-30.0, -30.0, 0.0, 0.0]])
    codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return tool["Problem"](logits, codes, 3)


def test_the_teachers_own_draws(problem):
    row = problem.judge(problem.codebook[problem.drawn])
    assert row["entropy"] == row["variance"] == 1 and row["off"] == 0
    assert row["lost"] == pytest.approx(0, abs=1e-9)
    assert row["fd"] == pytest.approx(0, abs=1e-6)
    assert 0 < row["tv"] < 0.1  # of 200 draws


def test_the_most_probable_code_alone(problem):
    """Half of one context's probability is lost, and 0.27 of the other's."""
    best = problem.codebook[problem.logits.argmax(-1)][:, None].expand(-1, 200, -1)
    row = problem.judge(best + 0.1)
    missing = (0.5 + float(torch.tensor([2.0, 1.0]).softmax(0)[1])) / 2
    assert row["tv"] == pytest.approx(missing) and row["lost"] == pytest.approx(missing)
    assert row["entropy"] == row["variance"] == 0
    assert row["off"] == pytest.approx(0.1, rel=1e-5)


def test_stage_2_comes_nearer(problem):
    start = problem.stage1(40)
    config = CsdConfig(steps=80, batch=64, guidance_start=20, warmup=10, generator_rate=2e-3)
    before, after = (
        problem.judge(problem.made(n)) for n in (start, problem.distil(start, config, 5))
    )
    assert after["fd"] < 0.5 * before["fd"] and after["off"] < 0.8 * before["off"]
    assert after["tv"] < 0.15
