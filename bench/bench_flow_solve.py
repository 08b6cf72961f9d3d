"""``flow_solve``: every backend that can run here against the loop in plain torch with the filters
applied once, eager and under torch.compile, and against a loop over ``conditional_score``.

pytest bench/bench_flow_solve.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import size_in_bytes
from dd2_fast.ops import conditional_score, flow_solve
from measure import DEVICES, Call, Problem, input_sets, usable

STEPS = 20
# (rows: one position of a batch, draws, vocabulary, C, top_k, top_p); on a GPU 8 times the rows
SIZES = {
    "tiny": (4, 2, 100, 4, 20, 0.9),
    "var": (32, 1, 4096, 32, 0, 1.0),
    "var_filtered": (32, 1, 4096, 32, 900, 0.95),
    "var_draws": (2, 32, 4096, 32, 900, 0.95),
    "llamagen": (32, 1, 16384, 8, 0, 1.0),
    "llamagen_filtered": (32, 1, 16384, 8, 900, 1.0),
}


def filtered(logits: Tensor, uncond: Tensor, scale: float, top_k: int, top_p: float) -> Tensor:
    guided = uncond + scale * (logits - uncond)
    if top_k:
        guided = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = guided.sort(descending=True)
        mass = ordered.softmax(-1)
        dropped = mass.cumsum(-1) - mass >= top_p
        guided = guided.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return guided


def plain_mean(x: Tensor, t: Tensor, kept: Tensor, codebook: Tensor) -> Tensor:
    signal = 1 - t
    distance = (signal * codebook).square().sum(-1) - 2 * signal * (x @ codebook.T)
    return (kept[:, None] - distance / (2 * t * t)).softmax(-1) @ codebook


def solve(
    mean: Callable[[Tensor, Tensor], Tensor], noise: Tensor, kept: Tensor, codebook: Tensor
) -> Tensor:
    """Heun's method over ``mean(x, t)`` and the nearest kept code."""
    times = torch.arange(STEPS + 1, device=noise.device) / STEPS
    x = noise
    for i in range(STEPS, 1, -1):
        t, s = times[i], times[i - 1]
        velocity = (x - mean(x, t)) / t
        ahead = x + (s - t) * velocity
        x = x + (s - t) / 2 * (velocity + (ahead - mean(ahead, s)) / s)
    end = mean(x, times[1])
    distance = torch.cdist(end, codebook).masked_fill((kept == -torch.inf)[:, None], torch.inf)
    return distance.argmin(-1)


def make_variant(name: str, data: tuple[Any, ...]) -> Callable[[], Tensor]:
    noise, logits, uncond, scale, codebook, top_k, top_p = data
    options = {
        "uncond_logits": uncond, "guidance_scale": scale, "top_k": top_k, "top_p": top_p,
    }  # fmt: skip
    if name not in ("eager", "compile", "loop"):
        return lambda: flow_solve(noise, logits, codebook, steps=STEPS, **options, backend=name)
    mean = torch.compile(plain_mean, dynamic=False) if name == "compile" else plain_mean

    def run() -> Tensor:
        kept = filtered(logits, uncond, scale, top_k, top_p)
        if name == "loop":
            return solve(
                lambda x, t: conditional_score(x, t, logits, codebook, prediction="x0", **options),
                noise, kept, codebook,
            )  # fmt: skip
        return solve(lambda x, t: mean(x, t, kept, codebook), noise, kept, codebook)

    return run


def problem(size: str, device: str) -> Problem:
    rows, draws, vocabulary, dim, top_k, top_p = SIZES[size]
    rows *= 8 if device == "cuda" else 1
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    codebook, sets = normal(vocabulary, dim), []
    for _ in range(input_sets(device)):
        logits = normal(rows, vocabulary) * 2
        uncond = logits + normal(rows, vocabulary)
        noise = normal(rows, draws, dim)
        sets.append((noise, logits, uncond, 2.0, codebook, top_k, top_p))
    wanted = make_variant("eager", sets[0])()

    def check(variant: str, call: Call) -> dict[str, Any]:
        differing = (call() != wanted).sum().item()
        allowed = 1 + wanted.numel() // 32
        assert differing <= allowed, f"{variant}: {differing} codes differ: not timed"
        return {"differing": differing}

    # A mean is two products over the codes that the filters leave; Heun's last step has one mean.
    means = 2 * STEPS - 1
    kept = filtered(*sets[0][1:4], top_k, top_p).isfinite().sum().item()
    return Problem(
        group=f"flow_solve {device} {size}",
        device=device,
        make=lambda variant: [make_variant(variant, data) for data in sets],
        check=check,
        bytes=size_in_bytes(*sets[0][:3], codebook) + 8 * wanted.numel(),
        flops=4 * means * kept * draws * dim,
        seconds=0.3,
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [(d, v) for d in DEVICES for v in ("eager", "compile", "loop", *usable(d))],
    ids=lambda v: v,
)
@pytest.mark.parametrize("size", SIZES)
def bench_flow_solve(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
