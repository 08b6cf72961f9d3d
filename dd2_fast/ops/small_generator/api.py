"""``small_generator``: validation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..small_network import MOST_TOKENS, PANEL, WIDEST, GeneratorSizes
from . import schema as schema

_small_generator = torch.ops.dd2_fast.small_generator.default


def small_generator(
    x: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    decoder: Tensor | None,
    sizes: GeneratorSizes,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, n, C] of noise and images [B, 3, H, W] in [0, 1] of those, in one call.

    The network is a causal transformer with a flow head, ``x_i = eps_i - v(eps_i, t=1, f_i)``, and
    the small tokenizer's decoder; ``reference.py`` has the formulas. Results are constants.

    Args:
        x: noise [B, n, C]; with `weights` None it is embeddings, which are returned as they are.
        labels: int64 [B], values in 0..classes-1, which is not checked.
        weights: of backbone and head, packed; x's dtype. None: decode alone.
        decoder: of the decoder, packed. None: images are [B, 3, 0, 0].
        sizes: of what there is.
        backend: a name in `available_backends`, or None for the fastest that can run.

    Raises TypeError or ValueError for arguments that do not fit one another, or sizes over the
    kernels' limits: widths multiples of 16 up to 256, heads' too, 64 tokens.
    """
    checks.check_tensor("x", x)
    if x.ndim != 3 or not 0 < x.shape[1] <= MOST_TOKENS or not 0 < x.shape[2] <= WIDEST:
        raise ValueError(
            f"x: expected shape [B, n, C] with n in 1..{MOST_TOKENS} and C in 1..{WIDEST}, "
            f"got {list(x.shape)}"
        )
    tokens, dim = x.shape[1:]
    if weights is not None:
        checks.check_tensor("labels", labels, (torch.int64,))
        assert labels is not None
        checks.check_shape("labels", labels, x.shape[:1], "[B], that of x")
        checks.check_same_device("x", x, labels=labels)
        for name in ("width", "head_width"):
            _check_width(name, getattr(sizes, name))
        heads = sizes.heads
        if heads < 1 or sizes.width % (heads * PANEL):
            raise ValueError(
                f"sizes: expected heads of a multiple of {PANEL} channels, got {heads} for a width "
                f"of {sizes.width}"
            )
        _check_array("weights", weights, x, sizes.generator_length(tokens, dim))
    if decoder is not None:
        _check_width("decoder_width", sizes.decoder_width)
        if math.isqrt(tokens) ** 2 != tokens:
            raise ValueError(f"x: expected a square number of tokens to decode, got {tokens}")
        _check_array("decoder", decoder, x, sizes.decoder_length(dim))
    return _small_generator(x, labels, weights, decoder, sizes, checks.check_backend(backend))


def _check_width(name: str, width: int) -> None:
    if width % PANEL or not 0 < width <= WIDEST:
        raise ValueError(
            f"sizes: expected {name} a multiple of {PANEL} up to {WIDEST}, got {width}"
        )


def _check_array(name: str, array: Tensor, x: Tensor, length: int) -> None:
    checks.check_tensor(name, array, (x.dtype,))
    checks.check_same_device("x", x, **{name: array})
    checks.check_shape(name, array, (length,), "as sizes say")
