"""``torch.library`` definition of the draw: schema, fake and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "sample_code(Tensor logits, Tensor? uncond_logits, Tensor guidance_scale, Tensor seed, "
    "Tensor? index, int top_k, float top_p, float temperature, str backend) -> Tensor"
)


@registry.exact_products
def _forward(
    logits: Tensor,
    uncond_logits: Tensor | None,
    guidance_scale: Tensor,
    seed: Tensor,
    index: Tensor | None,
    top_k: int,
    top_p: float,
    temperature: float,
    backend: str,
) -> Tensor:
    dtype = checks.compute_dtype(logits)
    module = registry.resolve("sample_code", backend, logits.device, dtype)
    return module.sample_code(
        logits, uncond_logits, guidance_scale, seed, index, top_k, top_p, temperature
    )


def _fake(logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


for _key in ("CPU", "CUDA"):
    _library.impl("sample_code", _forward, _key)
torch.library.register_fake("dd2_fast::sample_code", _fake, lib=_library)
