"""``nearest_code``: every backend that can run here against plain eager code, torch.compile,
``torch.cdist`` and, on a CPU, scikit-learn's search.

pytest bench/bench_nearest_code.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import SHAPES, size_in_bytes
from dd2_fast.ops import nearest_code
from measure import DEVICES, Call, Problem, input_sets, usable

SIZES = ("tiny", "var", "llamagen")


def plain_nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """The fastest plain torch code we know."""
    return torch.addmm(0.5 * codebook.square().sum(-1), x, codebook.T, alpha=-1).argmin(-1)


def make_variant(name: str, x: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: plain_nearest(x, codebook)
    if name == "cdist":
        return lambda: torch.cdist(x, codebook).argmin(-1)
    if name == "compile":
        compiled = torch.compile(plain_nearest, dynamic=False)
        return lambda: compiled(x, codebook)
    if name == "sklearn":
        search = pytest.importorskip("sklearn.metrics").pairwise_distances_argmin
        arrays = x.numpy(), codebook.numpy()
        return lambda: torch.from_numpy(search(*arrays))
    return lambda: nearest_code(x, codebook, backend=name)


def problem(size: str, device: str) -> Problem:
    shape = SHAPES[size]
    images = shape.images(device)
    generator = torch.Generator(device).manual_seed(0)
    codebook = torch.randn(shape.vocabulary, shape.dim, generator=generator, device=device)
    sets = [
        torch.randn(images * shape.rows, shape.dim, generator=generator, device=device)
        for _ in range(input_sets(device))
    ]
    exact = torch.cdist(sets[0], codebook, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = ((sets[0] - codebook[call()]).norm(dim=-1) - exact).max().item()
        assert error < 1e-4, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    return Problem(
        group=f"nearest_code {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, x, codebook) for x in sets],
        check=check,
        bytes=size_in_bytes(sets[0], codebook) + 8 * len(sets[0]),
        flops=2 * len(sets[0]) * shape.vocabulary * shape.dim,
        info={"images": images},
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [
        (d, v)
        for d in DEVICES
        for v in ("eager", "compile", "cdist", *(["sklearn"] * (d == "cpu")), *usable(d))
    ],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_nearest_code(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
