"""Reading and writing models: released files, our own safetensors files and bundle folders."""

from .bundle import Bundle, load_bundle
from .io import read_header, save
from .loader import load
from .pretrained import from_pretrained, save_pretrained

__all__ = [
    "Bundle",
    "from_pretrained",
    "load",
    "load_bundle",
    "read_header",
    "save",
    "save_pretrained",
]
