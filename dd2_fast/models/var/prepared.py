"""What VAR's networks work out once for inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ..folded import Folded, FoldedUpsampling, convolution, wide
from ..kernels import (
    Pending,
    add_norm,
    added,
    attention,
    linear,
    linear_gelu,
    prepares_fused_norm,
    takes_fused_attention,
)
from ..norms import FusedNorm, FusedResidual, NormSiLU, Unsummed, before_norm, convolved
from .attention import Attend, InFewCalls
from .backbone import OfClass, VARBackbone, VARTransformer
from .blocks import EPSILON, LARGEST_SCALE, Block, HeadNorm, SelfAttention
from .codec import Attention, Resample, Residual
from .quantizer import MultiScaleQuantizer
from .scales import token_slices
from .student import DD1VARStudent
from .teacher import VARTeacher

_SHORTEST = 1e-12  # a zero vector stays one
_CLASSES = 64  # whose rows are made at a time


def _modulated(h: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """``LN(h) gain + shift`` for ``gain`` and ``shift`` ``[B, 1, D]``."""
    shape = h.shape[-1:]
    if not torch.compiler.is_compiling() and len(h) == 1:
        return F.layer_norm(h, shape, gain.view(shape), shift.view(shape), EPSILON)
    return torch.addcmul(shift, F.layer_norm(h, shape, eps=EPSILON), gain)


def _fused(h: Tensor | Pending, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``h`` with what is pending, and that as :func:`_modulated` has it."""
    return add_norm(h, weight=gain, shift=shift, eps=EPSILON)


class FoldedAttention(Folded):
    """:class:`SelfAttention` with its bias and gains made once, and unit vectors made in place."""

    bias: Tensor
    gains: Tensor

    def __init__(self, source: SelfAttention) -> None:
        super().__init__(source)
        self.heads, self.l2_norm = source.heads, source.l2_norm
        self.qkv, self.proj = source.mat_qkv, source.proj

    def fold(self) -> dict[str, Tensor]:
        attention = self.source
        q = attention.q_bias.detach()
        folded = {"bias": torch.cat([q, torch.zeros_like(q), attention.v_bias.detach()])}
        if attention.l2_norm:
            gain = wide(attention.scale_mul_1H11).clamp(max=LARGEST_SCALE).exp().view(-1, 1)
            gains = torch.stack([gain, torch.ones_like(gain)])  # of queries and of keys
            folded["gains"] = gains.to(torch.promote_types(q.dtype, torch.float32))
        return folded

    def forward(self, h: Tensor, attend: Attend) -> Tensor:
        qkv = linear(h, self.qkv.weight, self.bias).unflatten(-1, (3, self.heads, -1))
        scale = 1.0 if self.l2_norm else 0.25 / math.sqrt(qkv.shape[-1])
        if isinstance(attend, InFewCalls) and attend.fused and takes_fused_attention(qkv):
            gain = self.gains[0, :, 0] if self.l2_norm else None
            return self.proj(attend.of_product(qkv, gain, scale))
        if self.l2_norm:
            vectors = qkv[:, :, :2]
            dtype = self.gains.dtype
            length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=dtype)
            vectors.mul_(self.gains / length.clamp_(min=_SHORTEST))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, scale).transpose(1, 2).flatten(2))


class FoldedBlock(nn.Module):
    """:class:`Block`; its modulations have the ones of ``1 + scale`` in them.

    Where a kernel adds, norms and modulates, a block leaves its last addition to the next norm.
    """

    def __init__(self, source: Block) -> None:
        super().__init__()
        self.attn = FoldedAttention(source.attn)
        self.fc1, self.fc2 = source.ffn.fc1, source.ffn.fc2
        self.fused = prepares_fused_norm(self.fc1.weight)

    def forward(
        self,
        h: Tensor | Pending,
        modulation: Tensor,
        attend: Attend,
        between: Tensor | None = None,
    ) -> Tensor | Pending:
        """``h [B, m, D]``, which is changed in place, after the block."""
        gamma1, gamma2, gain1, gain2, shift1, shift2 = modulation
        if self.fused:
            h, y = _fused(h, gain1, shift1)
            branch = self.attn(y, attend)
            h = h if between is None else h + between
            h, y = _fused(Pending(h, branch, gamma1), gain2, shift2)
            inner = linear_gelu(y, self.fc1.weight, self.fc1.bias)
            return Pending(h, self.fc2(inner), gamma2)
        h = added(h)
        h.addcmul_(gamma1, self.attn(_modulated(h, gain1, shift1), attend))
        if between is not None:
            h.add_(between)
        inner = linear_gelu(_modulated(h, gain2, shift2), self.fc1.weight, self.fc1.bias)
        return h.addcmul_(gamma2, self.fc2(inner))


class FoldedHeadNorm(nn.Module):
    """:class:`HeadNorm` of vectors that are made with those of the blocks."""

    def __init__(self, source: HeadNorm) -> None:
        super().__init__()
        self.fused = prepares_fused_norm(source.ada_lin[1].get_parameter("weight"))

    def forward(self, h: Tensor | Pending, condition: Tensor) -> Tensor:
        gain, shift = condition
        if self.fused:
            return _fused(h, gain, shift)[1]
        return _modulated(added(h), gain, shift)


class ClassRows(Folded):
    """A table of what each class makes of the norms and of the first token.

    On a CPU the rows of a class are made when it is first asked for, and only they take memory.
    Elsewhere, where to ask which classes a batch has would wait for the device, all are made at
    once: 203 MB of VAR-d16's in bfloat16, as much as the layers that they stand for.
    """

    table: Tensor
    offsets: Tensor

    def __init__(self, source: VARTransformer) -> None:
        blocks = cast(list[Block], list(source.blocks))
        shared = source.shared_ada_lin
        self._offsets = [] if shared is None else [block.ada_gss for block in blocks]
        super().__init__(source)
        self.class_emb, self.head = source.class_emb, source.head_nm.ada_lin
        self.layers = nn.ModuleList([b.ada_lin for b in blocks] if shared is None else [shared])
        classes, width = source.class_emb.weight.shape
        shape = (classes, 6 * len(self.layers) + 3, width)
        with torch.inference_mode(False):
            self.register_buffer("table", source.class_emb.weight.new_empty(shape))
        self._make_all_or_none()

    def fold(self) -> dict[str, Tensor]:
        """Of one layer for all blocks, each block's offset to it, ``[L, 6, D]``."""
        if not self._offsets:
            return {}
        offsets = torch.cat([offset.detach()[0] for offset in self._offsets])
        offsets[:, 2:4] += 1
        return {"offsets": offsets}

    def refold(self) -> None:
        super().refold()
        self._make_all_or_none()

    def _make_all_or_none(self) -> None:
        self._made: set[int] = set()
        self.whole = self.table.device.type != "cpu"
        if self.whole:
            for part in torch.arange(len(self.table), device=self.table.device).split(_CLASSES):
                self.table[part] = self._rows(part)

    def _make(self, labels: Tensor) -> None:
        """Make the rows of classes that have none."""
        missing = set(labels.tolist()) - self._made
        if missing:
            new = torch.tensor(sorted(missing), device=labels.device)
            with torch.no_grad(), outside_autocast(labels.device):
                self.table[new] = self._rows(new)
            self._made |= missing

    def _rows(self, labels: Tensor) -> Tensor:
        """``[B, R, D]``: six vectors of each layer, the last norm's gain and shift, the class
        embedding."""
        condition = self.class_emb(labels)
        layers = [layer(condition).unflatten(-1, (6, -1)) for layer in self.layers]
        rows = torch.cat([*layers, self.head(condition).unflatten(-1, (2, -1))], dim=1)
        if not self._offsets:
            rows[:, 2:-2:6] += 1
            rows[:, 3:-2:6] += 1
        rows[:, -2] += 1
        return torch.cat([rows, condition[:, None]], dim=1)

    def forward(self, labels: Tensor) -> OfClass:
        if torch.compiler.is_compiling() and not self.whole:
            rows = self._rows(labels)
        else:
            if not self.whole:
                self._make(labels)
            rows = self.table.index_select(0, labels)
        blocks = rows[:, :-3].unflatten(1, (-1, 6))
        if self._offsets:
            blocks = blocks + self.offsets
        vectors = blocks.permute(1, 2, 0, 3).unsqueeze(3).unbind(0)
        return OfClass(rows[:, -1], vectors, rows[:, -3:-1].transpose(0, 1).unsqueeze(2))


class FoldedTransformer(Folded):
    """The constants of a :class:`VARTransformer`: positions, masks, rows of classes, marks."""

    positions: Tensor
    pairs: Tensor
    kinds: Tensor

    def __init__(self, source: VARTransformer) -> None:
        super().__init__(source)
        self.of_class = ClassRows(source)
        weight, student = source.pos_1LC, isinstance(source, DD1VARStudent)
        self.attend = InFewCalls(
            token_slices(source.levels), strictly=student, like=weight.detach()
        )
        if isinstance(source, DD1VARStudent):
            place = torch.arange(source.num_tokens + 1, device=weight.device)
            kinds = [place <= known for known in (0, source.second)]
            self.register_buffer("kinds", torch.stack(kinds).long())

    def fold(self) -> dict[str, Tensor]:
        source = self.source
        folded = {"positions": source.summed_positions().detach()}
        if isinstance(source, DD1VARStudent):
            folded["pairs"] = torch.stack(source.pairs()).detach()
        return folded

    def marks(self, known: int) -> Sequence[Tensor]:
        """:meth:`DD1VARStudent.marks`."""
        return self.pairs.index_select(1, self.kinds[int(known > 0)]).unbind(0)


class FoldedPhis(Folded):
    """The convolutions of a :class:`MultiScaleQuantizer`, put together once."""

    def __init__(self, source: MultiScaleQuantizer) -> None:
        weight = source.embedding.weight
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        super().__init__(source)

    def fold(self) -> dict[str, Tensor]:
        grouped, summed = self.source.grouped_phi(self.dtype), self.source.summed_phi(self.dtype)
        names = ("grouped", "grouped_bias", "summed", "summed_bias")
        return {n: t.detach() for n, t in zip(names, (*grouped, *summed), strict=True)}

    def grouped_phi(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As the source's."""
        return self.get_buffer("grouped"), self.get_buffer("grouped_bias")

    def summed_phi(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As the source's."""
        return self.get_buffer("summed"), self.get_buffer("summed_bias")


class FusedDecoderAttention(nn.Module):
    """The decoder's :class:`.codec.Attention`, whose sums are left to norms."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.norm, self.qkv = FusedNorm(source.norm), convolution(source.qkv)
        self.proj_out = before_norm(source.proj_out)

    def forward(self, h: Tensor | Unsummed) -> Unsummed:
        h, y = self.norm.with_sum(h)
        qkv = self.qkv(y).flatten(2).unflatten(1, (3, 1, -1)).transpose(-1, -2)
        mixed = attention(*qkv.unbind(1))[:, 0].unflatten(1, h.shape[2:])
        return convolved(self.proj_out, mixed.permute(0, 3, 1, 2), h)


def _with_constants(network: VARTransformer) -> nn.Module:
    network.prepared = FoldedTransformer(network)
    return network


def _with_phis(quantizer: MultiScaleQuantizer) -> nn.Module:
    quantizer.prepared = FoldedPhis(quantizer)
    return quantizer


PREPARED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    VARBackbone: _with_constants,
    VARTeacher: _with_constants,
    DD1VARStudent: _with_constants,
    Block: FoldedBlock,
    HeadNorm: FoldedHeadNorm,
    MultiScaleQuantizer: _with_phis,
    Attention: FusedDecoderAttention,
    Residual: FusedResidual,
    NormSiLU: FusedNorm,
    Resample: lambda step: FoldedUpsampling(step) if step.doubles else step,
    nn.Conv2d: convolution,
}
