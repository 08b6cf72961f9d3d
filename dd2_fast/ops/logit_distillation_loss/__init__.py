"""``logit_distillation_loss``: how far a student's logits are from a teacher's distribution."""

from .api import logit_distillation_loss

__all__ = ["logit_distillation_loss"]
