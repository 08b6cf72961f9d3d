"""Whole prepared networks with the kernels of attention and norms as compiled, executed on the
CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from compiled.backends import installed
from compiled.executor import Executor
from models.test_fused_norms import NETWORKS
from models.test_prepared import GENERATORS, converted, error, inputs

from dd2_fast.models.prepared import prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("var", 90),
        ("dd1 var", 90),
        ("llamagen", 90),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("var", 80), ("var without l2", 90), ("dd1 var", 80), ("llamagen", 80))
        ),
    ],
)
@torch.no_grad()
def test_generators_by_the_kernels(name: str, arch: int) -> None:
    """Against float64 on the same rounded weights: half again the error of the modules at most."""
    pytest.importorskip("triton")
    executor = Executor(arch)
    for dtype in (torch.float32, torch.bfloat16):
        network = converted(GENERATORS[name](), dtype)
        noise, labels = inputs(network, 2, dtype)
        exact = converted(copy.deepcopy(network), torch.float64)
        wanted = exact(noise.double(), labels) - noise.double()
        modules = error((network(noise, labels) - noise).double(), wanted)
        with installed("triton", executor):
            found = prepare(network)(noise, labels) - noise
        blocks = getattr(network, "backbone", network).blocks
        launched = [counters.kernel for counters, _ in executor.log]
        assert sum("attention" in kernel for kernel in launched) == len(blocks)
        assert sum("add_norm" in kernel for kernel in launched) == NETWORKS[name][1]
        assert not executor.faults, executor.faults
        executor.clear()
        limit = max(1.5 * modules, 4 * torch.finfo(dtype).eps)
        assert error(found.double(), wanted) < limit
