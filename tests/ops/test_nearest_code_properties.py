"""Properties of every backend of ``nearest_code`` on random inputs, invalid ones among them."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.strategies import (
    LAYOUTS,
    Tokens,
    backends_of,
    device_of,
    examples,
    laid_out,
    poisoned_outputs,
    tokens,
)
from torch import Tensor

from dd2_fast.ops import nearest_code

BACKENDS = backends_of("nearest_code")
NOISE = st.sampled_from([1e-30, 1e-3, 0.3, 1.0])
BAD = st.sampled_from([math.nan, math.inf, -math.inf])


def search(x: Tensor, codebook: Tensor, backend: str, layout: str = "plain") -> Tensor:
    """Indices on the CPU, written into poisoned outputs."""
    device = device_of(backend)
    moved = [laid_out(value.to(device), layout) for value in (x, codebook)]
    with poisoned_outputs():
        found = nearest_code(*moved, backend=backend)
    assert found.dtype == torch.int64 and found.shape == x.shape[:-1]
    return found.cpu()


def bad_entries(value: Tensor, data: st.DataObject) -> Tensor:
    """A copy with a few entries NaN or infinite."""
    value = value.clone()
    for _ in range(data.draw(st.integers(0, 3)) if value.numel() else 0):
        value.view(-1)[data.draw(st.integers(0, value.numel() - 1))] = data.draw(BAD)
    return value


@BACKENDS
@examples(100)
@given(
    case=tokens(NOISE),
    offset=st.sampled_from([0.0, 0.0, 30.0]),
    layout=st.sampled_from(LAYOUTS[:-1]),
    data=st.data(),
)
def test_finds_the_first_of_the_nearest(
    backend: str, case: Tokens, offset: float, layout: str, data: st.DataObject
) -> None:
    """The squared distance found is the smallest to within the rounding of |x|^2 + |c|^2, and no
    code before the one found is equal to it. Bad tokens give -1 and bad codes are never found."""
    x, codebook = (bad_entries(v + offset, data) for v in (case.x_t, case.codebook))
    found = search(x, codebook, backend, layout).reshape(-1)
    x, valid = x.double().reshape(-1, codebook.shape[1]), codebook.isfinite().all(-1)
    if not valid.any():
        assert (found == -1).all()
        return
    good = x.isfinite().all(-1)
    assert (found[~good] == -1).all()
    codes, x, found = codebook.double(), x[good], found[good]
    assert valid[found].all()
    distance = (x - codes[found]).square().sum(-1)
    smallest = torch.cdist(x, codes[valid], compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
    size = x.square().sum(-1) + codes[valid].square().sum(-1).amax()
    assert (distance - smallest.square() <= x.shape[-1] * 2.0**-23 * size).all()
    first = [int((codes == code).all(-1).int().argmax()) for code in codes[found]]
    assert found.tolist() == first


@BACKENDS
@examples(60)
@given(case=tokens(NOISE, least_rows=1), data=st.data())
def test_tokens_are_searched_apart(backend: str, case: Tokens, data: st.DataObject) -> None:
    found = search(case.x_t, case.codebook, backend)
    row = data.draw(st.integers(0, len(found) - 1))
    assert torch.equal(search(case.x_t[row:], case.codebook, backend), found[row:])
    x = case.x_t.clone()
    x[row] = data.draw(BAD)
    after = search(x, case.codebook, backend)
    assert (after[row] == -1).all()
    others = torch.arange(len(found)) != row
    assert torch.equal(after[others], found[others])
