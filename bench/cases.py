"""The sizes that operators are measured at, inputs of them, and the plain torch code they are
measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from measure import free_memory


@dataclass(frozen=True)
class Shape:
    """One image's tokens, logits over V codes of C numbers, and filters."""

    rows: int
    vocabulary: int
    dim: int
    top_k: int = 0
    top_p: float = 1.0

    @property
    def kept(self) -> int:
        """Codes of a row that top-k leaves: the others need no products."""
        return self.top_k or self.vocabulary

    def images(self, device: str, most: int = 64) -> int:
        """How many images to take: on a CPU one; on a GPU up to ``most``, as its memory allows.

        Skips a benchmark where one is too many: eager code keeps a dozen float32 copies of the
        logits.
        """
        one = 12 * 4 * self.rows * self.vocabulary
        for count in (most, most // 8, 1) if device == "cuda" else (1,):
            if count * one < free_memory(device) / 2:
                return count
        pytest.skip(f"needs {2 * one / 1e9:.0f} GB of memory")


SHAPES = {
    "tiny": Shape(16, 64, 8, 40, 0.95),  # the bundled digits
    "var": Shape(680, 4096, 32),
    "var_filtered": Shape(680, 4096, 32, 900, 0.95),
    "llamagen": Shape(256, 16384, 8),
    "llamagen_filtered": Shape(256, 16384, 8, 900),
}


def filtered(logits: Tensor, uncond: Tensor, scale: float, top_k: int, top_p: float) -> Tensor:
    """Guided logits, those the filters drop at minus infinity: by sorting, as samplers do."""
    guided = uncond.float() + scale * (logits.float() - uncond.float())
    if top_k:
        guided = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered = guided.sort(descending=True).values
        mass = ordered.softmax(-1)
        kept = (mass.cumsum(-1) - mass < top_p).sum(-1, keepdim=True)
        # Equal logits stay together, of which bfloat16 makes many.
        guided = guided.masked_fill(guided < ordered.gather(1, kept - 1), -torch.inf)
    return guided


def plain_score(
    x_t: Tensor, t: Tensor, logits: Tensor, uncond: Tensor, scale: float, codebook: Tensor,
    top_k: int, top_p: float,
) -> Tensor:  # fmt: skip
    """What one writes without this package: the fastest plain torch code we know, x0 only."""
    guided = filtered(logits, uncond, scale, top_k, top_p)
    signal = ((1 - t) / t**2)[:, None]
    half_norm = codebook.square().sum(-1) / 2
    exponent = guided + signal * (x_t @ codebook.T) - signal * (1 - t)[:, None] * half_norm
    return exponent.softmax(-1) @ codebook


def score_inputs(shape: Shape, device: str, *, images: int = 1, seed: int = 0) -> dict[str, Any]:
    """Arguments of :func:`plain_score`: noisy codes and sharp logits with guidance, in float32 on a
    CPU and bfloat16 on a GPU."""
    generator = torch.Generator(device).manual_seed(seed)
    rows, options = shape.rows * images, {"generator": generator, "device": device}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    codebook = torch.randn(shape.vocabulary, shape.dim, **options)
    t = 0.02 + 0.98 * torch.rand(rows, **options)
    clean = codebook[torch.randint(shape.vocabulary, (rows,), **options)]
    noise = torch.randn(rows, shape.dim, **options)
    logits = torch.randn(rows, shape.vocabulary, **options)
    uncond = logits * 2 + torch.randn(rows, shape.vocabulary, **options)
    return {
        "x_t": (1 - t[:, None]) * clean + t[:, None] * noise,
        "t": t,
        "logits": (logits * 2).to(dtype),
        "uncond": uncond.to(dtype),
        "scale": 2.0,
        "codebook": codebook,
        "top_k": shape.top_k,
        "top_p": shape.top_p,
    }


def operator_arguments(data: dict[str, Any]) -> dict[str, Any]:
    """The same under the names of ``dd2_fast.ops``."""
    renamed = {"uncond": "uncond_logits", "scale": "guidance_scale"}
    return {renamed.get(key, key): value for key, value in data.items()}


def size_in_bytes(*tensors: Any) -> int:
    """Of those among the arguments that are tensors."""
    return sum(v.numel() * v.element_size() for v in tensors if isinstance(v, Tensor))
