"""The head's logits a chunk of rows at a time, each consumed before the next is formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Reading and packing the head's weight again for every chunk costs. On two threads, guided, against
# all rows at once: with 288 rows of logits up to a quarter more time, with 576 within a tenth (1360
# tokens, 4096 x 1024, and 256, 16384 x 1024). oneDNN is faster, but packs the whole weight aside.
_CPU_ROWS = 576
_KERNEL_ROWS = 12  # that one thread of the CPU kernel takes at a time
# Thousands of rows, so that every multiprocessor has some; chosen by count, not timed.
_CUDA_BYTES = 2**27


def rows_of_logits(hidden: Tensor, vocabulary: int, streams: int) -> int:
    """How many tokens a chunk has; each has ``streams`` rows of logits, one, or two if guided."""
    if hidden.device.type == "cuda":
        rows = _CUDA_BYTES // (vocabulary * hidden.element_size())
        return max(rows // streams, 1)
    return max(_CPU_ROWS // streams, _KERNEL_ROWS * torch.get_num_threads())


def consume(
    function: Callable[..., Tensor],
    per_row: tuple[Tensor, ...],
    hidden: Tensor,
    uncond_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    guidance_scale: Tensor,
    *rest: Any,
) -> Tensor:
    """``function(*per_row, logits, uncond_logits, guidance_scale, *rest)``, of the shape of the
    first of ``per_row``, with the logits of ``hidden [R, D]`` under ``weight [V, D]``."""
    inputs = [hidden] if uncond_hidden is None else [hidden, uncond_hidden]
    out = torch.empty_like(per_row[0], memory_format=torch.contiguous_format)
    total, vocabulary = hidden.shape[0], weight.shape[0]
    size = min(rows_of_logits(hidden, vocabulary, len(inputs)), total)
    buffer = hidden.new_empty(len(inputs) * size, vocabulary)
    for start in range(0, total, max(size, 1)):
        rows = slice(start, min(start + size, total))
        # One product for both: the weight is read once.
        stacked = torch.cat([tensor[rows] for tensor in inputs])
        logits = buffer[: stacked.shape[0]]
        if bias is None:
            torch.mm(stacked, weight.T, out=logits)
        else:
            torch.addmm(bias, stacked, weight.T, out=logits)
        cond, uncond = logits.tensor_split([rows.stop - start])
        chunk = (tensor[rows] for tensor in per_row)
        out[rows] = function(
            *chunk,
            cond,
            None if uncond_hidden is None else uncond,
            guidance_scale[rows],
            *rest,
        )
    return out
