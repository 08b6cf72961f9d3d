"""``conditional_score``: every backend that can run here against plain eager code and
torch.compile.

pytest bench/bench_conditional_score.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.ops import available_backends, conditional_score


@dataclass(frozen=True)
class Shape:
    """One image's tokens on a CPU; on a GPU a batch of 64."""

    rows: int
    vocabulary: int
    dim: int
    top_k: int = 0
    top_p: float = 1.0


SHAPES = {
    "var": Shape(680, 4096, 32),
    "var_filtered": Shape(680, 4096, 32, 900, 0.95),
    "llamagen": Shape(256, 16384, 8),
    "llamagen_filtered": Shape(256, 16384, 8, 900),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
VARIANTS = {
    device: [
        "eager",
        "compile",
        *(name for name, reason in available_backends(device).items() if reason is None),
    ]
    for device in DEVICES
}


def plain_score(
    x_t: Tensor, t: Tensor, logits: Tensor, uncond: Tensor, scale: float, codebook: Tensor,
    top_k: int, top_p: float,
) -> Tensor:  # fmt: skip
    """What one writes without this package: the fastest plain torch code we know, x0 only."""
    guided = uncond.float() + scale * (logits.float() - uncond.float())
    if top_k:
        guided = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = guided.sort(descending=True)
        mass = ordered.softmax(-1)
        dropped = mass.cumsum(-1) - mass >= top_p
        guided = guided.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    signal = ((1 - t) / t**2)[:, None]
    half_norm = codebook.square().sum(-1) / 2
    exponent = guided + signal * (x_t @ codebook.T) - signal * (1 - t)[:, None] * half_norm
    return exponent.softmax(-1) @ codebook


def inputs(shape: Shape, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = shape.rows * (64 if device == "cuda" else 1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    codebook = normal(shape.vocabulary, shape.dim).to(device)
    t = torch.rand(rows, generator=generator).to(device) * 0.98 + 0.02
    clean = codebook[torch.randint(shape.vocabulary, (rows,), generator=generator).to(device)]
    logits = torch.randn(rows, shape.vocabulary, device=device)
    uncond = logits * 2 + torch.randn(rows, shape.vocabulary, device=device)
    return {
        "x_t": (1 - t[:, None]) * clean + t[:, None] * torch.randn_like(clean),
        "t": t,
        "logits": (logits * 2).to(dtype),
        "uncond": uncond.to(dtype),
        "scale": 2.0,
        "codebook": codebook,
        "top_k": shape.top_k,
        "top_p": shape.top_p,
    }


def make_variant(name: str, data: dict[str, Any]) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: plain_score(**data)
    if name == "compile":
        compiled = torch.compile(plain_score, dynamic=False)
        return lambda: compiled(**data)
    renamed = {"uncond": "uncond_logits", "scale": "guidance_scale"}
    arguments = {renamed.get(key, key): value for key, value in data.items()}
    return lambda: conditional_score(**arguments, prediction="x0", backend=name)


def relative_error(value: Tensor, wanted: Tensor) -> float:
    return ((value - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    ("device", "variant"), [(d, v) for d in DEVICES for v in VARIANTS[d]], ids=lambda v: v
)
@pytest.mark.parametrize("name", SHAPES)
def bench_conditional_score(
    benchmark: Any, copy_bandwidth: Callable[[str], float], name: str, device: str, variant: str
) -> None:
    data = inputs(SHAPES[name], device)
    function = make_variant(variant, data)
    error = relative_error(function(), plain_score(**data))
    assert error < 1e-3, f"{variant} is off by {error:.1e}: not timed"

    def timed() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"conditional_score {device} {name}"
    read = [v for v in data.values() if isinstance(v, Tensor)] + [data["x_t"]]
    counted = sum(v.numel() * v.element_size() for v in read)
    benchmark.extra_info.update(
        variant=variant, bytes=counted, limit_seconds=counted / copy_bandwidth(device), error=error
    )
    benchmark.pedantic(timed, warmup_rounds=3, rounds=15)
