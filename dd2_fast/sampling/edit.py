"""Images of which a part is drawn anew, started from the one-step draw."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..ambient import outside_autocast
from ..condition import Rows
from ..metrics.evaluation_mode import evaluation_mode
from ..models.editing import check_images, check_mask, edit_tokens, edited
from ..models.prepared import prepare
from ..ops import nearest_code
from .arguments import check_indices, image_seeds, integer
from .faults import Faults
from .outputs import PIXELS, check_output, in_form, to_uint8

if TYPE_CHECKING:
    from .sampler import Sampler


class EditingSampler:
    """What `Sampler` has for editing."""

    def edit(
        self: Any,
        images: Any,
        mask: Any,
        labels: int | Sequence[int] | Tensor | np.ndarray,
        *,
        teacher_steps: int | None = None,
        keep_pixels: bool = False,
        seed: int | Sequence[int] | Tensor | np.ndarray = 0,
        start_index: int = 0,
        indices: Sequence[int] | Tensor | None = None,
        output: str = "pt",
    ) -> Any:
        """Return images with what is masked drawn anew: in- and out-painting, and of another class
        by its label. Nothing is trained.

        Tokens that the mask does not touch are the encoded image's, and VAR's coarser ones of which
        it covers at most half. The others are the generator's of one pass, and those of the last
        `teacher_steps - 1` steps the teacher's, given all before them: of a raster not given what
        comes after them. With everything masked these are those of the sampler's call. Outside the
        mask the result is the tokenizer's reconstruction, into which it fades over the width of one
        token.

        Args:
            images: float tensor [B, c, H, W] in [0, 1], uint8 array [B, H, W, c], or Pillow images,
                of the tokenizer's size. Known tokens beside the mask see what lies under it as far
                as the encoder looks: paint over what they must not see.
            mask: bool [H, W] or [B, 1, H, W], True where to draw, or a Pillow image, white there.
            labels: one an image, as of the sampler's call.
            teacher_steps: as of `Sampler`; None: the sampler's own. All of the teacher's steps
                alone, without the generator, are one more than it has; guidance and filters are
                the sampler's.
            keep_pixels: put the given pixels, not their reconstruction, where the mask is False.
            seed, start_index, indices, output: as of the sampler's call; no "latent".

        Raises TypeError or ValueError for a wrong argument, and NotFiniteError as the call does.
        """
        check_output(output)
        if output == "latent" or (keep_pixels and output == "tokens"):
            raise ValueError(
                "output: expected images (or 'tokens', without keep_pixels) of an edit, "
                f"got {output!r}"
            )
        if self.jacobi:
            raise ValueError(
                f"jacobi: expected a sampler with 0 for edits, got {self.jacobi}: what is known of "
                "an image came from no noise"
            )
        steps = self.teacher_steps
        if teacher_steps is not None:
            steps = self._check_teacher_steps(teacher_steps)
        given = _floats(images, getattr(self.tokenizer, "image_channels", 3))
        check_images(given)
        where = check_mask(_masked(mask), given)
        y, condition = self.check_labels(labels), self.condition
        count = condition.count(y)
        if count != len(given):
            raise ValueError(f"labels: expected {len(given)}, one an image, got {count}")
        seeds = image_seeds(seed, count)
        apart = isinstance(seeds, Tensor)
        index = check_indices(indices, integer(start_index, "start_index"), count, apart=apart)
        device, size = self.tokenizer.codebook.device, self.batch_size
        parts, faults = [], Faults(condition)
        with evaluation_mode(self._all_modules), outside_autocast(device):
            for first in range(0, count, size):
                part = slice(first, first + size)
                own = seeds[part].to(device) if isinstance(seeds, Tensor) else seeds
                rows = condition.to(condition.take(y, part), device)
                batch = given[part].to(device), where[part].to(device)
                numbers = index[part].to(device)
                drawn = _batch(self, *batch, rows, numbers, own, steps, faults, output, keep_pixels)
                parts.append(to_uint8(drawn) if output in PIXELS else drawn)
        faults.check()
        if not parts:
            return self([], output=output)
        with torch.inference_mode(False):
            return in_form(torch.cat(parts), output)


def _floats(images: Any, channels: int) -> Tensor:
    """Images [B, c, H, W] of a tensor, of uint8 [B, H, W, c], or of Pillow images."""
    if isinstance(images, Tensor):
        return images
    pictures = [images] if _is_picture(images) else images
    if isinstance(pictures, Sequence) and pictures and all(map(_is_picture, pictures)):
        arrays = [np.asarray(one.convert("L" if channels == 1 else "RGB")) for one in pictures]
        sizes = {array.shape[:2] for array in arrays}
        if len(sizes) > 1:
            raise ValueError(f"images: expected pictures of one size, got {sorted(sizes)}")
        images = np.stack([a[..., None] if a.ndim == 2 else a for a in arrays])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        got = type(images).__name__
        if isinstance(images, np.ndarray):
            got = f"an array of {images.dtype} {list(images.shape)}"
        raise TypeError(
            "images: expected a float tensor [B, c, H, W], a uint8 array [B, H, W, c] or Pillow "
            f"images, got {got}"
        )
    # A copy: torch warns of arrays that may not be written, such as Pillow's.
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 255


def _masked(mask: Any) -> Any:
    """A tensor of a bool array or a Pillow image, whose white is True; others as they are."""
    if _is_picture(mask):
        mask = np.asarray(mask.convert("L")) > 127
    return torch.tensor(mask) if isinstance(mask, np.ndarray) else mask


def _is_picture(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


@torch.inference_mode()
def _batch(
    sampler: Sampler,
    images: Tensor,
    mask: Tensor,
    labels: Rows,
    indices: Tensor,
    seed: int | Tensor,
    steps: int,
    faults: Faults,
    output: str,
    keep_pixels: bool,
) -> Tensor:
    """Images [B, c, H, W], or tokens."""
    known = prepare(sampler.tokenizer).known(images, mask)
    teacher = prepare(sampler.teacher) if steps > 1 else None
    look = functools.partial(faults.look, indices=indices, labels=labels, seed=seed)
    kept = sampler.num_tokens if teacher is None else teacher.steps[1 - steps].start
    start = None
    if kept:
        draw, _ = sampler._networks()
        x = sampler._generated(draw, seed, indices, labels)
        look("generator", x)
        start = nearest_code(x, sampler.tokenizer.codebook)
    where: dict[str, Any] = {"seed": seed, "index": indices, "start": start, "kept": kept}
    tokens = edit_tokens(teacher, known, labels, **where, **sampler._teacher_options)
    look("teacher", tokens)
    if output == "tokens":
        return tokens
    made = edited(known, tokens.clamp(min=0), images, mask, keep_pixels)
    look("decoder", made)
    return made.float()
