"""Public ``flow_solve``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, teacher_checks
from . import schema as schema

SOLVERS = ("heun", "euler")


def flow_solve(
    noise: Tensor,
    logits: Tensor,
    codebook: Tensor,
    *,
    steps: int = 20,
    solver: str = "heun",
    uncond_logits: Tensor | None = None,
    guidance_scale: Tensor | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """The code that noise flows to under a teacher's next-token distribution.

    Solves the probability-flow ODE of :func:`dd2_fast.ops.conditional_score`

        dx/dt = (x - x0(x, t)) / t,   x(1) = noise

    from ``t = 1`` to ``0`` in uniform steps, and gives the nearest to the end point of the codes
    that the filters keep, the first on ties. As ``steps`` grows, the code of normal noise is a
    sample of the teacher's (guided, filtered) distribution. The last step is Euler's, which ends
    at ``x0(x, 1/steps)``: Heun's second velocity does not exist at ``t = 0``.

    Backends round differently, so a token whose path comes within rounding of the boundary between
    two codes may end in either.

    Args:
        noise: ``[*, C]``, or ``[*, M, C]`` for M draws that share a row of logits; no gradient
            flows through an index.
        logits: the teacher's logits ``[*, V]``; a constant.
        codebook: code vectors ``[V, C]``; a constant.
        steps: number of steps, at least 1.
        solver: ``"heun"`` (two evaluations a step, second order) or ``"euler"`` (one, first).
        uncond_logits: unconditional logits ``[*, V]``; a constant. None: no guidance.
        guidance_scale: ``s``, a number or broadcastable to ``[*]``; 1 is none.
        top_k: how many of the largest logits to keep; 0 keeps all.
        top_p: the probability mass to keep, in (0, 1]; 1.0 keeps all.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        int64 codes ``[*]`` or ``[*, M]``; -1 where the row has no code left, or a NaN or +inf in
        its guided logits, where the noise has a NaN or infinity, and everywhere if the codebook
        does.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value; the values of
            tensors are not read, which would stall a GPU.
        RuntimeError: the named backend cannot run here; the message says why.

    Source: Distilled Decoding 1 (arXiv 2412.17153), Sec. 3.
    """
    top_k, top_p = teacher_checks.check_teacher(
        logits, codebook, uncond_logits, guidance_scale, top_k, top_p
    )
    lead = teacher_checks.check_tokens("noise", noise, logits, codebook)
    steps = checks.check_count("steps", steps)
    checks.check_choice("solver", solver, SOLVERS)
    dtype = checks.compute_dtype(noise, logits, codebook)
    rows, vocabulary = list(logits.shape[:-1]), logits.shape[-1]
    scale = teacher_checks.broadcast_rows("guidance_scale", guidance_scale, rows, logits, dtype)
    count, draws = scale.numel(), lead[-1] if len(lead) > len(rows) else 1
    return torch.ops.dd2_fast.flow_solve(
        noise.detach().to(dtype).reshape(count, draws, codebook.shape[1]),
        logits.reshape(count, vocabulary),
        None if uncond_logits is None else uncond_logits.reshape(count, vocabulary),
        scale.reshape(count),
        codebook.to(dtype),
        steps,
        solver,
        top_k,
        top_p,
        checks.check_backend(backend),
    ).reshape(lead)
