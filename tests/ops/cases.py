from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pairwise import pairwise
from torch import Tensor
from torch.autograd import forward_ad

from dd2_fast.ops import available_backends, registry
from dd2_fast.ops.registry import BACKENDS

# Set by test_triton.py, in processes of its own: Triton's kernels run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU_BACKENDS = ("cuda", "cupy") if INTERPRETED else ("cuda", "cupy", "triton")
if INTERPRETED:
    registry._UNAVAILABLE["triton"] = lambda device: None


def pairwise_with_backends(**axes: Any) -> pytest.MarkDecorator:
    """``pairwise`` with a last axis ``backend``, whose kinds each have every pair of the others."""
    kinds = (("cpu",), ("torch",), ("cuda", "cupy"), ("triton",))
    marks = [pairwise(**axes, backend=runnable_backends(kind)) for kind in kinds]
    cases = [case for mark in marks for case in mark.args[1]]
    return pytest.mark.parametrize(marks[0].args[0], cases)


# What torch.compile makes of a function: its graphs alone, or C++ as well, which takes seconds.
COMPILERS = pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)


def device_of(backend: str) -> str:
    return "cuda" if backend in GPU_BACKENDS else "cpu"


def runnable_backends(names: Sequence[str] = BACKENDS) -> list:
    """Backends, those that cannot run here marked as skipped with the reason."""
    reasons = {name: available_backends(device_of(name))[name] for name in names}
    return [
        pytest.param(
            name,
            marks=[pytest.mark.skipif(reason is not None, reason=str(reason))]
            + ([pytest.mark.gpu] if device_of(name) == "cuda" else []),
        )
        for name, reason in reasons.items()
    ]


def unaligned(tensor: Tensor) -> Tensor:
    """The same values where no 16-byte load may begin."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return room[1:].view_as(tensor).copy_(tensor)


@dataclass(frozen=True)
class Case:
    """Inputs of one call in float64 on the CPU; ``logits`` hold values exact in their dtype."""

    x_t: Tensor
    t: Tensor
    logits: Tensor
    uncond_logits: Tensor | None
    guidance_scale: Tensor
    codebook: Tensor
    top_k: int
    top_p: float

    def arguments(self, backend: str, dtype: torch.dtype = torch.float32) -> dict:
        device = device_of(backend)
        work = torch.float64 if backend == "float64" else torch.float32
        logits = work if backend == "float64" else dtype
        uncond = self.uncond_logits
        return {
            "x_t": self.x_t.to(device, work),
            "t": self.t.to(device, work),
            "logits": self.logits.to(device, logits),
            "codebook": self.codebook.to(device, work),
            "uncond_logits": None if uncond is None else uncond.to(device, logits),
            "guidance_scale": 1.0 if uncond is None else self.guidance_scale.to(device, work),
            "top_k": self.top_k,
            "top_p": self.top_p,
            "backend": "torch" if backend == "float64" else backend,
        }


def make_case(
    rows: int,
    vocabulary: int,
    dim: int,
    draws: int | None = None,
    *,
    guided: bool = True,
    top_k: int = 0,
    top_p: float = 1.0,
    t: tuple[float, float] = (0.02, 1.0),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Tokens noised from random codes, every value exact in float32 (logits in ``dtype``)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lead = (rows,) if draws is None else (rows, draws)
    codebook = normal(vocabulary, dim)
    noise_level = torch.rand(lead, generator=generator) * (t[1] - t[0]) + t[0]
    clean = codebook[torch.randint(vocabulary, lead, generator=generator)]
    x_t = (1 - noise_level[..., None]) * clean + noise_level[..., None] * normal(*lead, dim)
    cond = (2 * normal(rows, vocabulary)).to(dtype)
    uncond = (cond + normal(rows, vocabulary)).to(dtype) if guided else None
    scale = 1 + 2 * torch.rand(rows, generator=generator)
    return Case(
        x_t.double(),
        noise_level.double(),
        cond.double(),
        None if uncond is None else uncond.double(),
        scale.double(),
        codebook.double(),
        top_k,
        top_p,
    )


def assert_once_differentiable(operator: str, function: Callable[[Tensor], Tensor], x: Tensor):
    """Forward mode and second derivatives of ``function``, which calls ``operator``, are errors."""
    refused = pytest.raises(RuntimeError, match=f"{operator}: differentiable once, in reverse mode")
    with refused:
        torch.func.jvp(function, (x,), (x,))
    with refused:
        torch.func.jvp(lambda a: torch.func.jvp(lambda b: function(a) * b, (x,), (x,)), (x,), (x,))
    with forward_ad.dual_level():
        function(x)
        with refused:
            function(forward_ad.make_dual(x, x))
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        with refused:
            torch.autograd.grad(out, leaf, forward_ad.make_dual(torch.ones_like(out), out.detach()))
    with refused:
        torch.autograd.functional.hessian(lambda a: function(a).sum(), x)


def relative_error(value: Tensor, exact: Tensor) -> float:
    difference = (value.detach().double().cpu() - exact.detach()).norm()
    return (difference / exact.detach().norm().clamp(min=1e-30)).item()
