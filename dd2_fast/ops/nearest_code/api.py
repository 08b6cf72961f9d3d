"""Public ``nearest_code``: validation and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from . import schema as schema


def nearest_code(x: Tensor, codebook: Tensor, *, backend: str | None = None) -> Tensor:
    """Index of the code nearest to each vector, ``argmin_j |x - c_j|``.

    Equal codes give the first; codes that differ, but whose distances agree to rounding, may give
    either. The compiled backends expand the square, so rounding is relative to
    ``|x|^2 + |c|^2``: the distance found is the smallest to within float32 rounding of that.

    Args:
        x: vectors ``[*, C]``; no gradient flows through an index.
        codebook: code vectors ``[V, C]``.
        backend: a name in :func:`available_backends`, or None for the fastest that can run.

    Returns:
        int64 indices ``[*]``; -1 where no code is at a finite distance: a NaN or infinity in the
        vector, or ``|x|^2`` beyond the computation's dtype (float32: ``|x|`` above 1.8e19). A code
        that is so is never the nearest.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
        RuntimeError: the named backend cannot run here; the message says why.

    Source: van den Oord et al., Neural discrete representation learning (arXiv 1711.00937), Eq. 2.
    """
    checks.check_tensor("x", x)
    checks.check_tensor("codebook", codebook)
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(
            f"codebook: expected shape [V, C] with V >= 1 and C >= 1, got {list(codebook.shape)}"
        )
    dim = codebook.shape[1]
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(
            f"x: expected shape [*, C] with C = {dim} (from codebook), got {list(x.shape)}"
        )
    checks.check_same_device("x", x, codebook=codebook)
    dtype = checks.compute_dtype(x, codebook)
    flat = x.detach().to(dtype).reshape(x.shape[:-1].numel(), dim)
    codes = codebook.detach().to(dtype)
    found = torch.ops.dd2_fast.nearest_code(flat, codes, checks.check_backend(backend))
    return found.reshape(x.shape[:-1])
