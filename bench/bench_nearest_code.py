"""``nearest_code``: every backend that can run here against plain eager code and torch.compile.

pytest bench/bench_nearest_code.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.ops import available_backends, nearest_code

# (tokens of one image, vocabulary, dim); on a GPU a batch of 64
SHAPES = {"var": (680, 4096, 32), "llamagen": (256, 16384, 8)}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
VARIANTS = {
    device: [
        "eager",
        "cdist",
        "compile",
        *(name for name, reason in available_backends(device).items() if reason is None),
    ]
    for device in DEVICES
}


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
    return lambda: nearest_code(x, codebook, backend=name)


@pytest.mark.parametrize(
    ("device", "variant"), [(d, v) for d in DEVICES for v in VARIANTS[d]], ids=lambda v: v
)
@pytest.mark.parametrize("name", SHAPES)
def bench_nearest_code(
    benchmark: Any, copy_bandwidth: Callable[[str], float], name: str, device: str, variant: str
) -> None:
    rows, vocabulary, dim = SHAPES[name]
    rows *= 64 if device == "cuda" else 1
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(vocabulary, dim, generator=generator).to(device)
    x = torch.randn(rows, dim, generator=generator).to(device)
    function = make_variant(variant, x, codebook)
    excess = (x - codebook[function()]).norm(dim=-1) - torch.cdist(
        x, codebook, compute_mode="donot_use_mm_for_euclid_dist"
    ).amin(-1)
    error = excess.max().item()
    assert error < 1e-4, f"{variant} is off by {error:.1e}: not timed"

    def timed() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"nearest_code {device} {name}"
    counted = 4 * (x.numel() + codebook.numel()) + 8 * rows
    benchmark.extra_info.update(
        variant=variant,
        bytes=counted,
        limit_seconds=counted / copy_bandwidth(device),
        multiply_adds=rows * vocabulary * dim,
        error=error,
    )
    benchmark.pedantic(timed, warmup_rounds=3, rounds=15)
