"""Products of large layers in float8, e4m3, on GPUs that multiply those.

Weights have a scale for every output, ``w ~ s_o q``, ``|q| <= 448``. What they meet is rounded as
it comes, by a scale for every row, so that nothing has to be calibrated and no image depends on the
others of its batch. torch gives the products to cuBLASLt or CUTLASS, with sums in float32, on
Hopper in the tensor cores' own fewer bits, and bfloat16 results: torchao's "rowwise dynamic", with
its settings, which is the same call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .folded import JoinedLinear
from .rounded import SMALLEST, RoundedLinear, replace_layers

# The fewest outputs and inputs with which a product gains more than rounding its input takes, by a
# model of an H200's time: 4 bytes an input at 4.3 TB/s, compiled, for 0.45 of 2 O / 790 TFLOP/s.
_OUTPUTS_PAY, _INPUTS_PAY = 1024, 256
_MULTIPLE = 16  # of both, which the products need
_LARGEST = 448.0
_CAPABILITY = (8, 9)


def missing(device: torch.device | None = None) -> str | None:
    """Why this machine, or a device of it, cannot, or None."""
    if not hasattr(F, "scaled_mm"):
        return f"torch {torch.__version__} has no scaled_mm, 2.10 has"
    if device is not None and device.type != "cuda":
        return f"the networks are on {device}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.hip:
        return "it has not been tried on AMD's GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        return f"the GPU's compute capability is {found[0]}.{found[1]}, and 8.9 the first with it"
    return None


class Fp8Weight(NamedTuple):
    """A weight ``[O, D]`` for :func:`.kernels.linear`: e4m3 ``[O, D]`` and scales ``[1, O]``."""

    values: Tensor
    scales: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b`` of ``x [*, D]``, bfloat16."""
        rows = x.flatten(0, -2)
        largest = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True, dtype=torch.float32)
        scale = largest.clamp(min=SMALLEST) / _LARGEST
        rounded = (rows / scale).to(torch.float8_e4m3fn, memory_format=torch.contiguous_format)
        by_row: Any = F.ScalingType.RowWise
        out = F.scaled_mm(
            rounded, self.values.t(), scale, by_row, self.scales, by_row, bias=bias,
            output_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        return out.unflatten(0, x.shape[:-1])


class Fp8Linear(RoundedLinear):
    """``nn.Linear``."""

    def fold(self) -> dict[str, Tensor]:
        weight = self.exact().float()
        scales = weight.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / _LARGEST
        values = (weight / scales).to(torch.float8_e4m3fn)
        return {"values": values, "scales": scales.t().contiguous()}

    @property
    def weight(self) -> Fp8Weight:
        """What stands for the source's where only that is used."""
        return Fp8Weight(self.values, self.scales)


def to_fp8(network: nn.Module) -> int:
    """Put such layers in the place of large ones in a prepared network; how many there are."""
    return replace_layers(network, _of_large)


def _of_large(layer: nn.Module) -> nn.Module | None:
    if not isinstance(layer, nn.Linear | JoinedLinear):
        return None
    inputs, outputs = layer.in_features, layer.out_features
    fits = inputs % _MULTIPLE == 0 == outputs % _MULTIPLE
    pays = inputs >= _INPUTS_PAY and outputs >= _OUTPUTS_PAY
    return Fp8Linear(layer) if fits and pays else None
