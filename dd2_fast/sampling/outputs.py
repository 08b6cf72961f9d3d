"""The forms in which sampled images are returned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OUTPUTS = ("pt", "np", "pil", "latent", "tokens")


def check_output(output: str) -> None:
    """Raise ValueError, with the list, for an output that does not exist."""
    if output not in OUTPUTS:
        raise ValueError(f"output: expected one of {', '.join(map(repr, OUTPUTS))}, got {output!r}")


def to_uint8(images: Tensor) -> Tensor:
    """Return images [B, c, H, W] in [0, 1] as uint8 [B, H, W, c] on the CPU.

    They are rounded where they are, so a quarter of the bytes moves.
    """
    return (images * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def to_pil(images: Tensor) -> list[Any]:
    """Return uint8 images [B, H, W, c] as a list of Pillow images: RGB, or L where c is 1."""
    from PIL import Image

    arrays = images[..., 0] if images.shape[-1] == 1 else images
    return [Image.fromarray(array) for array in arrays.numpy()]
