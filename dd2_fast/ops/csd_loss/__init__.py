"""``csd_loss``: the generator's distillation loss at every token, with its gradients."""

from .api import csd_loss

__all__ = ["csd_loss"]
