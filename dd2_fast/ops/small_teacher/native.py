"""Arguments of the compiled kernel from tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import structs
from ..native import Launch


def run(
    launch: Launch,
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
    """Codes by ``launch(params)``; arguments as in :mod:`.reference`."""
    out = tokens.clone(memory_format=torch.contiguous_format)
    labels, index, seeds = labels.contiguous(), index.contiguous(), seeds.contiguous()
    codebook = codebook.contiguous()
    classes, width, layers, heads = sizes
    vocabulary, dim = codebook.shape
    network = structs.SmallTransformer(
        weights.data_ptr(), classes, tokens.shape[1], dim, width, layers, heads
    )
    launch(
        structs.SmallTeacherParams(
            network=network,
            codebook=codebook.data_ptr(),
            labels=labels.data_ptr(),
            index=index.data_ptr(),
            seeds=seeds.data_ptr(),
            out=out.data_ptr(),
            images=len(out),
            prefix=prefix,
            vocabulary=vocabulary,
            top_k=top_k,
            top_p=top_p,
            scale=scale,
        )
    )
    return out
