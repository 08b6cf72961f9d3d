"""``image_normal``: the noise of images, a function of (seed, index) each; internal."""

from .api import image_normal

__all__ = ["image_normal"]
