"""Training with the kernels of ``add_norm_modulate`` as compiled, executed on the CPU: whole
networks against float64, and the trainer beside the reference one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from compiled.backends import installed
from compiled.executor import Executor
from models.test_fused_norms import NETWORKS, step
from models.test_prepared import converted, error, inputs
from torch import Tensor
from training.test_distil import config

from dd2_fast.ops import registry
from dd2_fast.training.recipes import distil


@contextmanager
def norms_installed(executor: Executor) -> Iterator[None]:
    """Triton's kernels for this operator, the usual backends of the CPU for the others."""
    unusable = registry._unusable

    def only_norms(op: str, name: str, *rest: object) -> str | None:
        if name == "triton" and op != "add_norm_modulate":
            return "not in this test"
        return unusable(op, name, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, installed("triton", executor):
        patch.setattr(registry, "_unusable", only_norms)
        registry._has_kernel.cache_clear()
        yield
    registry._has_kernel.cache_clear()


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of all gradients, relative to their length."""
    square = sum(float((a.double() - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return (square / sum(float(b.square().sum()) for b in wanted)) ** 0.5


@pytest.mark.parametrize(
    ("name", "kind", "arch"),
    [
        pytest.param("var", "float32", 90, marks=pytest.mark.slow),
        pytest.param("llamagen", "autocast", 80, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                *(("var", "autocast", 80), ("var", "bfloat16", 90), ("var shared", "float32", 90)),
                *(("llamagen", "float32", 90), ("llamagen", "bfloat16", 90)),
                *(("small", "float32", 90), ("small", "autocast", 80)),
                *(("dd1 var", "float32", 90), ("dd1 llamagen", "float32", 90)),
            )
        ),
    ],
)
def test_forward_and_gradients_of_a_network(name: str, kind: str, arch: int) -> None:
    """Against float64 on the same weights: half again the error of the modules at most."""
    pytest.importorskip("triton")
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    network = converted(NETWORKS[name][0](), dtype)
    noise, labels = inputs(network, 2, dtype)
    exact = converted(copy.deepcopy(network), torch.float64)
    wanted, gradients = step(exact, noise.double(), labels)

    def errors() -> tuple[float, float]:
        mixed = torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else nullcontext()
        with mixed:
            out, grads = step(network, noise, labels)
        made = (out - noise).double()
        return error(made, wanted - noise.double()), difference(grads, gradients)

    modules = errors()
    executor = Executor(arch)
    with norms_installed(executor):
        found = errors()
    launched = [counters.kernel for counters, _ in executor.log]
    assert sum("fwd" in kernel for kernel in launched) == NETWORKS[name][1]
    assert sum("bwd" in kernel for kernel in launched) >= NETWORKS[name][1] - 1
    assert not executor.faults, executor.faults
    rounding = torch.finfo(torch.float32 if kind == "float32" else torch.bfloat16).eps
    for fused, of_modules in zip(found, modules, strict=True):
        assert fused < max(1.5 * of_modules, 4 * rounding), (found, modules)


@pytest.mark.long
@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_the_trainer_stays_with_the_reference(family: str) -> None:
    """As ``--check-parity 3``: three steps of every stage from the same state."""
    pytest.importorskip("triton")
    executor = Executor(90)
    with norms_installed(executor):
        parts = list(distil.check_parity(config(family), 3))
    launched = {counters.kernel for counters, _ in executor.log}
    assert {kernel.split("_")[3] for kernel in launched} == {"fwd", "bwd", "sum"}
    assert not executor.faults, executor.faults
    assert {part.stage for part in parts} >= {"stage1", "distill"}
    for part in parts:
        assert part.loss < 1e-4 and part.gradient < 1e-3 and part.weights < 1e-4, part
