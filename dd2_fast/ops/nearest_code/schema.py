"""``torch.library`` definition of the search: schema, fake and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define("nearest_code(Tensor x, Tensor codebook, str backend) -> Tensor")


@registry.exact_products
def _forward(x: Tensor, codebook: Tensor, backend: str) -> Tensor:
    module = registry.resolve("nearest_code", backend, x.device, x.dtype)
    return module.nearest_code(x, codebook)


def _fake(x: Tensor, codebook: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


for _key in ("CPU", "CUDA"):
    _library.impl("nearest_code", _forward, _key)
torch.library.register_fake("dd2_fast::nearest_code", _fake, lib=_library)
