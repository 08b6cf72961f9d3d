"""Tokens far from their codes, and codebooks far from zero, against float64 written anew here."""

from __future__ import annotations

import pytest
import torch
from ops.cases import INTERPRETED
from pairwise import pairwise
from torch import Tensor

from dd2_fast.ops import (
    available_backends,
    conditional_score,
    csd_loss,
    flow_solve,
    linear_conditional_score,
)

ROWS, VOCABULARY, DIM = 24, 256, 32
# Of tensors on a CPU, where tests/compiled runs GPU backends too.
BACKEND_NAMES = [name for name, reason in available_backends("cpu").items() if reason is None]
if INTERPRETED:
    BACKEND_NAMES = ["triton"]
TOP_KS = [0, 8, 60, 200]
BACKENDS = pytest.mark.parametrize("backend", BACKEND_NAMES)
TOP_K = pytest.mark.parametrize("top_k", TOP_KS)
SCALES = [1.0, 10.0, 100.0, 300.0, 1000.0]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_x0(x_t: Tensor, t: float, logits: Tensor, codebook: Tensor, top_k: int) -> Tensor:
    """By direct differences in float64, the smallest of them taken off before the division."""
    x_t, logits, codebook = x_t.double(), logits.double(), codebook.double()
    level = torch.tensor(t, dtype=torch.float32).double()
    if top_k:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    distance = (x_t[:, None, :] - (1 - level) * codebook).square().sum(-1)
    nearest = distance.masked_fill(logits == -torch.inf, torch.inf).amin(1, keepdim=True)
    return (logits - (distance - nearest) / (2 * level**2)).softmax(1) @ codebook


def error(x0: Tensor, wanted: Tensor, codebook: Tensor) -> float:
    """Relative to how far the codes are from their mean."""
    spread = (codebook - codebook.mean(0)).double().norm() / VOCABULARY**0.5
    return float((x0.double() - wanted).norm(dim=1).max() / spread)


@pairwise(scale=SCALES, t=[1.0, 0.999, 0.9, 0.5], top_k=TOP_KS, backend=BACKEND_NAMES)
def test_far_tokens(backend: str, top_k: int, scale: float, t: float) -> None:
    """Budget: x·c / t^2 in float32 is off by up to 2^-24 |x| |c| (1-t) / t^2, about 2e-6 scale of
    the exponent; at t = 1 nothing depends on x."""
    x_t, codebook = scale * normal(ROWS, DIM, seed=1), normal(VOCABULARY, DIM, seed=2)
    logits = 2 * normal(ROWS, VOCABULARY, seed=3)
    wanted = exact_x0(x_t, t, logits, codebook, top_k)
    x0 = conditional_score(x_t, t, logits, codebook, top_k=top_k, prediction="x0", backend=backend)
    budget = 2e-6 + 4 * 2.0**-24 * DIM * scale * (1 - t) / t**2
    assert error(x0, wanted, codebook) < budget


@pairwise(
    offset=[10.0, 100.0, 1000.0],
    t=[1.0, 0.9, 0.5, 0.2, 0.05, 0.015],
    top_k=TOP_KS,
    backend=BACKEND_NAMES,
)
def test_far_codebooks(backend: str, top_k: int, offset: float, t: float) -> None:
    """Budget: every addition of the weighted sum of 256 codes, of sixteen times the offset by the
    end in a random walk, rounds to 2^-24 of it."""
    codebook = offset + normal(VOCABULARY, DIM, seed=2)
    x_t = (1 - t) * codebook[::7][:ROWS] + t * normal(ROWS, DIM, seed=1)
    logits = 2 * normal(ROWS, VOCABULARY, seed=3)
    logits[range(ROWS), range(0, 7 * ROWS, 7)] = 9.0  # so that top-k keeps the token's own code
    wanted = exact_x0(x_t, t, logits, codebook, top_k)
    x0 = conditional_score(x_t, t, logits, codebook, top_k=top_k, prediction="x0", backend=backend)
    assert error(x0, wanted, codebook) < 2e-6 + 16 * 2.0**-24 * offset


@BACKENDS
@TOP_K
@pytest.mark.parametrize("scale", SCALES)
def test_loss_and_linear_head_of_far_tokens(backend: str, top_k: int, scale: float) -> None:
    t = 0.95
    x_t, codebook = scale * normal(ROWS, DIM, seed=1), normal(VOCABULARY, DIM, seed=2)
    hidden, weight = normal(ROWS, 9, seed=3), normal(VOCABULARY, 9, seed=4)
    logits = hidden @ weight.T
    x, fake = normal(ROWS, DIM, seed=5), normal(ROWS, DIM, seed=6)
    x0 = exact_x0(x_t, t, logits, codebook, top_k)
    wanted = ((x0 - fake.double()) * (fake - x).double()).sum(1)
    given = {"top_k": top_k, "backend": backend}
    loss = csd_loss(x, x_t, t, fake, logits, codebook, weight="none", **given)
    budget = 2e-5 + 4 * 2.0**-24 * DIM * scale * (1 - t) / t**2
    assert (loss.double() - wanted).abs().max() < budget * wanted.abs().max()
    head = linear_conditional_score(
        hidden, weight, None, x_t, t, codebook, prediction="x0", **given
    )
    assert error(head, x0, codebook) < budget


def exact_flow(noise: Tensor, logits: Tensor, codebook: Tensor, top_k: int, steps: int) -> Tensor:
    x = noise.double()
    for i in range(steps, 0, -1):
        mean = exact_x0(x, i / steps, logits, codebook, top_k)
        x = x - (x - mean) / i
    distance = torch.cdist(mean, codebook.double())
    if top_k:
        smallest = logits.topk(top_k).values[:, -1:]
        distance = distance.masked_fill(logits < smallest, torch.inf)
    return distance.argmin(1)


@BACKENDS
@TOP_K
@pytest.mark.parametrize(("scale", "offset"), [*((s, 0.0) for s in SCALES), (1.0, 100.0)])
def test_flow_of_far_noise(backend: str, top_k: int, scale: float, offset: float) -> None:
    """The codes of all tokens but the few whose path passes next to a boundary."""
    noise, codebook = scale * normal(ROWS, DIM, seed=1), offset + normal(VOCABULARY, DIM, seed=2)
    logits = 2 * normal(ROWS, VOCABULARY, seed=3)
    wanted = exact_flow(noise, logits, codebook, top_k, 4)
    codes = flow_solve(
        noise, logits, codebook, steps=4, solver="euler", top_k=top_k, backend=backend
    )
    assert (codes == wanted).sum() >= ROWS - 1


@BACKENDS
@pytest.mark.parametrize("top_k", [0, 8])
@pytest.mark.parametrize("t", [1.0, 0.7, 0.1, 1e-3, 1e-8])
def test_finite_as_documented(backend: str, top_k: int, t: float) -> None:
    """Lengths of 1e18 in the token, in the codes or in both."""
    token, codes = normal(3, 4, seed=1), normal(50, 4, seed=2)
    token, codes = token / token.norm(dim=1, keepdim=True), codes / codes.norm(dim=1, keepdim=True)
    logits = normal(3, 50, seed=3)
    for x_scale, c_scale in ((1e18, 1.0), (1.0, 1e18), (1e18, 1e18)):
        x0 = conditional_score(
            x_scale * token, t, logits, c_scale * codes, top_k=top_k, prediction="x0",
            backend=backend,
        )  # fmt: skip
        assert x0.isfinite().all() and (x0.norm(dim=1) < 1.001 * c_scale).all()
