"""Reading and writing models: safetensors files and bundle folders."""

from .bundle import Bundle, load, load_bundle
from .io import read_header, save

__all__ = ["Bundle", "load", "load_bundle", "read_header", "save"]
