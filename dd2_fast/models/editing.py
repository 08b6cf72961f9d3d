"""Editing without training: tokens outside a mask are an image's own, those inside are drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ambient import constant
from ..condition import Rows
from .checks import check_device
from .sampling import guided_choice, is_guided

if TYPE_CHECKING:
    from .family import Teacher


class Known(Protocol):
    """What is known of images of which a part is drawn anew.

    Attributes:
        drawn: bool ``[B, n]``, the tokens that are drawn.
        steps: the positions of steps that can be taken without a teacher.
        cell: pixels along a side of the finest token.
    """

    drawn: Tensor
    steps: list[slice]
    cell: int

    def take(self, here: slice, proposed: Tensor) -> Tensor:
        """``proposed [B, m]`` where tokens are drawn, and the image's own elsewhere; asked step by
        step from the first."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of all tokens ``[B, n]``."""

    def reconstruction(self) -> Tensor:
        """The images through the tokenizer."""


class KnownRaster:
    """:class:`Known` of a raster of tokens: those with a masked pixel in their cell are drawn."""

    def __init__(self, tokenizer: Any, images: Tensor, mask: Tensor) -> None:
        self.tokenizer, self.tokens = tokenizer, tokenizer.encode(images)
        side = math.isqrt(self.tokens.shape[1])
        self.drawn = F.adaptive_max_pool2d(mask.float(), side).flatten(1) > 0
        self.steps, self.cell = [slice(0, side * side)], images.shape[-1] // side

    def take(self, here: slice, proposed: Tensor) -> Tensor:
        return torch.where(self.drawn[:, here], proposed, self.tokens[:, here])

    def decode(self, tokens: Tensor) -> Tensor:
        images: Tensor = self.tokenizer.decode(self.tokenizer.embed(tokens))
        return images

    def reconstruction(self) -> Tensor:
        return self.decode(self.tokens)


def check_images(images: Any) -> None:
    """TypeError or ValueError unless ``images`` are float ``[B, c, H, W]`` in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a float torch.Tensor, got {got}")
    if images.ndim != 4:
        raise ValueError(f"images: expected shape ['B', c, H, W], got {list(images.shape)}")
    if images.numel():
        low, high = (float(v) for v in images.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images: expected values in [0, 1], got {low:g} to {high:g}")


def check_mask(mask: Any, images: Tensor) -> Tensor:
    """``mask``, bool ``[H, W]`` or ``[B, 1, H, W]``, as the latter on the images' device."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool torch.Tensor, True where to draw, got {got}")
    count, _, *size = images.shape
    whole = mask.expand(1, 1, *mask.shape) if mask.ndim == 2 else mask
    if whole.ndim != 4 or list(whole.shape[1:]) != [1, *size] or len(whole) not in (1, count):
        raise ValueError(
            f"mask: expected shape {size} ([H, W]) or {[count, 1, *size]} ([B, 1, H, W]), "
            f"got {list(mask.shape)}"
        )
    return whole.to(images.device).expand(count, 1, *size)


def check_index(index: Any, count: int) -> Tensor:
    """``index``, int64 ``[count]`` and not negative, or TypeError or ValueError."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index: expected an int64 torch.Tensor, got {got}")
    if list(index.shape) != [count]:
        raise ValueError(f"index: expected shape {[count]}, one an image, got {list(index.shape)}")
    if count and int(index.min()) < 0:
        raise ValueError(f"index: expected at least 0, got {int(index.min())}")
    return index


def edit_tokens(
    teacher: Teacher | None,
    known: Known,
    labels: Rows,
    *,
    start: Tensor | None = None,
    kept: int = 0,
    cfg: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Tensor = 0,
    index: Tensor | None = None,
) -> Tensor:
    """Tokens ``[B, n]``: the known ones, and inside the mask draws of the teacher given all before
    them.

    Args:
        teacher: None where ``start`` is kept whole.
        start: int64 ``[B, n]``, tokens to take inside the mask at the first ``kept`` positions,
            whole steps. The others are those of :func:`.sampling.draw_tokens`, which this equals
            where everything is drawn.
    """

    def undrawn(here: slice) -> Tensor:
        if here.stop <= kept and start is not None:
            return known.take(here, start[:, here])
        return known.take(here, torch.zeros_like(known.drawn[:, here], dtype=torch.int64))

    if teacher is None:
        return torch.cat([undrawn(own) for own in known.steps], 1)
    choose, scale = guided_choice(teacher, labels, cfg, top_k, top_p, seed, index)

    def mixed(here: slice, logits: Tensor | None, uncond_logits: Tensor | None) -> Tensor:
        if logits is None:
            return undrawn(here)
        return known.take(here, choose(here, logits, uncond_logits))

    drawn = known.drawn.any(0).tolist()
    drawn_steps = [own.stop > kept and any(drawn[own]) for own in teacher.steps]
    return teacher.generate(labels, mixed, guided=is_guided(scale), drawn_steps=drawn_steps)


class Edits:
    """What teachers share that have a tokenizer: :meth:`edit`."""

    tokenizer: Any

    def edit(
        self: Any,
        images: Tensor,
        mask: Tensor,
        labels: Rows,
        *,
        keep_pixels: bool = False,
        cfg: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Images ``[B, c, H, W]`` with what is masked drawn anew: in- and out-painting, and of
        another class by its label. Nothing is trained.

        Tokens that the mask does not touch are the encoded image's, and VAR's coarser ones of which
        it covers at most half; the others are drawn step by step given all before them, so of a
        raster not given what comes after them. Outside the mask the result is the tokenizer's
        reconstruction, into which it fades over the width of one token. With everything masked it
        is a plain draw.

        Args:
            images: in [0, 1], of the tokenizer's size. Known tokens beside the mask see what lies
                under it as far as the encoder looks: paint over what they must not see.
            mask: bool ``[H, W]`` or ``[B, 1, H, W]``, True where to draw.
            labels: int64 ``[B]``, or what else the teacher is conditioned on.
            keep_pixels: put the given pixels, not their reconstruction, where the mask is False.
            cfg, top_k, top_p, seed: as of ``sample``; cfg None is none.
            index: int64 ``[B]``, the images' numbers under the seed; default 0, 1, ...

        Raises TypeError or ValueError for a wrong argument, RuntimeError without a tokenizer, and
        NotFiniteError, a ValueError, if the logits of an image have a NaN or infinity.

        Source: Tian et al., Visual autoregressive modeling (arXiv 2404.02905), section 5.3.
        """
        check_images(images)
        where = check_mask(mask, images)
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise RuntimeError(f"tokenizer: {type(self).__name__} needs one to edit, and has none")
        check_device("images", images, tokenizer.codebook.device)
        self.condition.check(labels, len(images), images.device)
        sampling: dict[str, Any] = {"cfg": cfg, "top_k": top_k, "top_p": top_p, "seed": seed}
        if index is not None:
            sampling["index"] = check_index(index, len(images)).to(images.device)
        made: Tensor = self._drawn_anew(images, where, keep_pixels, labels, **sampling)
        return made

    @constant
    def _drawn_anew(
        self: Any, images: Tensor, mask: Tensor, keep_pixels: bool, labels: Rows, **sampling: Any
    ) -> Tensor:
        known = self.tokenizer.known(images, mask)
        tokens = edit_tokens(self, known, labels, **sampling)
        return edited(known, tokens, images, mask, keep_pixels)


def edited(known: Known, tokens: Tensor, images: Tensor, mask: Tensor, keep_pixels: bool) -> Tensor:
    """Images of ``tokens [B, n]`` where ``mask [B, 1, H, W]`` is True; elsewhere the reconstruction
    of the given ones, into which they fade over one token, or these themselves."""
    made = known.decode(tokens)
    if keep_pixels:
        return made.where(mask, images.to(made))
    return torch.lerp(known.reconstruction(), made, faded(mask, known.cell).to(made))


def faded(mask: Tensor, width: int) -> Tensor:
    """1 in ``mask [B, 1, H, W]``, falling to 0 within ``width`` pixels of it."""
    reach = width // 2
    window = 2 * reach + 1
    wider = F.max_pool2d(mask.float(), window, 1, reach)
    return F.avg_pool2d(wider, window, 1, reach, count_include_pad=False)
