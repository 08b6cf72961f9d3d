"""Counter-based random numbers: every image has its own, whatever the batch and the device."""

from __future__ import annotations

from torch import Tensor

from ..ops.philox import image_normal, image_uniform

__all__ = ["NOISE_STREAM", "image_noise", "image_uniform"]

NOISE_STREAM = 0


def image_noise(seed: int | Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float32 standard normal noise [B, *shape], one draw an image index.

    indices [B] is int64 and says which images of the job with this seed are wanted; seed is one
    number or int64 [B].
    """
    return image_normal(seed, indices, shape, stream=NOISE_STREAM)
