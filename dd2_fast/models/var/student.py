"""DD1's VAR students: all tokens from noise in one pass, or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_embeddings
from ..kernels import added
from ..sampling import likeliest_codes
from .attention import Attend, StrictlyLowerScales
from .backbone import OfClass, VARTransformer
from .blocks import modulate
from .scales import Scales, token_slices


class _ContinuousHead(nn.Module):
    """``Linear(LN(h) (1 + scale) + shift)``, (shift, scale) a table plus the class embedding."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, dimension)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + condition[:, None]).chunk(2, dim=1)
        return self.linear(modulate(h, scale, shift))


class DD1VARStudent(VARTransformer):
    """A one-step generator: a class token, then the noise of all tokens, through VAR's blocks.

    A token sees strictly lower scales and itself. Scales below ``split`` come from the classifier
    as its largest code, the others from the continuous head. A second step puts the noise back
    from scale ``second_step`` on, keeps what is below, marks it as data, and runs again.

    Args:
        split: first scale of the continuous head, 0 to S.
        second_step: first scale that the second step generates, 1 to S - 1; None: ``split``, or the
            nearest of these.
        vocabulary: V. The others are :class:`VARBackbone`'s.

    Source: Liu et al., Distilled Decoding 1 (arXiv 2412.17153).
    """

    def __init__(
        self,
        *,
        patch_nums: Sequence[int],
        split: int,
        second_step: int | None = None,
        vocabulary: int = 4096,
        dimension: int = 32,
        num_classes: int = 1000,
        width: int = 1024,
        layers: int = 16,
        heads: int = 16,
        shared_aln: bool = False,
        l2_norm: bool = True,
    ) -> None:
        network: dict[str, Any] = dict(
            dimension=dimension,
            num_classes=num_classes,
            width=width,
            layers=layers,
            heads=heads,
            shared_aln=shared_aln,
            l2_norm=l2_norm,
        )
        scales = Scales.of(patch_nums)
        super().__init__(scales, [1, *(side**2 for side in scales.sides)], **network)
        _check_scale("split", split, 0, scales.count)
        if second_step is None:
            second_step = min(max(split, 1), scales.count - 1)
        _check_scale("second_step", second_step, 1, scales.count - 1)
        self.config: dict[str, Any] = {
            "patch_nums": list(patch_nums),
            "split": split,
            "second_step": second_step,
            "vocabulary": vocabulary,
            **network,
        }
        starts = [own.start for own in scales.slices] + [scales.num_tokens]
        self._split, self.second = starts[split], starts[second_step]
        self.head = nn.Linear(width, vocabulary)
        self.n_d_embed = nn.Embedding(2, width)
        self.layerwise_n_d_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(layers + 1))
        self.final_layer_conti = _ContinuousHead(width, dimension)
        self._attend: dict[torch.device, StrictlyLowerScales] = {}
        self._make_masks()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        self._make_masks()
        return result

    def _make_masks(self) -> None:
        """Make what calls will need: compiled code that made it in its first call would be compiled
        again for the second."""
        weight = self.pos_1LC
        self._attend.clear()
        self._attention(torch.device("cpu") if weight.is_meta else weight.device)

    def forward(self, noise: Tensor, labels: Tensor, *, steps: int = 1) -> Tensor:
        """Embeddings ``[B, n, C]`` of ``noise [B, n, C]`` and int64 ``labels [B]``.

        Args:
            steps: 1, or 2 for the second step too.
        """
        device = self.pos_1LC.device
        check_embeddings("noise", noise, self.num_tokens, self.dimension, device)
        self.condition.check(labels, noise.shape[0], device)
        if isinstance(steps, bool) or steps not in (1, 2):
            raise ValueError(f"steps: expected 1 or 2, got {steps!r}")
        of_class = self.of_class(labels)
        x = self._pass(noise, of_class, 0)
        if steps == 2:
            x = torch.cat([x[:, : self.second], noise[:, self.second :]], dim=1)
            x = self._pass(x, of_class, self.second)
        return x

    def _pass(self, x: Tensor, of_class: OfClass, known: int) -> Tensor:
        """``x [B, n, C]`` with everything but its first ``known`` tokens generated anew."""
        tokens = self.word_embed(x.to(self.word_embed.weight.dtype))
        start = of_class.embedding[:, None] + self.pos_start
        marks = self._marks(known)
        h = torch.cat([start, tokens], dim=1) + self.positions() + marks[0]
        attend = self._attention(h.device) if self.prepared is None else self.prepared.attend
        for block, modulation, mark in zip(self.blocks, of_class.blocks, marks[1:], strict=False):
            h = block(h, modulation, attend, mark)
        h = (added(h) + marks[-1])[:, 1:]
        split = max(known, self._split)
        logits = self.head(self.head_nm(h[:, known:split], of_class.head))
        codes = likeliest_codes(logits, self.codebook)
        drawn = self.final_layer_conti(h[:, split:], of_class.embedding)
        return torch.cat([x[:, :known], codes.to(x.dtype), drawn.to(x.dtype)], dim=1)

    def _marks(self, known: int) -> Sequence[Tensor]:
        """The data-or-noise embedding ``[n + 1, D]`` of the input, each block and the heads."""
        if self.prepared is not None:
            return self.prepared.marks(known)
        data, noise = known + 1, self.num_tokens - known
        return [
            torch.cat([pair[1].expand(data, -1), pair[0].expand(noise, -1)])
            for pair in self.pairs()
        ]

    def pairs(self) -> list[Tensor]:
        """The embeddings of noise and of data, ``[2, D]`` each."""
        rows = self.n_d_embed.weight
        return [rows, *(layer(rows) for layer in self.layerwise_n_d_embed)]

    def _attention(self, device: torch.device) -> Attend:
        slices = token_slices(self.levels)
        together = self._one_call(slices, strictly=True)
        if together is not None:
            return together
        if device not in self._attend:
            with torch.inference_mode(False):
                self._attend[device] = StrictlyLowerScales(slices, device)
        return self._attend[device]


def _check_scale(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a scale in {low}..{high}, got {value}")
