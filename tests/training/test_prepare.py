"""What `Parallel.prepare` does to a network: every block of every family, and the head."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training.test_distil import config

from dd2_fast.models import DD2Generator, DD2Guidance
from dd2_fast.models.families import FAMILIES
from dd2_fast.training import parallel as module
from dd2_fast.training.config import ExecutionConfig
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.recipes import distil
from dd2_fast.training.recipes.teachers import RANDOM

BLOCKS = 2  # of every network here
RUNS = tuple(RANDOM)  # a run's teachers


def guidance(family: str) -> DD2Guidance:
    teacher = FAMILIES[family].adapt(FAMILIES[family].random(), 0)
    return DD2Guidance.from_teacher(teacher, head_width=8, head_depth=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_sharded(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded: list[nn.Module] = []
    monkeypatch.setattr(module, "fully_shard", lambda part, **_: sharded.append(part))
    monkeypatch.setattr(module, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(module, "register_fsdp_forward_method", lambda *_: None)
    parallel = Parallel(ExecutionConfig(sharding="shard"))
    parallel.count = 2
    network = guidance(family)
    parallel.prepare(network)
    assert [part for part in sharded if part in set(network.backbone.blocks)] == [
        *network.backbone.blocks
    ]
    assert sharded[-2:] == [network.head, network]


@pytest.mark.parametrize("shared_aln", [False, True], ids=["own modulation", "shared"])
def test_what_var_asks_before_its_blocks_can_be_asked(
    shared_aln: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of a block's modulations is a part of its own, an offset is gathered when asked."""
    sharded: list[nn.Module] = []
    methods: list[tuple[nn.Module, str]] = []
    monkeypatch.setattr(module, "fully_shard", lambda part, **_: sharded.append(part))
    monkeypatch.setattr(module, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(module, "register_fsdp_forward_method", lambda *a: methods.append(a))
    parallel = Parallel(ExecutionConfig(sharding="shard"))
    parallel.count = 2
    sizes = dict(width=16, layers=BLOCKS, heads=2, dimension=4, num_classes=3)
    network = DD2Guidance(family="var", patch_nums=(1, 2), shared_aln=shared_aln, **sizes)
    parallel.prepare(network)
    blocks = list(network.backbone.blocks)
    layers = [] if shared_aln else [block.ada_lin for block in blocks]
    assert sharded == [*layers, *blocks, network.head, network]
    asked = [(block, "modulation") for block in blocks] if shared_aln else []
    assert methods == [(network, "features"), *asked]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_in_a_file_changes(family: str) -> None:
    network = guidance(family)
    names = list(network.state_dict())
    assert not any("blocks." in name for name in names) or family != "llamagen"
    Parallel(ExecutionConfig(checkpoint_activations=True)).prepare(network)
    assert list(network.state_dict()) == names
    assert [name for name, _ in network.named_parameters()] == names


def gradients(network: nn.Module) -> list[torch.Tensor]:
    """Of a sum of squares of what a run's network gives."""
    shape = (2, network.num_tokens, network.dimension)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1])
    if isinstance(network, DD2Generator):
        out = network(noise, labels)
    else:
        out = network(noise, torch.full(shape[:2], 0.5), noise, labels)
    out.square().sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def networks(source: str, name: str, **execution: bool) -> list[nn.Module]:
    """A run's network, prepared so and plain."""
    return [
        getattr(distil.Networks(settings, Parallel(settings.execution)), name).requires_grad_(True)
        for settings in (
            config("var", source={"teacher": source}, execution=execution),
            config("var", source={"teacher": source}),
        )
    ]


@pytest.mark.parametrize("source", RUNS)
@pytest.mark.parametrize("name", ["guidance", "generator", "ema"])
def test_every_network_of_a_run_is_checkpointed(
    source: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    prepared, plain = networks(source, name, checkpoint_activations=True)
    found, expected = gradients(prepared), gradients(plain)
    assert len(calls) == len(plain.backbone.blocks) >= BLOCKS
    assert len(found) == len(expected) > 10
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("source", RUNS)
@pytest.mark.slow
def test_compiled_networks_give_the_same(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler's graphs, without its code generation, which takes minutes."""
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def compile_graphs(self: nn.Module) -> None:
        compiled.append(self)
        real(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_graphs)
    prepared, plain = networks(source, "generator", compile=True)
    assert {*prepared.backbone.blocks, prepared.head} <= set(compiled)
    found, expected = gradients(prepared), gradients(plain)
    assert len(found) == len(expected) > 10
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", [{}, {"blocks": nn.ModuleList()}])
def test_a_backbone_without_blocks_is_refused(blocks: dict) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(1, 1)])
            for name, value in blocks.items():
                setattr(self, name, value)

    with pytest.raises(ValueError, match="network: expected a backbone with blocks, got Odd"):
        Parallel().prepare(Odd())
