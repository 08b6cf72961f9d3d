"""Refinement of one-step tokens by the teacher (paper Alg. 4)."""

from __future__ import annotations

from torch import Tensor

from ..condition import Rows
from ..models.family import Teacher
from ..models.sampling import draw_tokens


def refine(
    teacher: Teacher,
    tokens: Tensor,
    labels: Rows,
    indices: Tensor,
    *,
    steps: int,
    seed: int | Tensor,
    cfg: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Return tokens [B, n] with the teacher's last `steps` steps drawn anew given their prefix.

    A step is a token, or a scale of VAR. The draws are a function of (seed, image index, position),
    so they do not depend on the batch. labels are conditions, indices [B] int64, and so is seed
    where every image has one; cfg None is none.
    On a GPU a token whose logits were not finite is -1.
    """
    prefix = tokens[:, : teacher.steps[-steps].start]
    return draw_tokens(
        teacher,
        labels,
        cfg=cfg,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        index=indices,
        prefix=prefix,
    )
