"""Reading and writing models: released files, our own safetensors files and bundle folders."""

from .bundle import Bundle, load_bundle
from .io import read_header, save
from .loader import load

__all__ = ["Bundle", "load", "load_bundle", "read_header", "save"]
