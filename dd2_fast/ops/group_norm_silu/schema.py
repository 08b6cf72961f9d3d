"""``torch.library`` definition of the norm: schema, fake and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu, "
    "Tensor? pre_bias, Tensor? residual, str backend) -> (Tensor, Tensor)"
)


@registry.exact_products
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool,
    pre_bias: Tensor | None, residual: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    module = registry.resolve("group_norm_silu", backend, x.device, x.dtype)
    return module.group_norm_silu(x, weight, bias, groups, eps, silu, pre_bias, residual)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool,
    pre_bias: Tensor | None, residual: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(0 if residual is None else x.shape), x.new_empty(x.shape)


for _key in ("CPU", "CUDA"):
    _library.impl("group_norm_silu", _forward, _key)
torch.library.register_fake("dd2_fast::group_norm_silu", _fake, lib=_library)
