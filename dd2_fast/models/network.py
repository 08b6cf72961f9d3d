"""A network over any family's backbone: what DD2's networks and the logit student share."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..condition import Condition, Rows
from .attached import Attached
from .checks import check_embeddings
from .families import FAMILIES
from .family import Backbone

Network = TypeVar("Network", bound="BackboneNetwork")


class BackboneNetwork(Attached):
    """A causal backbone with something after it. One that reads through a tokenizer gets the one
    attached here.

    Args:
        family: of the backbone, one of :data:`.families.FAMILIES`.
        backbone: arguments of the family's backbone.
    """

    def __init__(self, family: str, backbone: dict[str, Any]) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
        self.backbone: Backbone = FAMILIES[family].backbone(**backbone)
        self.num_tokens: int = self.backbone.num_tokens
        self.condition: Condition = self.backbone.condition
        self.dimension: int = self.backbone.dimension
        self.config: dict[str, Any] = {"family": family, **self.backbone.backbone_config}

    @property
    def num_classes(self) -> int:
        """Classes without the null class, if images are conditioned on classes."""
        return cast(Any, self.backbone).num_classes

    @classmethod
    def _beside(
        cls: type[Network], source: Backbone | nn.Module, config: dict[str, Any]
    ) -> Network:
        """A network on another's device, trainable even if made in inference mode."""
        with torch.inference_mode(False), next(source.parameters()).device:
            return cls(**config)

    @classmethod
    def _over(
        cls: type[Network], source: Backbone, config: dict[str, Any], tokenizer: Any
    ) -> Network:
        """A network whose backbone is a copy of ``source``."""
        network = cls._beside(source, config)
        own = network.backbone.state_dict()
        network.backbone.load_state_dict({k: v for k, v in source.state_dict().items() if k in own})
        network.tokenizer = tokenizer
        return network

    def _fitting(self, tokenizer: Any) -> Any:
        if isinstance(self.backbone, Attached):
            self.backbone.tokenizer = tokenizer
            return self.backbone.tokenizer  # at the backbone's scales
        codebook, count = tokenizer.codebook, getattr(tokenizer, "num_tokens", self.num_tokens)
        if codebook.shape[1] != self.dimension:
            raise ValueError(
                f"tokenizer: expected codes of dimension {self.dimension}, got {codebook.shape[1]}"
            )
        if count != self.num_tokens:
            raise ValueError(f"tokenizer: expected {self.num_tokens} tokens, got {count}")
        return tokenizer

    def _check(self, name: str, value: Tensor, labels: Rows) -> None:
        device = next(self.parameters()).device
        check_embeddings(name, value, self.num_tokens, self.dimension, device)
        self.condition.check(labels, value.shape[0], device)
