"""``torch.library`` definition of the small student: schema, fake and dispatch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import registry

_library = torch.library.Library("dd2_fast", "FRAGMENT")
_library.define(
    "small_student(Tensor noise, Tensor labels, Tensor? tokens, Tensor? student, "
    "int[] student_sizes, Tensor? teacher, int[] teacher_sizes, Tensor codebook, Tensor? decoder, "
    "int decoder_width, float temperature, int flow_steps, int passes, float scale, int top_k, "
    "float top_p, str backend) -> (Tensor, Tensor)"
)


@registry.exact_products
def _forward(noise: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *arguments, backend = rest
    module = registry.resolve("small_student", backend, noise.device, noise.dtype)
    return module.small_student(noise, *arguments)


def _fake(noise: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = noise.shape
    decoder = rest[6]
    side = 0 if decoder is None else 2 * math.isqrt(tokens)
    return labels.new_empty(batch, tokens), noise.new_empty(batch, 3, side, side)


for _key in ("CPU", "CUDA"):
    _library.impl("small_student", _forward, _key)
torch.library.register_fake("dd2_fast::small_student", _fake, lib=_library)
