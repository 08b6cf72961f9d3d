"""The one-step generator and the guidance network of DD2 over any family's backbone."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from ..condition import Rows
from .families import backbone_of
from .family import Backbone, Teacher
from .head import FlowHead
from .network import BackboneNetwork

Network = TypeVar("Network", bound="DD2Network")


class DD2Network(BackboneNetwork):
    """A causal backbone and a flow head: what the generator and the guidance network both are.

    A backbone that reads through a tokenizer gets the one attached here.

    Args:
        family: of the backbone, one of :data:`.families.FAMILIES`.
        head_width, head_depth: width and residual blocks of the flow head.
        backbone: arguments of the family's backbone: of :class:`.causal.CausalTransformer`
            (``num_tokens``, ``dimension``, ``num_classes``, ``width``, ``layers``, ``heads``), of
            :class:`.var.VARBackbone` or of :class:`.llamagen.LlamaGenBackbone`.
    """

    def __init__(
        self, *, family: str = "causal", head_width: int = 96, head_depth: int = 2, **backbone: Any
    ) -> None:
        super().__init__(family, backbone)
        self.head = FlowHead(
            dimension=self.dimension,
            features=self.backbone.width,
            width=head_width,
            blocks=head_depth,
        )
        self.config.update(head_width=head_width, head_depth=head_depth)

    @classmethod
    def from_teacher(
        cls: type[Network],
        teacher: Teacher | Backbone,
        *,
        head_width: int = 1024,
        head_depth: int = 4,
        exact: bool = False,
    ) -> Network:
        """A network whose backbone is a copy of the teacher's; the head is new.

        Args:
            teacher: an :class:`ARTeacher`, or a released one.
            head_width, head_depth: of the flow head; the defaults are the paper's sizes.
            exact: whether to copy the units, one per code, that ``adapt`` adds to a LlamaGen
                teacher. With them features of codes are the teacher's from the start; without them
                tokens are read by an MLP of the paper's size (a network 5% smaller than LlamaGen-L)
                that stage 1 trains.
        """
        family, source = backbone_of(teacher)
        config = source.network_config(exact)
        config.update(family=family.name, head_width=head_width, head_depth=head_depth)
        return cls._over(source, config, getattr(teacher, "tokenizer", None))


class DD2Generator(DD2Network):
    """All tokens in one pass: ``x_i = eps_i - v(eps_i, t=1, f_i)``, ``f_i`` reads ``eps_<i``.

    Arguments are those of :class:`DD2Network`: ``family``, ``head_width``, ``head_depth`` and the
    backbone's; :meth:`from_teacher` and :meth:`from_guidance` take them from another model.
    """

    def forward(self, noise: Tensor, labels: Rows) -> Tensor:
        """Embeddings ``[B, n, C]`` of ``noise [B, n, C]`` and conditions, int64 ``labels [B]``."""
        self._check("noise", noise, labels)
        return noise - self.head(noise, 1.0, self.backbone(noise, labels))

    @classmethod
    def from_guidance(cls, guidance: DD2Guidance) -> DD2Generator:
        """A generator with a copy of the guidance network's weights (stage 1)."""
        generator = cls._beside(guidance, guidance.config)
        generator.load_state_dict(guidance.state_dict())
        generator.tokenizer = guidance.tokenizer
        return generator


class DD2Guidance(DD2Network):
    """The velocity of noisy tokens given clean prefixes: AR-diffusion in stage 1, psi in stage 2.

    ``head(x_t, t, features)`` is the flow head; ``x0 = x_t - t v``. Arguments are those of
    :class:`DD2Network`.
    """

    def forward(self, x_t: Tensor, t: Tensor, embeddings: Tensor, labels: Rows) -> Tensor:
        """Velocity of ``x_t [B, n, C]`` or ``[B, n, M, C]`` at noise level ``t``, given the clean
        prefixes of ``embeddings [B, n, C]``: ``head(x_t, t, features(embeddings, labels))``."""
        return self.head(x_t, t, self.features(embeddings, labels))

    def features(self, embeddings: Tensor, labels: Rows) -> Tensor:
        """Features ``[B, n, D]``; those of token ``i`` read ``embeddings[:, :i]`` only."""
        self._check("embeddings", embeddings, labels)
        return self.backbone(embeddings, labels)

    def x0(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """Posterior mean ``x_t - t v(x_t, t, f)``, of the shape of ``x_t``."""
        return torch.addcmul(x_t, t[..., None], self.head(x_t, t, features), value=-1)
