"""Numbers that a float32 kernel cannot hold as given keep their meaning, or are errors."""

from __future__ import annotations

import math

import pytest
import torch
from ops.calls import FUNCTIONS, arguments

from dd2_fast.ops import conditional_score, sample_code

FILTERED = [op for op in FUNCTIONS if "top_p" in arguments(op)]


@pytest.mark.parametrize("top_p", [math.nextafter(1, 0), 1 - 1e-12, 1 - 2.0**-25, 1 - 2.0**-24])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_top_p_below_one_filters(top_p: float, backend: str) -> None:
    """A code beyond all the mass that float32 has goes, but for top_p = 1."""
    logits, codebook = torch.tensor([[0.0, -40.0]]), torch.tensor([[0.0], [1e12]])
    given = {"prediction": "x0", "backend": backend}
    x = torch.zeros(1, 1)
    assert conditional_score(x, 1.0, logits, codebook, **given) > 1e-6
    assert conditional_score(x, 1.0, logits, codebook, top_p=top_p, **given) == 0
    drawn = sample_code(logits - torch.tensor([0.0, torch.inf]), top_p=top_p, backend=backend)
    assert drawn == 0


@pytest.mark.parametrize("op", FILTERED)
@pytest.mark.parametrize("top_k", [2**31, 2**61, 2**62, 2**63 - 1])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_huge_top_k_keeps_all(op: str, top_k: int, backend: str) -> None:
    given = {**arguments(op), "backend": backend}
    wanted = FUNCTIONS[op](**{**given, "top_k": 0})
    assert torch.equal(FUNCTIONS[op](**{**given, "top_k": top_k}), wanted)


@pytest.mark.parametrize("name", ["guidance_scale", "alpha", "weight_power"])
def test_numbers_beyond_float32_are_errors(name: str) -> None:
    given = arguments("csd_loss")
    del given["weight"]
    with pytest.raises(ValueError, match=f"^{name}: expected a number within float32, got 1e\\+39"):
        FUNCTIONS["csd_loss"](**{**given, name: 1e39})
    doubles = {n: v.double() if torch.is_tensor(v) else v for n, v in given.items()}
    assert FUNCTIONS["csd_loss"](**{**doubles, name: 1e39}).dtype == torch.float64
