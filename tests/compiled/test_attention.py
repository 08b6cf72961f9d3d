"""Whole prepared networks with the kernels of attention and norms as compiled, executed on the
CPU."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from compiled.backends import installed
from compiled.executor import Executor
from compiled.test_compiled import require
from models.test_fused_norms import NETWORKS
from models.test_prepared import GENERATORS, converted, error, inputs

from dd2_fast.models.prepared import prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "executed"),
    [
        *product(("var", "dd1 var", "llamagen"), ("triton:90", "cuda:90")),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                *product(("var", "dd1 var", "llamagen"), ("triton:80", "cuda:80", "cupy:90")),
                *product(("var without l2",), ("triton:90", "cuda:90")),
            )
        ),
    ],
)
@torch.no_grad()
def test_generators_by_the_kernels(name: str, executed: str) -> None:
    """Against float64 on the same rounded weights: half again the error of the modules at most."""
    require(executed)
    backend, arch = executed.split(":")
    executor = Executor(int(arch))
    for dtype in (torch.float32, torch.bfloat16):
        network = converted(GENERATORS[name](), dtype)
        noise, labels = inputs(network, 2, dtype)
        exact = converted(copy.deepcopy(network), torch.float64)
        wanted = exact(noise.double(), labels) - noise.double()
        modules = error((network(noise, labels) - noise).double(), wanted)
        with installed(backend, executor):
            found = prepare(network)(noise, labels) - noise
        blocks = getattr(network, "backbone", network).blocks
        launched = [counters.kernel for counters, _ in executor.log]
        assert sum("attention" in kernel for kernel in launched) == len(blocks)
        norms = NETWORKS[name][1] if backend == "triton" else 0
        assert sum("add_norm" in kernel for kernel in launched) == norms
        assert not executor.faults, executor.faults
        executor.clear()
        limit = max(1.5 * modules, 4 * torch.finfo(dtype).eps)
        assert error(found.double(), wanted) < limit
