"""``torch.library`` definition of the small teacher: schema, fake and dispatch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "small_teacher(Tensor tokens, Tensor labels, Tensor index, Tensor seeds, Tensor weights, "
    "Tensor codebook, int[] sizes, int prefix, float scale, int top_k, float top_p, str backend) "
    "-> Tensor"
)


@registry.exact_products
def _forward(
    tokens: Tensor, labels: Tensor, index: Tensor, seeds: Tensor, weights: Tensor, *rest: Any
) -> Tensor:
    *arguments, backend = rest
    module = registry.resolve("small_teacher", backend, tokens.device, weights.dtype)
    return module.small_teacher(tokens, labels, index, seeds, weights, *arguments)


def _fake(tokens: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(tokens, memory_format=torch.contiguous_format)


for _key in ("CPU", "CUDA"):
    _library.impl("small_teacher", _forward, _key)
torch.library.register_fake("dd2_fast::small_teacher", _fake, lib=_library)
