"""``torch.library`` definition of the flow ODE: schema, fake and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "flow_solve(Tensor noise, Tensor logits, Tensor? uncond_logits, Tensor guidance_scale, "
    "Tensor codebook, int steps, str solver, int top_k, float top_p, str backend) -> Tensor"
)


@registry.exact_products
def _forward(
    noise: Tensor,
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    codebook: Tensor,
    steps: int,
    solver: str,
    top_k: int,
    top_p: float,
    backend: str,
) -> Tensor:
    module = registry.resolve("flow_solve", backend, logits.device, noise.dtype)
    return module.flow_solve(
        noise, logits, uncond_logits, guidance_scale, codebook, steps, solver, top_k, top_p
    )


def _fake(noise: Tensor, *rest: object) -> Tensor:
    return noise.new_empty(noise.shape[:2], dtype=torch.int64)


for _key in ("CPU", "CUDA"):
    _library.impl("flow_solve", _forward, _key)
torch.library.register_fake("dd2_fast::flow_solve", _fake, lib=_library)
