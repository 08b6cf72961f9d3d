"""Which tokens see which: whole scales, a cache of them, or, for DD1, lower scales and itself.

Attention runs scale by scale over the tokens it may see, so no mask is needed: at VAR-d16's shape
on a CPU that takes 0.7 of the time of one call with a dense mask and 0.9 of FlexAttention's
(bench/bench_attention.py; not measured on a GPU). Prepared networks take one kernel for all scales
where there is one, on a GPU; networks in training one of FlexAttention's there, if they are told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...ops import available_backends, block_causal_attention
from ...ops.registry import named
from ..cache import KVCache
from ..kernels import attention, has_fused_attention

# Tokens of the scales that one call with a mask takes: the first seven of VAR at 256 px, 155.
_LEADING_TOKENS = 256

# Tokens, of four images at 256 px, up to which one call for all scales is better on a GPU (by a
# model of its time).
_FEW_TOKENS = 4 * 680

_HEAD_MULTIPLE = 16  # channels of a head that FlexAttention takes


class Attend(Protocol):
    """Mixes ``v`` by ``softmax(scale q k)``; all are ``[B, heads, tokens, size]``."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...


class LowerScales:
    """Tokens see their own and lower scales: VAR's teacher forcing."""

    def __init__(self, slices: Sequence[slice]) -> None:
        self.slices = slices

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mixed = [
            attention(q[:, :, own], k[:, :, : own.stop], v[:, :, : own.stop], scale=scale)
            for own in self.slices
        ]
        return torch.cat(mixed, dim=2)


class ScaleCache(KVCache):
    """The same one scale at a time."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return attention(q, *self.append(k, v), scale=scale)


class StrictlyLowerScales:
    """Tokens see strictly lower scales and themselves: DD1's students.

    A scale of more than one token has a mask ``[m, end]``: everything below, and the diagonal.
    """

    def __init__(self, slices: Sequence[slice], device: torch.device) -> None:
        self.slices = slices
        self.masks: list[Tensor | None] = []
        for own in slices:
            size = own.stop - own.start
            mask = torch.ones(size, own.stop, dtype=torch.bool, device=device)
            mask[:, own] = torch.eye(size, dtype=torch.bool, device=device)
            self.masks.append(mask if size > 1 else None)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mixed = [
            attention(
                q[:, :, own], k[:, :, : own.stop], v[:, :, : own.stop], mask=mask, scale=scale
            )
            for own, mask in zip(self.slices, self.masks, strict=True)
        ]
        return torch.cat(mixed, dim=2)


class ByFlex:
    """Either kind of attention in one compiled call of FlexAttention, gradients too.

    What no query of 128 sees is skipped 128 keys at a time. In a compiled block it is a part of
    that block's graph.
    """

    def __init__(self, ends: Sequence[int], strictly: bool, device: torch.device) -> None:
        from torch.nn.attention import flex_attention as flex

        starts = [0, *ends[:-1]]
        sizes = [end - start for start, end in zip(starts, ends, strict=True)]
        with torch.inference_mode(False), torch.no_grad():
            bounds = torch.tensor(starts if strictly else ends, dtype=torch.int32, device="cpu")
            bound = bounds.repeat_interleave(torch.tensor(sizes, device="cpu")).to(device)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (key < bound[query]) | (key == query)

            count = ends[-1]
            self.mask = flex.create_block_mask(sees, None, None, count, count, device=str(device))
        self._plain: Callable[..., Any] = flex.flex_attention
        self._compiled = _compiled_flex()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        kind = q.device.type
        if torch.is_autocast_enabled(kind):  # which knows no FlexAttention
            dtype = torch.get_autocast_dtype(kind)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        attend = self._plain if torch.compiler.is_compiling() else self._compiled
        return attend(q, k, v, block_mask=self.mask, scale=scale)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


_by_flex = functools.lru_cache(maxsize=16)(ByFlex)  # a mask of blocks is made once


def flex_runs(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether FlexAttention takes heads of ``size`` channels: on a GPU with Triton, where the
    reference was not asked for. On CPUs torch has no derivative of it."""
    if device.type != "cuda" or dtype == torch.float64 or size % _HEAD_MULTIPLE:
        return False
    return named() != "torch" and available_backends(device)["triton"] is None


def one_call(
    kind: str,
    slices: Sequence[slice],
    *,
    strictly: bool,
    device: torch.device,
    dtype: torch.dtype,
    size: int,
) -> ByFlex | None:
    """What a network that is not prepared attends by, None for the calls scale by scale; chosen
    here alone.

    Args:
        kind: ``"scales"``, the calls, or ``"flex"``, which is them too where :func:`flex_runs` says
            no. Networks start with the calls: a model of an H200's time has FlexAttention's forward
            pass 8% faster at 64 images, less than the model is sure of, and none of its backward.
        slices: the tokens of every scale. strictly: as DD1's students.
        device, dtype: of the weights. size: channels of a head.
    """
    if kind != "flex" or not flex_runs(device, dtype, size):
        return None
    return _by_flex(tuple(own.stop for own in slices), strictly, device)


class InFewCalls(nn.Module):
    """Either kind of attention with the leading scales, or all of them, in one call with a mask.

    ``mask`` is added to the scores. Where launches are what takes time, on a GPU at few images, one
    call for all scales is quickest; else the leading scales, whose masked pairs are few, are one.
    Where a kernel has it all, :meth:`of_product` is to be called instead.
    """

    mask: Tensor

    def __init__(self, slices: Sequence[slice], *, strictly: bool, like: Tensor) -> None:
        super().__init__()
        self.slices, self.strictly = tuple(slices), strictly
        self.fused = has_fused_attention(like)
        self.leading = sum(own.stop <= _LEADING_TOKENS for own in slices)
        count = slices[-1].stop
        # Rows are a multiple of 16 apart, or torch would copy the mask on CUDA at every call.
        mask = torch.full((count, -(-count // 16) * 16), -torch.inf, device="cpu")
        for own in slices:
            mask[own, : own.start if strictly else own.stop] = 0
        mask.diagonal().zero_()
        self.register_buffer("mask", mask.to(like)[:, :count])

    def of_product(self, qkv: Tensor, gain: Tensor | None, scale: float) -> Tensor:
        """``[B, n, H d]`` of ``qkv [B, n, 3, H, d]``, as :func:`block_causal_attention`."""
        ends = [own.stop for own in self.slices]
        return block_causal_attention(qkv, ends, gain=gain, strict=self.strictly, scale=scale)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mask, leading = self.mask.to(q.dtype), self.leading
        launches = q.device.type != "cpu" and not torch.compiler.is_exporting()  # for any batch
        if launches and len(q) * q.shape[2] <= _FEW_TOKENS:
            leading = len(self.slices)
        together = self.slices[:leading]
        runs = [slice(0, together[-1].stop)] if together else []
        mixed = []
        for i, own in enumerate([*runs, *self.slices[leading:]]):
            masked = self.strictly or (i == 0 and leading > 1)
            allowed = mask[own, : own.stop] if masked else None
            keys, values = k[:, :, : own.stop], v[:, :, : own.stop]
            part = attention(q[:, :, own], keys, values, scale=scale, mask=allowed)
            mixed.append(part.transpose(1, 2))
        # Tokens before heads, as the next product reads them and the kernels leave them.
        return (torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]).transpose(1, 2)
