"""The LlamaGen family (arXiv 2406.06525): teachers, tokenizers, DD1's students."""

from .adaptation import adapt
from .adapter import EmbeddingFit, EmbeddingMLP, fit_embedding_mlp
from .backbone import LlamaGenBackbone
from .student import DD1LlamaGenStudent
from .teacher import LlamaGenTeacher
from .tokenizer import LlamaGenTokenizer

__all__ = [
    "DD1LlamaGenStudent",
    "EmbeddingFit",
    "EmbeddingMLP",
    "LlamaGenBackbone",
    "LlamaGenTeacher",
    "LlamaGenTokenizer",
    "adapt",
    "fit_embedding_mlp",
]
