"""Teachers, tokenizers, and the DD2 generator and guidance network."""

from .dd2 import DD2Generator, DD2Guidance
from .head import FlowHead
from .table import TableTeacher
from .teacher import ARTeacher
from .tokenizer import VQTokenizer
from .transformer import CausalTransformer

__all__ = [
    "ARTeacher",
    "CausalTransformer",
    "DD2Generator",
    "DD2Guidance",
    "FlowHead",
    "TableTeacher",
    "VQTokenizer",
]
