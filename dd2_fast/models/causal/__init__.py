"""The small family: what the digits and the toys have, over code vectors in raster order."""

from .table import TableTeacher
from .teacher import ARTeacher
from .tokenizer import VQTokenizer
from .transformer import CausalTransformer

__all__ = ["ARTeacher", "CausalTransformer", "TableTeacher", "VQTokenizer"]
