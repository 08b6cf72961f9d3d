"""Public ``sample_code``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from . import schema as schema


def sample_code(
    logits: Tensor,
    *,
    uncond_logits: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
    seed: Tensor | int = 0,
    index: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw one code a token from a teacher's sampling distribution.

    In this order, as VAR and LlamaGen sample: classifier-free guidance
    ``l = l_uncond + s (l_cond - l_uncond)``, division by the temperature, top-k (ties stay), top-p
    (a code stays iff the mass strictly above it is less than p), one draw. So the temperature
    moves what top-p keeps, but not what top-k keeps. A code whose logit is -inf, in either of the
    two, is never drawn.

    The draw is a function of the row's logits, ``seed`` and the row's ``index`` alone: the same on
    every backend up to rounding where a uniform number falls next to the boundary of two codes, and
    in any order of work. Without ``index`` the rows of a call count from 0, and under torch.vmap
    those of every slice do: pass ``index`` there. A batch split over several calls needs it too, or
    a seed for each.

    Args:
        logits: the teacher's logits ``[*, V]``; a constant.
        uncond_logits: unconditional logits ``[*, V]``; a constant. None: no guidance.
        guidance_scale: ``s``, a number or broadcastable to ``[*]``; 1 is none.
        top_k: how many of the largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        temperature: divides the guided logits, in [1e-30, 1e30]; small is greedy.
        seed: an int of 64 bits, or an int64 tensor on the device of ``logits``, ``[]`` or one a
            row ``[*]``, which a CUDA graph reads anew at every replay.
        index: int64 ``[*]``, the number of each row under the seed; None: its flat place in this
            call.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        int64 codes ``[*]``; -1 for a row with no code left, or with a NaN or +inf in its guided
        logits over the temperature (float32 overflows at 3.4e38).

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value; the values of
            tensors are not read, which would stall a GPU.
        RuntimeError: the named backend cannot run here; the message says why.

    Source: VAR (arXiv 2404.02905) and LlamaGen (arXiv 2406.06525), their samplers.
    """
    top_k, top_p = teacher_checks.check_logits(logits, uncond_logits, guidance_scale, top_k, top_p)
    temperature = teacher_checks.check_temperature(temperature)
    rows, vocabulary = logits.shape[:-1], logits.shape[-1]
    seed = teacher_checks.seed_tensor(seed, logits)
    if index is not None:
        checks.check_tensor("index", index, (torch.int64,))
        checks.check_shape("index", index, list(rows), "[*], that of logits without V")
        checks.check_same_device("logits", logits, index=index)
    dtype = checks.compute_dtype(logits)
    scale = teacher_checks.broadcast_rows("guidance_scale", guidance_scale, rows, logits, dtype)
    count = scale.numel()
    return torch.ops.dd2_fast.sample_code(
        logits.reshape(count, vocabulary),
        None if uncond_logits is None else uncond_logits.reshape(count, vocabulary),
        scale.reshape(count),
        seed.reshape(count) if seed.ndim else seed,
        None if index is None else index.reshape(count),
        top_k,
        top_p,
        temperature,
        checks.check_backend(backend),
    ).reshape(rows)
