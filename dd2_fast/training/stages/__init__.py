"""One file per stage; each works over any teacher, generator and guidance network."""

from .adaptation import AdaptationStage
from .csd import CsdStage
from .gts import GroundTruthScoreStage
from .guidance import GuidanceStage
from .image_classifier import ImageClassifierStage
from .image_teacher import ImageTeacherStage
from .image_tokenizer import ImageTokenizerStage
from .logits import LogitStage
from .pairs import PairsStage
from .regression import RegressionStage
from .teacher import TeacherStage
from .tokenizer import TokenizerStage

__all__ = [
    "AdaptationStage",
    "CsdStage",
    "GroundTruthScoreStage",
    "GuidanceStage",
    "ImageClassifierStage",
    "ImageTeacherStage",
    "ImageTokenizerStage",
    "LogitStage",
    "PairsStage",
    "RegressionStage",
    "TeacherStage",
    "TokenizerStage",
]
