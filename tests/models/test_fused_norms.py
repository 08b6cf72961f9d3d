"""Networks that take ``add_norm_modulate``, by its definition in float64, compute what their
modules do, forward and backward; tests/compiled/test_norms.py has its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.test_dd2_families import TEACHERS
from models.test_prepared import GENERATORS, converted, error, inputs, var_generator
from torch import Tensor, nn

from dd2_fast.models import DD2Generator, kernels
from dd2_fast.models.causal.family import FAMILY as CAUSAL
from dd2_fast.models.head import FlowHead
from dd2_fast.models.prepared import prepare
from dd2_fast.ops import registry
from dd2_fast.ops.add_norm_modulate import reference


def small() -> DD2Generator:
    torch.manual_seed(0)
    generator = DD2Generator.from_teacher(CAUSAL.random(), head_width=16, head_depth=2)
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return generator


# And how many calls they make: two a block, those of heads, with a flow head's blocks.
NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "var": (GENERATORS["var"], 2 * 2 + 1 + 2),
    "var shared": (lambda: var_generator(shared_aln=True), 2 * 2 + 1 + 3),
    "var without l2": (GENERATORS["var without l2"], 2 * 2 + 1 + 3),
    "llamagen": (GENERATORS["llamagen"], 2 * 2 + 2),
    "dd1 var": (GENERATORS["dd1 var"], 2 * 2 + 2),
    "dd1 llamagen": (GENERATORS["dd1 llamagen"], 2 * 2 + 1),
    "small": (small, 2 * 2 + 3),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operator's calls, forward and backward, after :func:`fuse`."""
    made: list[str] = []
    for name in ("add_norm_modulate", "add_norm_modulate_backward"):
        function = getattr(reference, name)

        def counted(*arguments: Any, function: Any = function, name: str = name) -> Any:
            made.append(name)
            return function(*arguments)

        monkeypatch.setattr(reference, name, counted)
    return made


def fuse(patch: pytest.MonkeyPatch) -> None:
    """As where there is a kernel, of this operator alone."""
    patch.setattr(kernels, "has_kernel", lambda op, *_: op == "add_norm_modulate")


def step(network: nn.Module, x: Tensor, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    """What a network makes of ``x``, and the gradients of a sum of it."""
    network.requires_grad_(True)
    out = network(x, *rest)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    parameters = [p for p in network.parameters() if p.requires_grad]
    grads = torch.autograd.grad((out.double() * weights).sum(), parameters, allow_unused=True)
    return out.detach(), [g for g in grads if g is not None]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "var without l2"])
def test_a_network_computes_the_same(
    name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, count = NETWORKS[name]
    network = converted(make(), torch.float64)
    noise, labels = inputs(network, 3)
    wanted, gradients = step(network, noise, labels)
    assert not calls
    fuse(monkeypatch)
    found, of_fused = step(network, noise, labels)
    assert calls[:count] == ["add_norm_modulate"] * count
    # DD1's classifier, and with it the norm before it, chooses codes: no gradient.
    assert calls[count:] == ["add_norm_modulate_backward"] * (count - (name == "dd1 var"))
    assert error(found - noise, wanted - noise) < 1e-12
    assert len(of_fused) == len(gradients)
    for one, other in zip(of_fused, gradients, strict=True):
        assert float((one - other).norm()) <= 1e-11 * float(other.norm()) + 1e-13
    if name == "small":
        return
    with torch.no_grad():
        calls.clear()
        assert error(prepare(network)(noise, labels) - noise, wanted - noise) < 1e-12
        assert len(calls) == count
        assert prepare(network)(noise[:0], labels[:0]).shape == noise[:0].shape


@pytest.mark.parametrize("family", TEACHERS)
@torch.no_grad()
def test_a_prepared_teacher_draws_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, with a cache."""
    teacher = converted(TEACHERS[family]().requires_grad_(False).eval(), torch.float64)
    labels = torch.tensor([1, 4])
    wanted = teacher.sample(labels, cfg=1.5, top_k=9)
    fuse(monkeypatch)
    for network in (teacher, prepare(teacher)):
        assert torch.equal(network.sample(labels, cfg=1.5, top_k=9), wanted)


@pytest.mark.parametrize("t", ["number", "scalar", "rows", "draws"])
def test_the_head_of_several_draws(
    t: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose modulations are of a row, or of all draws of one."""
    torch.manual_seed(0)
    head = FlowHead(dimension=4, features=6, width=8, blocks=2).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    x_t, features = torch.randn(2, 3, 5, 4).double(), torch.randn(2, 3, 6).double()
    noise_level = {"number": 0.7, "scalar": torch.tensor(0.7)}.get(t, torch.rand(2, 3, 5))
    if t == "rows":
        noise_level = noise_level[..., :1]
    wanted, gradients = step(head, x_t, noise_level, features)
    fuse(monkeypatch)
    found, of_fused = step(head, x_t, noise_level, features)
    assert len(calls) == 6 and error(found, wanted) < 1e-12
    for one, other in zip(of_fused, gradients, strict=True):
        assert error(one, other) < 1e-11


def test_the_reference_trainer_keeps_the_modules(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel counts where nothing else is asked for."""
    monkeypatch.setattr(registry, "_unusable", lambda op, name, *_: None)
    network = GENERATORS["var"]()
    noise, labels = inputs(network, 2, torch.float32)
    registry._has_kernel.cache_clear()
    try:
        assert kernels.has_fused_norm(noise)
        with torch.no_grad(), registry.default_backend("torch"):
            network(noise, labels)
            assert not calls and not kernels.has_fused_norm(noise)
    finally:
        registry._has_kernel.cache_clear()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_networks_have_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both, for Inductor to fuse, in one graph, compiled once."""
    network = GENERATORS["var of one block"]()
    noise, labels = inputs(network, 2, torch.float32)
    wanted = network(noise, labels)
    fuse(monkeypatch)
    for made in (network, prepare(network)):
        graphs: list[str] = []

        def look(graph: torch.fx.GraphModule, inputs: Any, graphs: list[str] = graphs) -> Any:
            graphs.append(str(graph.code))
            return graph

        torch.compiler.reset()
        compiled = torch.compile(made, fullgraph=True, dynamic=False, backend=look)
        for _ in range(2):
            assert error(compiled(noise, labels), wanted) < 1e-5
        assert len(graphs) == 1 and "dd2_fast" not in graphs[0]
        # The prepared one has the operator's own operations, the modules those of torch.
        assert ("rsqrt" in graphs[0]) == (made is not network)
