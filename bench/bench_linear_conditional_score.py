"""``linear_conditional_score``: every backend that can run here against the head and then
``conditional_score`` on the same backend, in time and in peak memory.

pytest bench/bench_linear_conditional_score.py --benchmark-only
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dd2_fast.ops import available_backends, conditional_score, linear_conditional_score


@dataclass(frozen=True)
class Shape:
    """One image's tokens on a CPU, or ``batch`` of them; on a GPU a batch of 64."""

    rows: int
    vocabulary: int
    dim: int
    top_k: int = 0
    top_p: float = 1.0
    width: int = 1024
    batch: int = 1


SHAPES = {
    "var": Shape(680, 4096, 32),
    "var_filtered": Shape(680, 4096, 32, 900, 0.95),
    "llamagen": Shape(256, 16384, 8),
    "llamagen_filtered": Shape(256, 16384, 8, 900),
    "var_batch_8": Shape(680, 4096, 32, 900, 0.95, batch=8),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = {
    device: [name for name, reason in available_backends(device).items() if reason is None]
    for device in DEVICES
}
VARIANTS = ("eager", "fused")  # eager: the head, then conditional_score


def inputs(shape: Shape, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = shape.rows * (64 if device == "cuda" else shape.batch)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return {
        "hidden": normal(rows, shape.width).to(device, dtype),
        "weight": (2 * normal(shape.vocabulary, shape.width) / shape.width**0.5).to(device, dtype),
        "bias": normal(shape.vocabulary).to(device, dtype),
        "x_t": normal(rows, shape.dim).to(device),
        "t": (0.1 + 0.9 * torch.rand(rows, generator=generator)).to(device),
        "codebook": normal(shape.vocabulary, shape.dim).to(device),
        "uncond_hidden": normal(rows, shape.width).to(device, dtype),
        "guidance_scale": 1.5,
        "top_k": shape.top_k,
        "top_p": shape.top_p,
    }


def head_and_score(
    hidden: Tensor, weight: Tensor, bias: Tensor, x_t: Tensor, t: Tensor, codebook: Tensor,
    *, uncond_hidden: Tensor, **options: Any,
) -> Tensor:  # fmt: skip
    logits, uncond = F.linear(hidden, weight, bias), F.linear(uncond_hidden, weight, bias)
    return conditional_score(x_t, t, logits, codebook, uncond_logits=uncond, **options)


def make_variant(name: str, backend: str, data: dict[str, Any]) -> Callable[[], Tensor]:
    function = linear_conditional_score if name == "fused" else head_and_score
    return lambda: function(**data, prediction="x0", backend=backend)


def peak_memory(variant: str, backend: str, name: str, device: str) -> int:
    """Bytes that the call adds at its peak; on a CPU in a process of its own, whose high-water mark
    is that of the call once one row has loaded every library."""
    if device == "cuda":
        function = make_variant(variant, backend, inputs(SHAPES[name], device))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, __file__, variant, backend, name, str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_growth(variant: str, backend: str, name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    data = inputs(SHAPES[name], "cpu")
    per_row = ("hidden", "uncond_hidden", "x_t", "t")
    make_variant(variant, backend, {**data, **{key: data[key][:1] for key in per_row}})()
    function = make_variant(variant, backend, data)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark becomes the present size
    before = status("VmRSS")
    function()
    print(status("VmHWM") - before)


def status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


@pytest.mark.parametrize(
    ("device", "backend"), [(d, b) for d in DEVICES for b in BACKENDS[d]], ids=lambda v: v
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHAPES)
def bench_linear_conditional_score(
    benchmark: Any, name: str, device: str, backend: str, variant: str
) -> None:
    data = inputs(SHAPES[name], device)
    function = make_variant(variant, backend, data)
    wanted = make_variant("eager", backend, data)()
    error = ((function() - wanted).norm() / wanted.norm()).item()
    # Logits next to a filter's threshold, rounded otherwise, keep or lose a code: bf16 most.
    allowed = 1e-3 if device == "cpu" else 2e-2
    assert error < allowed, f"{variant} is off by {error:.1e}: not timed"

    def timed() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"linear_conditional_score {backend} {name}"
    benchmark.extra_info.update(
        variant=variant, peak_bytes=peak_memory(variant, backend, name, device), error=error
    )
    benchmark.pedantic(timed, warmup_rounds=2, rounds=11)


if __name__ == "__main__":
    report_growth(*sys.argv[1:])
