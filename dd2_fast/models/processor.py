"""What this machine's processor computes with instructions of its own."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

_CPUINFO = Path("/proc/cpuinfo")
# Flags of x86 and of ARM, any of which multiplies matrices in a dtype.
_KNOWN = frozenset({"sse2", "asimd"})
_INSTRUCTIONS = {
    torch.bfloat16: frozenset({"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16"}),
    torch.float16: frozenset({"avx512_fp16", "amx_fp16", "avx10_2", "fphp", "asimdhp", "svehp"}),
}


@functools.cache
def processor_flags() -> frozenset[str]:
    """The instruction sets that Linux lists for the first processor; none where it is unknown."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    listed = (value for name, _, value in named if name.strip().lower() in ("flags", "features"))
    return frozenset(next(listed, "").split())


def emulated(dtype: torch.dtype) -> bool:
    """Whether the processor is known to have no instructions for a dtype's products."""
    flags = processor_flags()
    known = bool(flags & _KNOWN) and dtype in _INSTRUCTIONS
    return known and not flags & _INSTRUCTIONS[dtype]


def warn_if_slow(network: Any) -> None:
    """Warn, once a process and dtype, that a network on this CPU would be faster in float32."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    first = next(iter(parameters), None)
    if first is not None and first.device.type == "cpu" and emulated(first.dtype):
        _warn(first.dtype)


@functools.cache
def _warn(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"dtype: {name} takes longer than float32 on this processor, which has no instructions for "
        f"it ({', '.join(sorted(_INSTRUCTIONS[dtype]))}); bfloat16 took 3.1 times as long with "
        "AVX-512 VNNI alone",
        RuntimeWarning,
        stacklevel=3,
    )
