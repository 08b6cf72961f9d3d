"""What teachers share when they draw tokens: how one step chooses, and the seeds of the steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..condition import Rows, condition_of
from ..ops import sample_code
from ..ops.checks import check_number
from ..ops.teacher_checks import check_filters
from .checks import check_drawn
from .processor import warn_if_slow

if TYPE_CHECKING:
    from .family import Teacher

# choose(positions, logits [B, m, V], uncond_logits or None) -> int64 tokens [B, m] of the step at
# the m positions: one token of a sequence, or all of a scale of VAR. Where a caller of `generate`
# says that a step is not drawn, its logits are None.
Choose = Callable[[slice, Any, Tensor | None], Tensor]


def categorical(
    guidance_scale: Tensor | float,
    top_k: int,
    top_p: float,
    seed: int | Tensor,
    index: Tensor | None = None,
    about: Callable[[int], str] | None = None,
) -> Choose:
    """A ``choose`` that draws from the guided, filtered distribution by the fused operator.

    Args:
        guidance_scale: a number, or one a token ``[n]``; used where there are ``uncond_logits``.
        top_k, top_p: filters.
        seed: of the whole draw, or int64 ``[B]``, one an image; every step has its own.
        index: int64 ``[B]``, which image of the seed each row is; default 0, 1, ...
        about: what the error of logits that are not finite says of a row's condition. It is raised
            where they are on a CPU; elsewhere their tokens are -1.
    """
    check_filters(top_k, top_p)
    if not isinstance(seed, Tensor):
        check_seed(seed)

    def choose(positions: slice, logits: Tensor, uncond_logits: Tensor | None) -> Tensor:
        scale: Tensor | float = 1.0
        if uncond_logits is not None:
            at_step = isinstance(guidance_scale, Tensor) and guidance_scale.ndim
            scale = guidance_scale[positions] if at_step else guidance_scale  # type: ignore[index]
        rows = None
        if index is not None:
            count = logits.shape[1]
            rows = index[:, None] * count + torch.arange(count, device=index.device)
        seeds = step_seed(seed, positions.start)
        if isinstance(seeds, Tensor):
            seeds = seeds[:, None].expand(logits.shape[:-1])
        tokens = sample_code(
            logits,
            uncond_logits=uncond_logits,
            guidance_scale=scale,
            top_k=top_k,
            top_p=top_p,
            seed=seeds,
            index=rows,
        )
        if tokens.device.type == "cpu":
            check_drawn(tokens, positions.start, logits.shape[-1], index, about)
        return tokens

    return choose


def likeliest_codes(logits: Tensor, codebook: Tensor) -> Tensor:
    """Code vectors ``[*, C]`` of the largest logits ``[*, V]``; NaN where that is not finite, which
    ``argmax`` would take for a code."""
    largest = logits.max(-1)
    return codebook[largest.indices].where(largest.values.isfinite()[..., None], torch.nan)


def draw_tokens(
    teacher: Teacher,
    labels: Rows,
    *,
    cfg: float | None,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Tensor = 0,
    index: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """Tokens ``[B, n]`` of a teacher: an image depends on the seed, its number and its label.

    Args:
        labels: conditions of B images.
        cfg: guidance, as ``teacher.guidance_scale`` takes it; None: none.
        top_k, top_p: filters. seed: of the draws, or int64 ``[B]``, one an image.
        index: int64 ``[B]``, the images' numbers; default 0, 1, ...
        prefix: int64 ``[B, m]``, the tokens of the first steps, which are kept.

    Raises NotFiniteError where logits on a CPU have a NaN or infinity; elsewhere, where a look
    would wait for the device, such tokens are -1.
    """
    choose, scale = guided_choice(teacher, labels, cfg, top_k, top_p, seed, index)
    at_once = getattr(teacher, "draw_at_once", None)
    if at_once is not None:
        tokens = at_once(labels, scale, top_k, top_p, seed, index, prefix)
        if tokens is not None:
            return tokens
    return teacher.generate(labels, choose, guided=is_guided(scale), prefix=prefix)


def guided_choice(
    teacher: Teacher,
    labels: Rows,
    cfg: float | None,
    top_k: int,
    top_p: float,
    seed: int | Tensor,
    index: Tensor | None,
) -> tuple[Choose, Tensor | float]:
    """How :func:`draw_tokens` chooses, and by which scale of guidance."""
    warn_if_slow(teacher)
    scale = 1.0 if cfg is None else teacher.guidance_scale(cfg)
    about = functools.partial(condition_of(teacher).about, labels)
    return categorical(scale, top_k, top_p, seed, index, about), scale


def is_guided(scale: Tensor | float) -> bool:
    """Whether a scale of guidance, a number or one a token, takes unconditional logits."""
    return isinstance(scale, Tensor) or scale != 1.0


def sample_tokens(teacher: Teacher, labels: Rows, **settings: Any) -> Tensor:
    """:func:`draw_tokens` of whole images, and a look at them at the end, wherever they are."""
    tokens = draw_tokens(teacher, labels, **settings)
    if tokens.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        about = functools.partial(condition_of(teacher).about, labels)
        check_drawn(tokens, 0, teacher.codebook.shape[0], None, about)
    return tokens


class TokenByToken:
    """What teachers share that draw one token after the other with a constant guidance scale."""

    num_tokens: int
    unguided = 1.0

    def guidance_scale(self, cfg: float) -> float:
        """The scale ``s`` of ``l_uncond + s (l_cond - l_uncond)``: constant, ``s = cfg``."""
        check_number("cfg", cfg)
        return float(cfg)

    @property
    def steps(self) -> list[slice]:
        """The positions of each step: one token."""
        return [slice(i, i + 1) for i in range(self.num_tokens)]

    def sample(
        self: Teacher,
        labels: Rows,
        *,
        cfg: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Tokens ``[B, n]`` drawn one after the other.

        Args:
            labels: int64 ``[B]``, or what else the teacher is conditioned on.
            cfg: guidance scale; 1 or None is none.
            top_k: logits to keep, 0 keeps all. top_p: mass to keep, 1.0 keeps all.
            seed: of the draws; image ``i`` of a call depends on the seed, ``i`` and its label, and
                not on the caller's autocast.

        Raises NotFiniteError, a ValueError, if the logits of an image have a NaN or infinity.
        """
        return sample_tokens(self, labels, cfg=cfg, top_k=top_k, top_p=top_p, seed=seed)


def check_seed(seed: Any) -> None:
    """Raise unless ``seed`` is an int of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an integer of 64 bits, got {seed}")


def step_seed(seed: int | Tensor, position: int) -> int | Tensor:
    """A seed of 64 bits for the step that starts at ``position`` (splitmix64), of each of int64
    ``[B]`` seeds."""
    z = _wrapped(seed + _signed((position + 1) * 0x9E3779B97F4A7C15))
    z = _wrapped((z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9))
    z = _wrapped((z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB))
    return z ^ _shifted(z, 31)


def _signed(value: int) -> int:
    """The low 64 bits of a number as a signed integer."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _wrapped(value: int | Tensor) -> int | Tensor:
    return value if isinstance(value, Tensor) else _signed(value)  # those of tensors wrap


def _shifted(value: int | Tensor, bits: int) -> int | Tensor:
    """64 bits moved to the right, zeros coming in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
