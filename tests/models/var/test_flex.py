"""FlexAttention over scales: its mask, and that it is the calls scale by scale, with gradients.

torch refuses its derivative on CPUs by a check of its own, though the operator has a dense one;
without the check that runs here. The code that a GPU would run is the compiler's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parity import var_models
from torch.nn.attention import flex_attention as flex

from dd2_fast.models import DD2Guidance
from dd2_fast.models.var import attention
from dd2_fast.models.var.attention import ByFlex, LowerScales, StrictlyLowerScales
from dd2_fast.models.var.scales import token_slices
from dd2_fast.models.var.tokenizer import PATCH_NUMS
from dd2_fast.training.config import ExecutionConfig
from dd2_fast.training.parallel import Parallel

CPU = torch.device("cpu")
LEVELS = {
    "one": [1],
    "few": [1, 4, 9],
    "across a block": [1, 4, 36, 100, 121],  # of 128 tokens
    "a block exactly": [1, 127],
    "256 px": [side**2 for side in PATCH_NUMS],
}
STRICTLY = pytest.mark.parametrize("strictly", [False, True], ids=["lower", "strictly"])


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention wherever it is asked for, without its compilation."""
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(attention, "flex_runs", lambda *place: True)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex.flex_attention)
    attention._by_flex.cache_clear()
    yield
    attention._by_flex.cache_clear()


def allowed(levels: list[int], strictly: bool) -> torch.Tensor:
    """Which pairs a token sees, from the scale that each token is of."""
    scale = [k for k, count in enumerate(levels) for _ in range(count)]
    pairs = [
        [j == i or other < own or (other == own and not strictly) for j, other in enumerate(scale)]
        for i, own in enumerate(scale)
    ]
    return torch.tensor(pairs)


def ends(levels: list[int]) -> tuple[int, ...]:
    return tuple(own.stop for own in token_slices(levels))


@STRICTLY
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_mask(levels: list[int], strictly: bool) -> None:
    """Of all pairs, and of all blocks of them: what is skipped has none, what is whole all."""
    wanted, count = allowed(levels, strictly), sum(levels)
    mask = ByFlex(ends(levels), strictly, CPU).mask
    place = torch.arange(count)
    assert torch.equal(mask.mask_mod(0, 0, place[:, None], place[None]), wanted)
    assert mask.shape[-2:] == (count, count)
    side = 128
    rows = -(-count // side)
    for i in range(rows):
        kinds = {}
        for name in ("kv", "full_kv"):
            number = int(getattr(mask, f"{name}_num_blocks")[0, 0, i])
            kinds[name] = set(getattr(mask, f"{name}_indices")[0, 0, i, :number].tolist())
        for j in range(rows):
            block = wanted[i * side : (i + 1) * side, j * side : (j + 1) * side]
            assert bool(block.any()) == (j in kinds["kv"] | kinds["full_kv"])
            assert j not in kinds["full_kv"] or block.all()


@STRICTLY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_calls_by_scale(on_cpus: None, dtype: torch.dtype, strictly: bool) -> None:
    levels = LEVELS["across a block"]
    slices, count = token_slices(levels), sum(levels)
    calls = StrictlyLowerScales(slices, CPU) if strictly else LowerScales(slices)
    q, k, v = (torch.randn(2, 3, count, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 3, count, 16, dtype=dtype)
    found, wanted = (way(q, k, v, 0.3) for way in (ByFlex(ends(levels), strictly, CPU), calls))
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    both = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, wanted)]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_autocast_casts_what_it_reads(on_cpus: None) -> None:
    q, k, v = torch.randn(3, 1, 2, 14, 16).unbind()
    with torch.autocast("cpu", torch.bfloat16):
        out = ByFlex(ends(LEVELS["few"]), False, CPU)(q, k, v.bfloat16(), 0.3)
    assert out.dtype == torch.bfloat16
    exact = LowerScales(token_slices(LEVELS["few"]))(q, k, v, 0.3)
    assert float((out - exact).norm() / exact.norm()) < 2e-2


def guidance() -> Any:
    torch.manual_seed(0)
    network = DD2Guidance(
        family="var", patch_nums=(1, 2, 3), dimension=8, num_classes=10, width=32, layers=2,
        heads=2, head_width=16, head_depth=1,
    )  # fmt: skip
    network.tokenizer = var_models.tokenizer()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def gradients(network: Any) -> list[torch.Tensor]:
    noise = torch.randn(2, network.num_tokens, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1])
    out = network(noise, torch.full(noise.shape[:2], 0.5), noise, labels)
    out.square().sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every mask was made of."""
    made: list[Any] = []
    real = flex.create_block_mask

    def create(*arguments: Any, **settings: Any) -> Any:
        made.append(arguments)
        return real(*arguments, **settings)

    monkeypatch.setattr(flex, "create_block_mask", create)
    return made


def test_a_network_that_is_told(on_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    plain, told = guidance(), guidance()
    Parallel(ExecutionConfig(attention="flex")).prepare(told)
    wanted, found = gradients(plain), gradients(told)
    assert len(made) == 1  # for all blocks
    gradients(copy.deepcopy(told))
    assert len(made) == 1  # and for other networks of these scales
    assert list(told.state_dict()) == list(plain.state_dict())
    assert len(found) == len(wanted) > 20
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
def test_in_compiled_and_checkpointed_blocks(
    on_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one graph, by the compiler's graphs without its code generation."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: real(self, backend="aot_eager", fullgraph=True)
    )
    plain = guidance()
    wanted = gradients(plain)
    for checkpointed in (False, True):
        told = guidance()
        settings = dict(attention="flex", compile=True, checkpoint_activations=checkpointed)
        Parallel(ExecutionConfig(**settings)).prepare(told)
        for mine, theirs in zip(gradients(told), wanted, strict=True):
            atol = 1e-5 * float(theirs.abs().max())
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=atol)


def test_a_dd1_student_that_is_told(on_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    student = var_models.student()
    noise, labels = torch.randn(2, student.num_tokens, 8), torch.tensor([3, 10])
    wanted = student(noise, labels)
    assert not made
    student.attention = "flex"
    torch.testing.assert_close(student(noise, labels), wanted, rtol=1e-5, atol=1e-5)
    assert len(made) == 1


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the network makes the calls by scale; a CPU is such a place."""
    cuda = torch.device("cuda", 0)
    backends = {"triton": None}
    monkeypatch.setattr(attention, "available_backends", lambda device: backends)
    runs = attention.flex_runs
    assert runs(cuda, torch.bfloat16, 64) and runs(cuda, torch.float32, 16)
    assert not runs(cuda, torch.float64, 64) and not runs(cuda, torch.float32, 8)
    assert not runs(cuda, torch.float32, 24) and not runs(CPU, torch.float32, 64)
    monkeypatch.setattr(attention, "named", lambda: "torch")
    assert not runs(cuda, torch.float32, 64)
    monkeypatch.setattr(attention, "named", lambda: "")
    backends["triton"] = "triton is not installed"
    assert not runs(cuda, torch.float32, 64)
    made = counted(monkeypatch)
    network = guidance()
    network.backbone.attention = "flex"
    for mine, theirs in zip(gradients(network), gradients(guidance()), strict=True):
        assert torch.equal(mine, theirs)
    assert not made


def test_what_is_neither() -> None:
    with pytest.raises(ValueError, match="attention: expected one of scales, flex, got 'dense'"):
        ExecutionConfig(attention="dense")
