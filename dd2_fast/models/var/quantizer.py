"""VAR's multi-scale quantizer: codes of every scale add up to one feature map, ``f_hat``."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ...ops import nearest_code
from .scales import Scales, ScaleTables, resize


class _Phi(nn.Conv2d):
    """``phi(h) = 0.5 h + 0.5 conv3x3(h)``, in the dtype of ``h``."""

    bias: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, dimension, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        weight, bias = self.weight.to(h.dtype), self.bias.to(h.dtype)
        return torch.lerp(h, F.conv2d(h, weight, bias, padding=1), 0.5)


class _SharedPhis(nn.Module):
    """The ``phi`` of all scales, under the released names ``qresi_ls.i``."""

    def __init__(self, count: int, dimension: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(_Phi(dimension) for _ in range(count))


class MultiScaleQuantizer(nn.Module):
    """``f_hat = sum_k phi_k(up(h_k))``, ``h_k`` the embeddings of scale ``k`` as a map.

    ``up`` is bicubic to the last grid and ``phi(h) = 0.5 h + 0.5 conv(h)``. The input of scale
    ``k + 1`` is the area average of ``f_hat`` up to scale ``k``. Sums run in float32 or wider
    whatever the parameters' dtype, outside autocast.

    All scales run together: padded to the last grid, resized by one matrix an axis, and convolved
    as groups of one convolution.
    """

    def __init__(self, scales: Scales, *, vocabulary: int, dimension: int, phis: int) -> None:
        super().__init__()
        self.scales, self.dimension = scales, dimension
        self.embedding = nn.Embedding(vocabulary, dimension)
        self.quant_resi = _SharedPhis(phis, dimension)
        self.phi_indices = scales.phi_indices(phis)
        self.prepared: Any = None  # what has the convolutions as one, of one dtype
        # Not buffers: a cast must not round the maps, nor a build on the meta device lose them.
        self._tables: dict[tuple[torch.device, torch.dtype], ScaleTables] = {}
        self._make_tables()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        self._make_tables()
        return result

    def _make_tables(self) -> None:
        """Make what calls will need where the weights are: compiled code that made it in its first
        call would be compiled again for the second."""
        weight = self.embedding.weight
        # Weights on the meta device are to be replaced by a file's.
        device = torch.device("cpu") if weight.is_meta else weight.device
        self._tables.clear()
        for dtype in {torch.float32, torch.promote_types(weight.dtype, torch.float32)}:
            self._maps(device, dtype)

    def f_hat(self, embeddings: Tensor) -> Tensor:
        """The feature map ``[B, C, g, g]`` of embeddings ``[B, n, C]`` of all scales."""
        with outside_autocast(embeddings.device):
            maps = self._upsampled(embeddings, self.scales.count)
            weight, bias = self._of(maps.dtype).summed_phi(maps.dtype)
            return F.conv2d(maps.flatten(1, 2), weight, bias, padding=1)

    def next_inputs(self, embeddings: Tensor) -> Tensor:
        """What scales 1.. read, ``[B, n - 1, C]``, of embeddings ``[B, n, C]``.

        The rows of scale ``k`` depend on embeddings of lower scales only; the last scale is not
        read.
        """
        count, g = self.scales.count - 1, self.scales.grid
        with outside_autocast(embeddings.device):
            maps = self._upsampled(embeddings, count)
            weight, bias = self._of(maps.dtype).grouped_phi(maps.dtype)
            maps = F.conv2d(maps.flatten(1, 2), weight, bias, padding=1, groups=count)
            f_hats = _running_sum(maps.unflatten(1, (count, self.dimension)))  # [B, S-1, C, g, g]
            batch, columns = maps.shape[0], maps.shape[0] * self.dimension
            tables = self._maps(f_hats.device, f_hats.dtype)
            down = tables.down[:count]
            rows = down @ f_hats.permute(1, 3, 4, 0, 2).reshape(count, g, g * columns)
            cells = down[:, None] @ rows.view(count, g, g, columns)
            inputs = cells.view(count * g * g, batch, self.dimension).index_select(0, tables.take)
        return inputs.transpose(0, 1)

    def add_scale(self, f_hat: Tensor | None, embeddings: Tensor, scale: int) -> Tensor:
        """``f_hat [B, C, g, g]`` with the embeddings ``[B, side^2, C]`` of one scale added.

        ``None`` stands for zeros.
        """
        side = self.scales.sides[scale]
        with outside_autocast(embeddings.device):
            dtype = torch.promote_types(embeddings.dtype, torch.float32)
            maps = embeddings.to(dtype).transpose(1, 2).unflatten(2, (side, side))
            maps = resize(maps, self.scales.grid, "bicubic")
            maps = self._phi_of(scale)(maps)
        return maps if f_hat is None else f_hat + maps

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """What one scale reads, ``[B, side^2, C]``, of ``f_hat`` of the scales below it."""
        return resize(f_hat, self.scales.sides[scale], "area").flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Tokens ``[B, n]`` of features ``[B, C, g, g]``: each scale codes what is left over.

        A token whose features are not finite is -1.
        """
        rest = features.to(torch.promote_types(features.dtype, torch.float32))
        tokens = []
        for k in range(self.scales.count):
            tokens.append(self.encode_scale(rest, k))
            rest = self.without(rest, tokens[-1], k)
        return torch.cat(tokens, dim=1)

    def encode_scale(self, rest: Tensor, scale: int) -> Tensor:
        """Tokens ``[B, side^2]`` of one scale of what is left over, ``rest [B, C, g, g]``."""
        return nearest_code(self.next_input(rest, scale), self.embedding.weight)

    def without(self, rest: Tensor, tokens: Tensor, scale: int) -> Tensor:
        """What is left over by the tokens of one scale."""
        codes = self.embedding(tokens.clamp(min=0)).to(rest.dtype)
        return rest - self.add_scale(None, codes, scale)

    def _upsampled(self, embeddings: Tensor, count: int) -> Tensor:
        """The first ``count`` scales on the last grid: ``[B, count, C, g, g]``."""
        g = self.scales.grid
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        tables = self._maps(embeddings.device, embeddings.dtype)
        place, up = tables.place[: count * g * g], tables.up[:count]
        batch, columns = embeddings.shape[0], embeddings.shape[0] * self.dimension
        cells = embeddings.transpose(0, 1).index_select(0, place)
        rows = up @ cells.view(count, g, g * columns)
        maps = up[:, None] @ rows.view(count, g, g, columns)
        return maps.view(count, g, g, batch, self.dimension).permute(3, 0, 4, 1, 2).contiguous()

    def grouped_phi(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of ``phi`` of all scales but the last, each a group of channels."""
        return self._phi(self.scales.count - 1, dtype)

    def summed_phi(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution from all scales' channels, which adds them up too."""
        weight, bias = self._phi(self.scales.count, dtype)
        weight = weight.unflatten(0, (-1, self.dimension)).transpose(0, 1).flatten(1, 2)
        return weight, bias.unflatten(0, (-1, self.dimension)).sum(0)

    def _of(self, dtype: torch.dtype) -> Any:
        prepared = self.prepared
        return self if prepared is None or prepared.dtype != dtype else prepared

    def _phi(self, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight ``[count C, C, 3, 3]`` and bias ``[count C]`` of ``phi`` of the first scales.

        The identity half of ``phi`` is in the middle tap.
        """
        convolutions = [self._phi_of(k) for k in range(count)]
        weight = torch.cat([c.weight for c in convolutions]).to(dtype)
        bias = torch.cat([c.bias for c in convolutions]).to(dtype)
        identity = torch.eye(self.dimension, dtype=dtype, device=weight.device).repeat(count, 1)
        middle = F.pad(identity[..., None, None], (1, 1, 1, 1))
        return torch.lerp(middle, weight, 0.5), bias * 0.5

    def _phi_of(self, scale: int) -> _Phi:
        return cast(_Phi, self.quant_resi.qresi_ls[self.phi_indices[scale]])

    def _maps(self, device: torch.device, dtype: torch.dtype) -> ScaleTables:
        key = (device, dtype)
        if key not in self._tables:
            with torch.inference_mode(False):
                self._tables[key] = self.scales.tables(*key)
        return self._tables[key]


def _running_sum(maps: Tensor) -> Tensor:
    """``cumsum`` over the scales ``[B, S, C, g, g]``, which on CUDA is not deterministic."""
    if torch.are_deterministic_algorithms_enabled():
        return torch.stack(list(accumulate(maps.unbind(1))), dim=1)
    return maps.cumsum(1)
