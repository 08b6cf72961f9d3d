"""Whole decoders with the norms' kernels as compiled: prepared ones, executed on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from compiled.backends import installed
from compiled.executor import Executor
from compiled.test_compiled import require
from models.test_dd2_families import tiny_generator
from models.test_prepared import at_work, converted, error

from dd2_fast.models.norms import FusedNorm
from dd2_fast.models.prepared import prepare
from dd2_fast.ops.registry import default_backend

LAUNCHES = {"cuda": 2, "cupy": 2, "triton": 3}  # of a norm


@pytest.mark.slow
@pytest.mark.parametrize("family", ["var", "llamagen"])
@pytest.mark.parametrize(
    "executed",
    [
        "cuda:90",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("cuda:80", "cupy:90", "cupy:80")),
        *(pytest.param(f"triton:{arch}", marks=pytest.mark.long) for arch in (80, 90)),
    ],
)
@torch.no_grad()
def test_decoders_by_the_kernels(executed: str, family: str) -> None:
    """Against float64 on the same rounded weights: half again the error of the modules at most."""
    require(executed)
    backend, arch = executed.split(":")
    executor = Executor(int(arch))
    for dtype in (torch.float32, torch.bfloat16):
        network: Any = converted(at_work(tiny_generator(family)), dtype)
        tokenizer = at_work(network.tokenizer)
        noise = torch.randn(2, network.num_tokens, network.dimension, dtype=dtype)
        wanted = copy.deepcopy(tokenizer).double().decode(noise.double())
        modules = error(tokenizer.decode(noise).double(), wanted)
        with installed(backend, executor), default_backend(backend):
            decoder = prepare(tokenizer)
            found = decoder.decode(noise)
        norms = sum(isinstance(module, FusedNorm) for module in decoder.modules())
        assert norms > 5 and len(executor.log) == LAUNCHES[backend] * norms
        assert not executor.faults, executor.faults
        executor.clear()
        limit = max(1.5 * modules, 4 * torch.finfo(dtype).eps)
        assert error(found.double(), wanted) < limit
