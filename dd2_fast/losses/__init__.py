"""Losses of the paper: GTS (Eq. 6), FCS (Eq. 5), CSD (Eq. 4); DD1's regression; and the logit
student's."""

from .csd import csd_loss
from .dd1 import dd1_loss, flow_pairs
from .fcs import fcs_loss
from .gts import gts_loss
from .logit_distillation import logit_distillation_loss
from .noise import ImageRandom, TimeDistribution, add_noise, draw_noisy
from .target import TeacherDistribution, TeacherScore

__all__ = [
    "ImageRandom",
    "TeacherDistribution",
    "TeacherScore",
    "TimeDistribution",
    "add_noise",
    "csd_loss",
    "dd1_loss",
    "draw_noisy",
    "fcs_loss",
    "flow_pairs",
    "gts_loss",
    "logit_distillation_loss",
]
