"""Teachers, tokenizers, the DD2 generator and guidance network, and the logit student."""

from .causal import ARTeacher, CausalTransformer, TableTeacher, VQTokenizer
from .dd2 import DD2Generator, DD2Guidance
from .head import FlowHead
from .llamagen import DD1LlamaGenStudent, LlamaGenBackbone, LlamaGenTeacher, LlamaGenTokenizer
from .logit_student import LogitStudent
from .prepared import prepare
from .var import DD1VARStudent, VARBackbone, VARTeacher, VARTokenizer

__all__ = [
    "ARTeacher",
    "CausalTransformer",
    "DD1LlamaGenStudent",
    "DD1VARStudent",
    "DD2Generator",
    "DD2Guidance",
    "FlowHead",
    "LlamaGenBackbone",
    "LlamaGenTeacher",
    "LlamaGenTokenizer",
    "LogitStudent",
    "TableTeacher",
    "VARBackbone",
    "VARTeacher",
    "VARTokenizer",
    "VQTokenizer",
    "prepare",
]
