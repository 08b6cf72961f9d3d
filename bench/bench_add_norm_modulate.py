"""``add_norm_modulate``, forward, and forward and backward: every backend that can run here against
plain eager code and torch.compile, at the second norm of a block of VAR-d16 and of LlamaGen-L.

pytest bench/bench_add_norm_modulate.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import size_in_bytes
from dd2_fast.ops import add_norm_modulate
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable

# Images on a GPU and on a CPU, tokens, channels.
SIZES = {
    "tiny": (2, 2, 5, 64),
    "var": (64, 1, 680, 1024),
    "var_one": (1, 1, 680, 1024),
    "llamagen": (64, 1, 256, 1024),
}
EPS = 1e-6


def plain(
    h: Tensor,
    branch: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What one writes without this package."""
    if gate is None or scale is None or shift is None:
        h = h + branch
        return h, F.rms_norm(h, h.shape[-1:], weight, eps=EPS)
    h = torch.addcmul(h, gate, branch)
    return h, torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=EPS), 1 + scale)


def inputs(size: str, device: str, seed: int) -> dict[str, Tensor]:
    on_gpu, on_cpu, tokens, width = SIZES[size]
    images = on_gpu if device == "cuda" else on_cpu
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values.to(torch.bfloat16 if device == "cuda" else torch.float32).requires_grad_()

    data = {name: normal(images, tokens, width) for name in ("h", "branch")}
    if size == "llamagen":
        return data | {"weight": normal(width)}
    return data | {name: normal(images, 1, width) for name in ("gate", "scale", "shift")}


def make_variant(name: str, data: dict[str, Tensor], trains: bool) -> Callable[[], list[Tensor]]:
    """Both results, or also the gradients of all tensors."""
    function: Callable[..., Any] = plain
    if name == "compile":
        function = torch.compile(plain, dynamic=False)
    elif name != "eager":
        norm = "rms" if "weight" in data else "layer"

        def function(**data: Tensor) -> tuple[Tensor, Tensor]:
            return add_norm_modulate(**data, norm=norm, eps=EPS, backend=name)

    grads = [torch.ones_like(data["h"])] * 2

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(trains):
            outputs = function(**data)
        if not trains:
            return list(outputs)
        found = torch.autograd.grad(outputs, list(data.values()), grads)
        return [*(out.detach() for out in outputs), *found]

    return call


def problem(size: str, device: str, passes: str) -> Problem:
    trains = passes == "training"
    sets = [inputs(size, device, seed=i) for i in range(input_sets(device))]
    wanted = [value.double() for value in make_variant("eager", sets[0], trains)()]

    def check(variant: str, call: Call) -> dict[str, Any]:
        errors = [relative_error(a, b) for a, b in zip(call(), wanted, strict=True)]
        limit = 2e-2 if device == "cuda" else 1e-5
        assert max(errors) < limit, f"{variant} is off by {errors}: not timed"
        return {"error": max(errors)}

    rows = 4 + 4 * trains + (2 * trains if "gate" in sets[0] else 0)
    return Problem(
        group=f"add_norm_modulate {device} {size} {passes}",
        device=device,
        make=lambda variant: [make_variant(variant, data, trains) for data in sets],
        check=check,
        bytes=rows * size_in_bytes(sets[0]["h"]),
        info={"images": sets[0]["h"].shape[0]},
        seconds=0.3,
    )


@pytest.mark.parametrize(
    ("device", "variant"),
    [
        (device, variant)
        for device in DEVICES
        for variant in ("eager", "compile", *usable(device))
        if variant not in ("cpu", "cuda", "cupy")
    ],
    ids=lambda v: v,
)
@pytest.mark.parametrize("passes", ["inference", "training"])
@pytest.mark.parametrize("size", SIZES)
def bench_add_norm_modulate(race: Any, size: str, passes: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device, passes))
