"""The teacher's next-token distributions, and what they predict for noisy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..condition import Condition, Rows, condition_of
from ..ops import conditional_score, flow_solve

_SCORED = ("codebook", "logits", "guidance_scale")


@dataclass(frozen=True)
class TeacherDistribution:
    """Sampling distributions of a teacher: logits ``[*, V]`` with guidance and filters to apply."""

    codebook: Tensor
    logits: Tensor
    uncond_logits: Tensor | None = None
    guidance_scale: Tensor | float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def predict(self, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
        """``"x0"`` or ``"velocity"`` of ``x_t [*, C]`` or ``[*, M, C]`` by paper Eq. 1."""
        return conditional_score(
            x_t,
            t,
            self.logits,
            self.codebook,
            uncond_logits=self.uncond_logits,
            guidance_scale=self.guidance_scale,
            top_k=self.top_k,
            top_p=self.top_p,
            prediction=prediction,
        )

    def flow(self, noise: Tensor, steps: int = 20) -> Tensor:
        """int64 codes ``[*]`` to which ``noise [*, C]`` flows (:func:`dd2_fast.ops.flow_solve`)."""
        return flow_solve(
            noise,
            self.logits,
            self.codebook,
            steps=steps,
            uncond_logits=self.uncond_logits,
            guidance_scale=self.guidance_scale,
            top_k=self.top_k,
            top_p=self.top_p,
        )


class ScoredTeacher(Protocol):
    """What the losses ask of a teacher, beside ``num_classes`` or a ``condition``."""

    @property
    def codebook(self) -> Tensor:
        """The code vectors ``[V, C]``."""

    def logits(self, tokens_or_embeddings: Tensor, labels: Rows, /) -> Tensor:
        """Teacher-forced logits ``[B, n, V]``."""

    def guidance_scale(self, cfg: float, /) -> Tensor | float:
        """``s`` of ``l_uncond + s (l_cond - l_uncond)``: a number, or one per token ``[n]``."""


def check_teacher(teacher: object, names: Sequence[str]) -> None:
    """Raise a TypeError that lists every attribute of ``names`` that a teacher lacks."""
    there = dir(teacher)  # evaluates no property: VAR's codebook needs its tokenizer
    missing = [name for name in names if name not in there and not hasattr(teacher, name)]
    if missing:
        raise TypeError(
            f"teacher: expected one with {', '.join(names)}; {type(teacher).__name__} lacks "
            f"{', '.join(missing)}"
        )


@dataclass(frozen=True)
class TeacherScore:
    """A frozen teacher with the settings of its sampling distribution.

    Args:
        teacher: any object with ``codebook [V, C]``, ``num_classes`` or a ``condition``
            (:class:`dd2_fast.condition.Condition`), ``logits(tokens_or_embeddings, labels)
            [B, n, V]`` and ``guidance_scale(cfg)``, a number or one per token; DD1's pairs
            and samples draw by its ``generate``, too (:class:`dd2_fast.models.ARTeacher`).
        cfg: guidance as the teacher's ``guidance_scale`` takes it; None: none.
        top_k: logits to keep, 0 keeps all. top_p: mass to keep, 1.0 keeps all.

    Raises:
        TypeError: the teacher lacks some of these; the message names all of them.
    """

    teacher: ScoredTeacher
    cfg: float | None = None
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        told = isinstance(getattr(self.teacher, "condition", None), Condition)
        condition = "condition" if told else "num_classes"
        check_teacher(self.teacher, (_SCORED[0], condition, *_SCORED[1:]))

    def guidance_scale(self) -> Tensor | float:
        """The scale ``s`` of ``l_uncond + s (l_cond - l_uncond)``: a number, 1.0 for none, or one a
        token ``[n]``."""
        return 1.0 if self.cfg is None else self.teacher.guidance_scale(self.cfg)

    @torch.no_grad()
    def __call__(self, tokens_or_embeddings: Tensor, labels: Rows) -> TeacherDistribution:
        """Distributions of all ``n`` tokens given their prefixes, in one or two passes."""
        teacher = self.teacher
        scale = self.guidance_scale()
        logits = teacher.logits(tokens_or_embeddings, labels)
        uncond = None
        if isinstance(scale, Tensor) or scale != 1.0:
            uncond = teacher.logits(tokens_or_embeddings, condition_of(teacher).null(labels))
        return TeacherDistribution(
            teacher.codebook,
            logits,
            uncond,
            scale if uncond is not None else 1.0,
            self.top_k,
            self.top_p,
        )
