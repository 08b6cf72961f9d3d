"""A one-step generator that predicts the teacher's logits from noise and leaves the jump to a code
to the exact flow map."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Rows
from ..ops import flow_solve
from .families import backbone_of
from .family import Backbone, Teacher
from .network import BackboneNetwork


class LogitStudent(BackboneNetwork):
    """All tokens in one pass: ``q_i = flow_solve(eps_i, l_i / T)``, ``l_i = W f_i``, ``f_i`` reads
    ``eps_<i``.

    The logits ``l_i`` stand for the teacher's guided and filtered ones at the codes that the same
    noise gives the tokens before ``i``. Where they are equal the tokens are exact draws of the
    teacher, those of DD1's map. Each is a code of the attached tokenizer's.

    Args:
        family: of the backbone, one of :data:`.families.FAMILIES`.
        codes: V. bias: whether the classifier has one.
        flow_steps: Heun steps of :func:`dd2_fast.ops.flow_solve`.
        temperature: what logits are divided by before they make codes; below 1 gives likelier
            images of less variety.
        backbone: arguments of the family's backbone.
    """

    def __init__(
        self,
        *,
        family: str = "causal",
        codes: int,
        bias: bool = True,
        flow_steps: int = 20,
        temperature: float = 1.0,
        **backbone: Any,
    ) -> None:
        super().__init__(family, backbone)
        self.flow_steps, self.temperature = flow_steps, _positive(temperature)
        self.head = nn.Linear(self.backbone.width, codes, bias=bias)
        self.config.update(codes=codes, bias=bias, flow_steps=flow_steps, temperature=temperature)

    @classmethod
    def from_teacher(
        cls,
        teacher: Teacher | Backbone,
        *,
        flow_steps: int = 20,
        temperature: float = 1.0,
        exact: bool = True,
    ) -> LogitStudent:
        """A copy of a teacher that reads any vector, its classifier included.

        Args:
            flow_steps, temperature: of codes.
            exact: whether to copy the units, one per code, that ``adapt`` adds to a LlamaGen
                teacher.
        """
        family, source = backbone_of(teacher)
        classifier = getattr(teacher, family.classifier)
        config = source.network_config(exact)
        codes, bias = classifier.out_features, classifier.bias is not None
        config.update(family=family.name, codes=codes, bias=bias)
        config.update(flow_steps=flow_steps, temperature=temperature)
        student = cls._over(source, config, getattr(teacher, "tokenizer", None))
        student.head.load_state_dict(classifier.state_dict())
        return student

    def at_temperature(self, temperature: float) -> LogitStudent:
        """The student of the same weights, shared, whose codes are made at another temperature."""
        other = copy.copy(self)
        other.temperature = _positive(temperature)
        other.config = {**self.config, "temperature": temperature}
        return other

    @property
    def codebook(self) -> Tensor:
        """The attached tokenizer's code vectors ``[V, C]``."""
        if self.tokenizer is None:
            raise RuntimeError(
                "tokenizer: LogitStudent needs one for its codes, and has none; set .tokenizer, or "
                "pass tokenizer= to dd2_fast.checkpoints.load"
            )
        return self.tokenizer.codebook

    def forward(self, noise: Tensor, labels: Rows, logits: bool = False) -> Tensor:
        """Codes ``[B, n, C]`` of ``noise [B, n, C]`` and conditions, int64 ``labels [B]``; NaN
        where the logits are not finite.

        Args:
            logits: return the logits ``[B, n, V]`` instead, those of a token a function of the
                noise before it; what is trained.
        """
        self._check("noise", noise, labels)
        predicted = self.head(self.backbone(noise, labels))
        if logits:
            return predicted
        tokens = self.tokens(noise, predicted)
        codes = self.codebook[tokens.clamp(min=0)]
        return codes.where((tokens >= 0)[..., None], torch.nan)

    def tokens(self, noise: Tensor, logits: Tensor) -> Tensor:
        """int64 codes ``[B, n]`` to which ``noise [B, n, C]`` flows under ``logits [B, n, V]``
        divided by the temperature."""
        if self.temperature != 1:
            logits = logits / self.temperature
        return flow_solve(noise, logits, self.codebook, steps=self.flow_steps)

    def _fitting(self, tokenizer: Any) -> Any:
        tokenizer = super()._fitting(tokenizer)
        codes = tokenizer.codebook.shape[0]
        if codes != self.head.out_features:
            raise ValueError(f"tokenizer: expected {self.head.out_features} codes, got {codes}")
        return tokenizer


def _positive(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive, finite number, got {temperature}")
    return temperature
