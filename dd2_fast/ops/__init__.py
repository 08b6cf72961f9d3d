"""Public operators. Shapes, units and formulas are in each function's docstring."""

from .add_norm_modulate import add_norm_modulate
from .block_causal_attention import block_causal_attention
from .conditional_score import conditional_score
from .csd_loss import csd_loss
from .flow_solve import flow_solve
from .group_norm_silu import group_norm_silu
from .linear_conditional_score import linear_conditional_score
from .logit_distillation_loss import logit_distillation_loss
from .nearest_code import nearest_code
from .registry import available_backends, default_backend
from .sample_code import sample_code

__all__ = [
    "add_norm_modulate",
    "available_backends",
    "block_causal_attention",
    "conditional_score",
    "csd_loss",
    "default_backend",
    "flow_solve",
    "group_norm_silu",
    "linear_conditional_score",
    "logit_distillation_loss",
    "nearest_code",
    "sample_code",
]
