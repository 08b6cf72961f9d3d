"""The MLP of the code vector that replaces a token table, and how it is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ...ops.checks import check_tensor

_SHORTEST = 0.5
_RIDGE = 1e-6
_CHUNK = 1024
_CLOSEST = 1e-5  # of 1 - cos: float32 cannot tell closer codes apart


class _WideLinear(nn.Linear):
    """A Linear that stays in float32 or wider when the model around it is cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _WideLinear:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)

        return super()._apply(move, recurse)


class EmbeddingMLP(nn.Module):
    """``output(ReLU(hidden(z)))``, ``z = [x / r, log r]`` with ``r = max(|x|, 1/2)``.

    Codes lie on a sphere; direction and length are read apart, so that the long vectors that a
    generator reads (noise has ``|x|`` of about ``sqrt(C)``) give outputs of ordinary size.
    The hidden layer tells close codes apart, and is computed in float32 or wider always.

    ``code_output(ReLU(code_units(z)))`` is added where there is a unit per code. They are apart so
    that DD2's networks, which are to be of the paper's size, can leave them out.

    Args:
        dimension: C. hidden: width of the hidden layer. width: D of the transformer.
        codes: how many units of codes, V or 0.
    """

    def __init__(self, dimension: int, hidden: int, width: int, codes: int = 0) -> None:
        super().__init__()
        self.hidden = _WideLinear(dimension + 1, hidden)
        self.output = nn.Linear(hidden, width)
        self.code_units = _WideLinear(dimension + 1, codes) if codes else None
        self.code_output = nn.Linear(codes, width, bias=False) if codes else None

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer ``[*, hidden]`` of vectors ``[*, C]``."""
        return _active(self.hidden, self._direction_and_length(x))

    def forward(self, x: Tensor) -> Tensor:
        """What the blocks read ``[*, D]`` of vectors ``[*, C]``."""
        z, dtype = self._direction_and_length(x), self.output.weight.dtype
        embedded = self.output(_active(self.hidden, z).to(dtype))
        if self.code_units is None or self.code_output is None:
            return embedded
        return embedded + self.code_output(_active(self.code_units, z).to(dtype))

    def _direction_and_length(self, x: Tensor) -> Tensor:
        x = x.to(self.hidden.weight.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=_SHORTEST)
        return torch.cat([x / length, length.log()], dim=-1)


def _active(units: nn.Linear, z: Tensor) -> Tensor:
    with outside_autocast(z.device):
        return F.relu(units(z))


@dataclass(frozen=True)
class EmbeddingFit:
    """How far ``mlp(c_j)`` is from ``emb_j``: ``|mlp - emb| / |emb - mean|``.

    ``relative`` is over the whole table, ``trend`` that of the smooth part alone, which is what
    DD2's networks start from, ``worst`` the largest error of one code over the table's root mean
    square row.
    """

    relative: float
    trend: float
    worst: float


@torch.no_grad()
def fit_embedding_mlp(
    codebook: Tensor,
    table: Tensor,
    *,
    smooth: int = 1024,
    exact: bool = True,
    seed: int = 0,
) -> tuple[EmbeddingMLP, EmbeddingFit]:
    """An MLP with ``mlp(c_j) = emb_j``, in float32 on the device of the codebook.

    ``smooth`` random hidden units carry a least-squares trend through the table. ``exact`` adds one
    hidden unit per code, ``ReLU((u·c_j - s_j) / (1 - s_j))``, ``s_j`` the similarity of the code
    nearest to ``c_j``: it is 1 at its own code and 0 at every other, so its output weight is what
    the trend leaves over, and nothing has to be iterated. Between codes the result falls back to
    the trend. A table without structure needs ``exact``: least squares with H units explain H/V of
    it whatever the units.

    Args:
        codebook: code vectors ``[V, C]`` of one length, at least 1/2. table: the token embeddings
            ``[V, D]``.
        smooth: number of smooth hidden units. exact: whether to interpolate.
        seed: of the smooth units.

    Returns:
        The MLP and the error it has on the codebook, measured on its float32 weights. Codes that
        float32 cannot tell apart get the trend alone.

    Raises:
        TypeError, ValueError: wrong types or shapes, or codes that are not of one length.
    """
    _check_fit(codebook, table, smooth)
    codes = F.normalize(codebook.detach().double(), dim=-1)
    target = table.detach().to(codes)
    scale = float((target - target.mean(0)).square().sum(-1).mean().sqrt()) or 1.0
    with codes.device:
        mlp = EmbeddingMLP(codes.shape[1], smooth, target.shape[1], len(codes) if exact else 0)
    mlp.float()
    _set_units(mlp.hidden, *_smooth_units(smooth, codes.shape[1], seed))
    # Where the code units correct it, the trend may be rough: small weights suit bfloat16, which
    # loses what cancels, and the gaps between codes.
    _fit_trend(mlp, codes.float(), target, ridge=0.1 if exact else _RIDGE)
    if mlp.code_units is not None and mlp.code_output is not None:
        _set_units(mlp.code_units, *_code_units(codes))
        nn.init.zeros_(mlp.code_output.weight)
    left = target - _evaluate(mlp, codebook)
    trend = left.norm(dim=-1)
    if mlp.code_output is not None:
        mlp.code_output.weight.copy_(left.T)
        left = target - _evaluate(mlp, codebook)
    error = left.norm(dim=-1)
    return mlp, EmbeddingFit(
        relative=float(error.square().mean().sqrt()) / scale,
        trend=float(trend.square().mean().sqrt()) / scale,
        worst=float(error.max()) / scale,
    )


def _set_units(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _smooth_units(count: int, dimension: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random half-spaces whose borders cut the sphere; length has no weight to begin with."""
    rng = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = dict(generator=rng, dtype=torch.float32, device="cpu")
    weight = torch.randn(count, dimension, **options)
    bias = torch.rand(count, **options)
    return F.pad(F.normalize(weight, dim=-1), (0, 1)), 1.6 * bias - 0.8


def _code_units(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases of the units that are 1 at their own code and 0 at every other."""
    nearest = []
    for start in range(0, len(codes), _CHUNK):
        similarity = codes[start : start + _CHUNK] @ codes.T
        similarity.diagonal(start).fill_(-1.0)
        nearest.append(similarity.amax(-1))
    gap = 1 - torch.cat(nearest)
    slope = torch.where(gap > _CLOSEST, 1 / gap, 0.0)
    return F.pad(codes * slope[:, None], (0, 1)), (gap - 1) * slope


def _fit_trend(mlp: EmbeddingMLP, codes: Tensor, target: Tensor, ridge: float) -> None:
    """Least squares of ``target`` on the hidden layer, with a bias and a ridge."""
    center = target.mean(0)
    phi = torch.cat([mlp.features(part).double() for part in codes.split(_CHUNK)])
    middle = phi.mean(0)
    phi = phi - middle
    gram = phi.T @ phi
    gram.diagonal().add_(ridge * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    coefficients = torch.linalg.solve(gram, phi.T @ (target - center))
    mlp.output.weight.copy_(coefficients.T)
    mlp.output.bias.copy_(center - middle @ coefficients)


def _evaluate(mlp: EmbeddingMLP, vectors: Tensor) -> Tensor:
    """What the MLP gives: computed in float32, returned in float64."""
    return torch.cat([mlp(part).double() for part in vectors.split(_CHUNK)])


def _check_fit(codebook: Tensor, table: Tensor, smooth: int) -> None:
    check_tensor("codebook", codebook)
    check_tensor("table", table)
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(
            f"codebook: expected shape [V, C] with V, C >= 1, got {list(codebook.shape)}"
        )
    if table.ndim != 2 or table.shape[0] != codebook.shape[0]:
        raise ValueError(
            f"table: expected shape {[codebook.shape[0], 'D']} ([V, D]), got {list(table.shape)}"
        )
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 1:
        raise ValueError(f"smooth: expected an int of at least 1, got {smooth!r}")
    lengths = codebook.detach().double().norm(dim=-1)
    mean = float(lengths.mean())
    worst = float((lengths - mean).abs().max())
    if not (worst < 1e-2 * mean and mean > 0.99 * _SHORTEST):
        raise ValueError(
            f"codebook: expected codes of one length of at least {_SHORTEST}, got a mean of "
            f"{mean:.3g} and one that is off by {worst:.3g}"
        )
