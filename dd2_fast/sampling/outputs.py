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
    """Return images [B, 3, H, W] in [0, 1] as uint8 [B, H, W, 3] on the CPU.

    They are rounded where they are, so a quarter of the bytes moves.
    """
    return (images * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def to_pil(images: Tensor) -> list[Any]:
    """Return uint8 images [B, H, W, 3] as a list of RGB Pillow images."""
    from PIL import Image

    return [Image.fromarray(array, "RGB") for array in images.numpy()]
