"""The VAR family: teachers, their tokenizer, DD1's students, and the backbone of DD2's networks."""

from .backbone import VARBackbone
from .student import DD1VARStudent
from .teacher import VARTeacher
from .tokenizer import VARTokenizer

__all__ = ["DD1VARStudent", "VARBackbone", "VARTeacher", "VARTokenizer"]
