"""Products, attention, upsampling and memory layout in whichever form is fastest on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import add_norm_modulate
from ..ops.registry import has_kernel

# Pairs of positions from which two bfloat16 matrix products win over the fused kernel on a CPU:
# at 256 x 680 they take less than half its time, at 64 x 155 a third more.
_PRODUCTS_PAY = 1 << 14

# Pixels a channel from which folding the weights, C^2 work, is less than what it saves.
_FOLDING_PAYS = 2

# Multiply-adds from which a product alone, or with GELU after it, is worth oneDNN's set-up.
_MANY_PRODUCTS, _MANY_WITH_GELU = 1 << 22, 1 << 20

# Channels of a head that the attention's kernel takes.
_LARGEST_FUSED_HEAD = 256

# A 3-tap kernel over an axis whose cells are repeated, as the 4 taps of a transposed convolution.
_FOLD = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` for ``x [*, D]``, ``weight [O, D]`` or a
    :class:`.rounded.RoundedWeight`, as ``F.linear``.

    Large products without gradients on a CPU are oneDNN's: MKL, to which ``F.linear`` gives those
    in float32, takes 1.1 to 1.4 times as long for many rows on an AMD EPYC, 1.3 to 3.4 times for
    few.
    """
    if not isinstance(weight, Tensor):
        return weight.product(x, bias)
    if not _by_onednn(x, weight, _MANY_PRODUCTS):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear_gelu(x: Tensor, weight: Any, bias: Tensor) -> Tensor:
    """``GELU(x W^T + b)``, GELU by tanh; for inference.

    It is in the product: by cuBLASLt on CUDA, where the same call of torch on a CPU gives GELU by
    erf, and by oneDNN on a CPU, where GELU alone takes half as long as a small product.
    """
    # The meta device stands for CUDA where launches are counted.
    on_cuda = x.device.type == "meta" or (x.is_cuda and torch.version.hip is None)
    fused = on_cuda and isinstance(weight, Tensor)
    if fused and x.dtype == weight.dtype != torch.float64 and not _autocasts(x):
        rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return rows.unflatten(0, x.shape[:-1])
    if isinstance(weight, Tensor) and _by_onednn(x, weight, _MANY_WITH_GELU):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    return torch.ops.aten.gelu_(linear(x, weight, bias), approximate="tanh")


def _by_onednn(x: Tensor, weight: Tensor, least: int) -> bool:
    """Whether a product of at least ``least`` multiply-adds is to be oneDNN's by name. (The call is
    what Inductor makes of such products; it has no derivative.)"""
    # Compiled code asks no size, which would fix the batch of an exported one.
    if torch.compiler.is_compiling() or x.numel() * weight.shape[0] < least:
        return False
    plain = x.device.type == "cpu" and x.dtype == weight.dtype in (torch.float32, torch.bfloat16)
    there = plain and torch.backends.mkldnn.is_available()
    if not there or torch.is_grad_enabled() or _autocasts(x):
        return False
    # It has no bfloat16 without AVX-512.
    return x.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _autocasts(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """``softmax(scale q k^T) v`` over the allowed pairs, ``[B, heads, n, size]``.

    In bfloat16 on a CPU long sequences go through two matrix products, which round the scores to
    bfloat16 too.

    Args:
        q: ``[B, heads, n, size]``. k, v: ``[B, heads, m, size]``.
        scale: None is ``1 / sqrt(size)``. mask: ``[n, m]``, bool, True where a pair is allowed, or
            in the dtype of ``q``, to be added to the scores.
    """
    pairs = q.shape[-2] * k.shape[-2]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or pairs < _PRODUCTS_PAY:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(q * scale, k.mT)
    if mask is not None:
        masked = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if masked else scores + mask
    return torch.matmul(scores.softmax(-1), v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries ``[B, heads, n, size]``, the last of ``m`` positions, each to the keys
    and values ``[B, heads, m, size]`` of its own and those before it."""
    count, known = q.shape[-2], k.shape[-2]
    if count == 1 or count == known:
        return F.scaled_dot_product_attention(q, k, v, is_causal=count > 1)
    # torch's own causal mask would have the queries be the first.
    mask = torch.ones(count, known, dtype=torch.bool, device=q.device).tril(known - count)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def has_fused_attention(like: Tensor) -> bool:
    """Whether a kernel of :func:`dd2_fast.ops.block_causal_attention` takes what is on the device
    and in the dtype of ``like``."""
    # The meta device stands for CUDA where launches are counted.
    if like.device.type == "meta":
        return like.dtype != torch.float64
    return has_kernel("block_causal_attention", like.device, like.dtype)


def takes_fused_attention(qkv: Tensor) -> bool:
    """Whether it may be called: it has no derivative, and what is exported is to run anywhere."""
    exporting = torch.compiler.is_exporting()
    return not (qkv.requires_grad or exporting or qkv.shape[-1] > _LARGEST_FUSED_HEAD)


def has_fused_norm(like: Tensor) -> bool:
    """Whether a kernel of :func:`dd2_fast.ops.add_norm_modulate` takes what is on the device and in
    the dtype of ``like``; not while code is traced, which has the operations apart, to be fused
    with others."""
    if torch.compiler.is_compiling():
        return False
    return has_kernel("add_norm_modulate", like.device, like.dtype)


def prepares_fused_norm(like: Tensor) -> bool:
    """The same of prepared networks, for good: traced, the operator is its operations."""
    # The meta device stands for CUDA where launches are counted.
    if like.device.type == "meta":
        return like.dtype != torch.float64
    return has_kernel("add_norm_modulate", like.device, like.dtype)


class Pending(NamedTuple):
    """``h + gate branch``, which prepared networks leave to the norm that comes next."""

    h: Tensor
    branch: Tensor
    gate: Tensor | None = None


def added(h: Tensor | Pending) -> Tensor:
    """The sum, where no norm comes next."""
    if isinstance(h, Tensor):
        return h
    return h.h + h.branch if h.gate is None else torch.addcmul(h.h, h.gate, h.branch)


def add_norm(h: Tensor | Pending, **norm: Any) -> tuple[Tensor, Tensor]:
    """:func:`dd2_fast.ops.add_norm_modulate` of what may be pending."""
    if isinstance(h, Tensor):
        return add_norm_modulate(h, **norm)
    return add_norm_modulate(h.h, branch=h.branch, gate=h.gate, **norm)


def upsample_conv(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of ``h [B, C, H, W]`` with every pixel doubled, ``[B, O, 2H, 2W]``.

    Of the nine taps several read copies of one pixel: with their weights added up it is a
    transposed convolution of 4x4 taps and stride 2, 16 products per pixel of ``h`` instead of 36.

    Args:
        weight: ``[O, C, 3, 3]``. bias: ``[O]`` or None.
    """
    # Compiled code may be for any batch.
    batch = 1 if torch.compiler.is_compiling() else h.shape[0]
    pixels = batch * h.shape[2] * h.shape[3]
    if h.device.type != "cpu" or pixels < _FOLDING_PAYS * h.shape[1]:  # not measured elsewhere
        return F.conv2d(F.interpolate(h, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    folded = fold_upsampling(weight)
    if h.is_contiguous(memory_format=torch.channels_last):
        folded = folded.contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(h, folded, bias, stride=2, padding=1)


def fold_upsampling(weight: Tensor) -> Tensor:
    """The weight ``[C, O, 4, 4]`` of that transposed convolution, of ``[O, C, 3, 3]``."""
    fold = torch.tensor(_FOLD, dtype=weight.dtype, device=weight.device)
    taps = torch.kron(fold, fold).T  # [9, 16]
    inputs, outputs = weight.shape[1], weight.shape[0]
    folded = weight.transpose(0, 1).reshape(-1, 9) @ taps
    return folded.view(inputs, outputs, 4, 4)


def unit_range(decoded: Tensor) -> Tensor:
    """Images in [0, 1], float32 or wider, of a decoder's in [-1, 1]; NaN where they are not finite,
    as clamping alone would make black or white of an infinity."""
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    images = decoded.nan_to_num(torch.nan, torch.nan, torch.nan) * 0.5 + 0.5
    return images.clamp(0, 1)


def convolution_layout(h: Tensor) -> Tensor:
    """``h [B, C, H, W]`` with its channels last in memory on a CPU; the layers after it keep that.

    The weights may stay as they are: oneDNN packs them from either layout at every call. Elsewhere
    ``h`` is returned as it is, and the weights' own layout decides.
    """
    return h.contiguous(memory_format=torch.channels_last) if h.device.type == "cpu" else h
