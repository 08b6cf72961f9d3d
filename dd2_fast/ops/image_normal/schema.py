"""``torch.library`` definition of the noise: schema, fake and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "image_normal(Tensor? seeds, SymInt seed, Tensor indices, SymInt[] shape, int stream, "
    "str backend) -> Tensor"
)


@registry.exact_products
def _forward(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], stream: int,
    backend: str,
) -> Tensor:  # fmt: skip
    module = registry.resolve("image_normal", backend, indices.device, torch.float32)
    return module.image_normal(seeds, seed, indices, shape, stream)


def _fake(
    seeds: Tensor | None, seed: int, indices: Tensor, shape: Sequence[int], *rest: object
) -> Tensor:
    return indices.new_empty((indices.shape[0], *shape), dtype=torch.float32)


for _key in ("CPU", "CUDA"):
    _library.impl("image_normal", _forward, _key)
torch.library.register_fake("dd2_fast::image_normal", _fake, lib=_library)
