"""The forms in which sampled images are returned."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

OUTPUTS = ("pt", "np", "pil", "latent", "tokens")


def check_output(output: str) -> None:
    """Raise ValueError, with the list, for an output that does not exist."""
    if output not in OUTPUTS:
        raise ValueError(f"output: expected one of {', '.join(map(repr, OUTPUTS))}, got {output!r}")


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images [B, 3, H, W] in [0, 1] as uint8 [B, H, W, 3]."""
    scaled = (images.float().clamp(0, 1) * 255).round()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def to_pil(images: Tensor) -> list[Any]:
    """Return images [B, 3, H, W] in [0, 1] as a list of RGB Pillow images."""
    from PIL import Image

    return [Image.fromarray(array, "RGB") for array in to_uint8(images)]
