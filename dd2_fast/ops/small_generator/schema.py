"""``torch.library`` definition of the small generator: schema, fake and dispatch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "small_generator(Tensor x, Tensor? labels, Tensor? weights, Tensor? decoder, int[] sizes, "
    "str backend) -> (Tensor, Tensor)"
)


@registry.exact_products
def _forward(
    x: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    decoder: Tensor | None,
    sizes: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    module = registry.resolve("small_generator", backend, x.device, x.dtype)
    return module.small_generator(x, labels, weights, decoder, sizes)


def _fake(
    x: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    decoder: Tensor | None,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    side = 0 if decoder is None else 2 * math.isqrt(x.shape[1])
    return torch.empty_like(x), x.new_empty(x.shape[0], 3, side, side)


for _key in ("CPU", "CUDA"):
    _library.impl("small_generator", _forward, _key)
torch.library.register_fake("dd2_fast::small_generator", _fake, lib=_library)
