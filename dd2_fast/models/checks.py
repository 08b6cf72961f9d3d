"""Argument checks that the models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class NotFiniteError(FloatingPointError, ValueError):
    """A network produced a NaN or infinity; the message names the image and the part."""


def check_device(name: str, value: Tensor, device: torch.device | None) -> None:
    """Raise unless ``value`` is on ``device``; None: on any."""
    if device is not None and value.device != device:
        raise ValueError(
            f"{name}: expected a tensor on {device}, the model's device, got one on {value.device}"
        )


def check_embeddings(
    name: str,
    value: Tensor,
    num_tokens: int,
    dimension: int,
    device: torch.device | None = None,
) -> None:
    """Raise unless ``value`` is a float tensor ``[B, n, C]``, on ``device`` if one is given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {_name(value.dtype)}")
    if value.ndim != 3 or tuple(value.shape[1:]) != (num_tokens, dimension):
        raise ValueError(
            f"{name}: expected shape ['B', {num_tokens}, {dimension}] ([B, n, C]), "
            f"got {list(value.shape)}"
        )
    check_device(name, value, device)


def check_tokens(
    tokens: Tensor, num_tokens: int, vocabulary: int, device: torch.device | None = None
) -> None:
    """Raise unless ``tokens`` is int64 ``[B, n]`` in ``[0, V)``, on ``device`` if one is given."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens: expected a torch.Tensor of int64, got {type(tokens).__name__}")
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens: expected dtype int64, got {_name(tokens.dtype)}")
    if tokens.ndim != 2 or tokens.shape[1] != num_tokens:
        raise ValueError(
            f"tokens: expected shape ['B', {num_tokens}] ([B, n]), got {list(tokens.shape)}"
        )
    check_device("tokens", tokens, device)
    if torch.compiler.is_compiling() or tokens.device.type != "cpu" or not tokens.numel():
        return
    low, high = (int(v) for v in tokens.aminmax())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens: expected values in 0..{vocabulary - 1}, got {low if low < 0 else high}"
        )


def check_drawn(
    tokens: Tensor,
    first: int,
    vocabulary: int,
    index: Tensor | None,
    about: Callable[[int], str] | None,
) -> None:
    """Raise NotFiniteError if any of the drawn tokens ``[B, m]`` is -1: its logits were not finite.

    Args:
        first: position of the first of the ``m``. index: int64 ``[B]``, the images' numbers.
        about: what the error says of the condition of a row.
    """
    if not tokens.numel() or int(tokens.min()) >= 0:
        return
    row, column = (tokens < 0).nonzero()[0].tolist()
    image = row if index is None else int(index[row])
    told = about(row) if about is not None else ""
    told = told and f" ({told})"
    raise NotFiniteError(
        f"tokens: expected values in 0..{vocabulary - 1}, got -1: expected finite teacher's "
        f"logits, got a NaN or infinity at token {first + column} of image {image}{told}"
    )


def embed_tokens(
    tokens_or_embeddings: Tensor, codebook: Tensor, num_tokens: int, name: str
) -> Tensor:
    """Embeddings ``[B, n, C]`` of int64 tokens ``[B, n]``; float embeddings pass through."""
    if isinstance(tokens_or_embeddings, Tensor) and tokens_or_embeddings.is_floating_point():
        check_embeddings(name, tokens_or_embeddings, num_tokens, codebook.shape[1])
        return tokens_or_embeddings
    check_tokens(tokens_or_embeddings, num_tokens, codebook.shape[0], codebook.device)
    return codebook[tokens_or_embeddings]


def start_tokens(
    labels: Tensor, num_tokens: int, prefix: Tensor | None, vocabulary: int
) -> tuple[Tensor, int]:
    """Tokens ``[B, n]`` to fill, with the ``prefix [B, m]`` (None: none) in place, and ``m``."""
    tokens = labels.new_empty(len(labels), num_tokens)
    if prefix is None:
        return tokens, 0
    if not isinstance(prefix, Tensor):
        raise TypeError(f"prefix: expected a torch.Tensor of int64, got {type(prefix).__name__}")
    count = prefix.shape[-1] if prefix.ndim == 2 else 0
    if prefix.ndim != 2 or len(prefix) != len(labels) or count > num_tokens:
        raise ValueError(
            f"prefix: expected shape [{len(labels)}, 'm'] with m at most {num_tokens}, "
            f"got {list(prefix.shape)}"
        )
    check_tokens(prefix, count, vocabulary)
    tokens[:, :count] = prefix
    return tokens, count


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
