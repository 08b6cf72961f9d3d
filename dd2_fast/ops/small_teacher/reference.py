"""A small teacher in plain torch over its packed weights: the specification of every backend.

Token ``i`` is drawn by :mod:`..sample_code` from ``Linear(LN(h_i))``, where ``h`` are the blocks of
:mod:`..small_generator` over the class and the codes of the tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sample_code.reference import sample_code
from ..small_network import Reader, TeacherSizes, blocks, normalize, start


def small_teacher(
    tokens: Tensor,
    labels: Tensor,
    index: Tensor,
    seeds: Tensor,
    weights: Tensor,
    codebook: Tensor,
    sizes: Sequence[int],
    prefix: int,
    scale: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Codes ``[B, n]``; every step reads all tokens before it anew.

    Args:
        tokens: int64 ``[B, n]``, of which the first ``prefix`` are kept. labels: int64 ``[B]``.
        index: int64 ``[B]``. seeds: int64 ``[n]`` or ``[B, n]``. weights: packed.
        codebook: ``[V, C]``. sizes: :class:`.TeacherSizes`. scale: of guidance; 1: none.
        top_k, top_p: filters.
    """
    sizes, out = TeacherSizes(*sizes), tokens.clone(memory_format=torch.contiguous_format)
    guided, vocabulary = scale != 1, len(codebook)
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, sizes.classes - 1)])
    scales = codebook.new_full((len(out),), scale, dtype=torch.promote_types(
        codebook.dtype, torch.float32))  # fmt: skip
    for step in range(prefix, out.shape[1]):
        known = codebook[out[:, :step].clamp(min=0)]
        read = torch.cat([known, known]) if guided else known
        reader = Reader(weights)
        h = start(reader, read, labels, sizes.classes, sizes.width, out.shape[1])
        h = blocks(reader, h, sizes.layers, sizes.heads)
        logits = reader.apply(normalize(h[:, -1]), vocabulary)
        cond, uncond = logits.split(len(out)) if guided else (logits, None)
        drawn = sample_code(cond, uncond, scales, seeds[..., step], index, top_k, top_p, 1.0)
        earlier = out[:, max(step - 1, prefix)] if step > prefix else drawn
        out[:, step] = drawn.where(earlier >= 0, -1)
    return out
