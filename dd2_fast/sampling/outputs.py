"""The forms in which sampled images are returned."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

# Of Pillow: lossless, but for JPEG, of which no artefact is to be seen.
ENCODINGS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
PIXELS = ("np", "pil", *ENCODINGS)  # made from uint8
OUTPUTS = ("pt", "np", "pil", *ENCODINGS, "latent", "tokens")


def check_output(output: str) -> None:
    """Raise ValueError, with the list, for an output that does not exist, and RuntimeError for one
    that this Pillow cannot make."""
    if output not in OUTPUTS:
        raise ValueError(f"output: expected one of {', '.join(map(repr, OUTPUTS))}, got {output!r}")
    if output == "webp":
        from PIL import features

        if not features.check("webp"):
            raise RuntimeError("output: 'webp' needs a Pillow built with WebP, and this one is not")


def pixels(images: Tensor) -> Tensor:
    """Return images [B, c, H, W] in [0, 1] as uint8 [B, H, W, c]."""
    return (images * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """Return images [B, c, H, W] in [0, 1] as uint8 [B, H, W, c] on the CPU.

    They are rounded where they are, so a quarter of the bytes moves.
    """
    return pixels(images).cpu()


def to_pil(images: Tensor) -> list[Any]:
    """Return uint8 images [B, H, W, c] as a list of Pillow images: RGB, or L where c is 1."""
    from PIL import Image

    arrays = images[..., 0] if images.shape[-1] == 1 else images
    return [Image.fromarray(array) for array in arrays.numpy()]


def encoded(images: Tensor, output: str) -> list[bytes]:
    """Return uint8 images [B, H, W, c] as the bytes of a file each, of a format in ENCODINGS."""
    files = []
    for image in to_pil(images):
        data = io.BytesIO()
        image.save(data, output.upper(), **ENCODINGS[output])
        files.append(data.getvalue())
    return files


def in_form(result: Tensor, output: str) -> Any:
    """Return what a call with this output gives, of uint8 images [B, H, W, c] if it is in PIXELS,
    else of what is returned as it is."""
    if output == "np":
        return result.numpy()
    if output == "pil":
        return to_pil(result)
    return encoded(result, output) if output in ENCODINGS else result
