"""``sample_code``: every backend that can run here against the sort-based code of today's samplers,
eager and under torch.compile.

pytest bench/bench_sample_code.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.ops import available_backends, sample_code

# (rows of one image, vocabulary, top_k, top_p); on a GPU a batch of 64
SHAPES = {
    "var": (680, 4096, 0, 1.0),
    "var_filtered": (680, 4096, 900, 0.95),
    "llamagen_filtered": (256, 16384, 900, 1.0),
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


def filtered(logits: Tensor, uncond: Tensor, scale: float, top_k: int, top_p: float) -> Tensor:
    guided = uncond.float() + scale * (logits.float() - uncond.float())
    if top_k:
        guided = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = guided.sort(descending=True)
        mass = ordered.softmax(-1)
        dropped = mass.cumsum(-1) - mass >= top_p
        guided = guided.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return guided


def plain_sample(*arguments: Any) -> Tensor:
    """What VAR and LlamaGen do: mask by sorting, softmax, multinomial."""
    return torch.multinomial(filtered(*arguments).softmax(-1), 1)[:, 0]


def make_variant(name: str, data: tuple[Any, ...]) -> Callable[[], Tensor]:
    if name == "eager":
        return lambda: plain_sample(*data)
    if name == "compile":
        compiled = torch.compile(plain_sample, dynamic=False)
        return lambda: compiled(*data)
    logits, uncond, scale, top_k, top_p = data
    return lambda: sample_code(
        logits, uncond_logits=uncond, guidance_scale=scale, top_k=top_k, top_p=top_p, backend=name
    )


@pytest.mark.parametrize(
    ("device", "variant"), [(d, v) for d in DEVICES for v in VARIANTS[d]], ids=lambda v: v
)
@pytest.mark.parametrize("name", SHAPES)
def bench_sample_code(
    benchmark: Any, copy_bandwidth: Callable[[str], float], name: str, device: str, variant: str
) -> None:
    rows, vocabulary, top_k, top_p = SHAPES[name]
    rows *= 64 if device == "cuda" else 1
    torch.manual_seed(0)
    logits = torch.randn(rows, vocabulary, device=device)
    uncond = logits * 2 + torch.randn(rows, vocabulary, device=device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    data = ((logits * 2).to(dtype), uncond.to(dtype), 2.0, top_k, top_p)
    function = make_variant(variant, data)
    drawn = function()
    allowed = filtered(*data).gather(1, drawn[:, None]) > -torch.inf
    # A code at the very edge of top-p may go either way.
    assert (~allowed).sum() <= 1, f"{variant} draws codes that the filters drop: not timed"
    if variant not in ("eager", "compile"):
        differing = (drawn != make_variant("torch", data)()).sum().item()
        assert differing <= 2 + rows // 2500, f"{variant}: {differing} draws differ: not timed"

    def timed() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"sample_code {device} {name}"
    counted = 2 * data[0].numel() * data[0].element_size() + 8 * rows
    benchmark.extra_info.update(
        variant=variant, bytes=counted, limit_seconds=counted / copy_bandwidth(device)
    )
    benchmark.pedantic(timed, warmup_rounds=3, rounds=15)
