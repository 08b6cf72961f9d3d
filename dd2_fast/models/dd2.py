"""The one-step generator and the guidance network of DD2 over the causal transformer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checks import check_embeddings, check_labels
from .head import FlowHead
from .teacher import ARTeacher
from .tokenizer import VQTokenizer
from .transformer import CausalTransformer

_ATTACHED = ("tokenizer", "teacher")
Network = TypeVar("Network", bound="DD2Network")


class DD2Network(nn.Module):
    """A causal backbone and a flow head: what the generator and the guidance network both are.

    Args:
        num_tokens: n. dimension: C. num_classes: classes without the null class.
        width, layers, heads: the backbone. head_width, head_blocks: the flow head.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dimension: int,
        num_classes: int,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        head_width: int = 96,
        head_blocks: int = 2,
    ) -> None:
        super().__init__()
        backbone = dict(
            num_tokens=num_tokens,
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
        )
        self.config: dict[str, Any] = {
            **backbone,
            "head_width": head_width,
            "head_blocks": head_blocks,
        }
        self.num_tokens, self.dimension, self.num_classes = num_tokens, dimension, num_classes
        self.backbone = CausalTransformer(**backbone)
        self.head = FlowHead(
            dimension=dimension, features=width, width=head_width, blocks=head_blocks
        )

    @classmethod
    def from_teacher(
        cls: type[Network], teacher: ARTeacher, *, head_width: int = 96, head_blocks: int = 2
    ) -> Network:
        """A network whose backbone is a copy of the teacher's; the head is new."""
        config = {k: v for k, v in teacher.config.items() if k != "vocabulary"}
        network = cls(**config, head_width=head_width, head_blocks=head_blocks)
        network.backbone.load_state_dict(teacher.backbone.state_dict())
        return network.to(teacher.codebook.device)

    def _check(self, name: str, value: Tensor, labels: Tensor) -> None:
        check_embeddings(name, value, self.num_tokens, self.dimension)
        check_labels(labels, self.num_classes, value.shape[0])


class DD2Generator(DD2Network):
    """All tokens in one pass: ``x_i = eps_i - v(eps_i, t=1, f_i)``, ``f_i`` reads ``eps_<i``.

    ``tokenizer`` and ``teacher`` are what a bundle attaches; they are no submodules, so nothing
    moves, saves or trains them with the generator.
    """

    tokenizer: VQTokenizer | None = None
    teacher: ARTeacher | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ATTACHED:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Embeddings ``[B, n, C]`` of ``noise [B, n, C]`` and int64 ``labels [B]``."""
        self._check("noise", noise, labels)
        return noise - self.head(noise, 1.0, self.backbone(noise, labels))

    @classmethod
    def from_guidance(cls, guidance: DD2Guidance) -> DD2Generator:
        """A generator with a copy of the guidance network's weights (stage 1)."""
        generator = cls(**guidance.config)
        generator.load_state_dict(guidance.state_dict())
        return generator.to(next(guidance.parameters()).device)


class DD2Guidance(DD2Network):
    """The velocity of noisy tokens given clean prefixes: AR-diffusion in stage 1, psi in stage 2.

    ``head(x_t, t, features)`` is the flow head; ``x0 = x_t - t v``.
    """

    def features(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Features ``[B, n, D]``; those of token ``i`` read ``embeddings[:, :i]`` only."""
        self._check("embeddings", embeddings, labels)
        return self.backbone(embeddings, labels)

    def x0(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """Posterior mean ``x_t - t v(x_t, t, f)``, of the shape of ``x_t``."""
        return torch.addcmul(x_t, t[..., None], self.head(x_t, t, features), value=-1)
