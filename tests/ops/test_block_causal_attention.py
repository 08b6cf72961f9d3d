"""One set of tests for every backend of ``block_causal_attention``."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import COMPILERS, device_of, runnable_backends, unaligned
from pairwise import pairwise
from torch import Tensor
from torch.autograd import forward_ad

from dd2_fast.ops import block_causal_attention, default_backend, registry

BACKENDS = pytest.mark.parametrize(
    "backend", runnable_backends(("torch", "cuda", "cupy", "triton"))
)
VAR = tuple(accumulate(side**2 for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (images, tokens, heads, size, ends), each with the regime it covers; tiles are of 64 tokens
REGIMES: dict[str, tuple] = {
    "one": (1, 1, 1, 16, (1,)),
    "var_tiny": (2, 30, 2, 16, (1, 5, 14, 30)),
    "odd_size": (2, 77, 3, 24, (3, 10, 77)),
    "whole_tiles": (1, 128, 2, 64, (64, 128)),
    "ragged_tiles": (1, 150, 1, 64, (1, 63, 65, 130, 150)),
    "wide_heads": (1, 70, 1, 128, (30, 70)),
    "causal": (2, 70, 2, 32, None),
    "no_vectors": (1, 70, 2, 100, (3, 40, 70)),  # heads of LlamaGen-3B's size, no whole 16 bytes
    "most_blocks": (1, 72, 1, 16, tuple(range(3, 75, 3))),  # 24, as CUDA's kernels take
    "many": (11, 70, 24, 8, (30, 65, 70)),  # blocks, of which CUDA's take twice the queries
}
WIDEST = (1, 40, 1, 256, (9, 40))
MODELS: dict[str, tuple] = {
    "var": (1, 680, 1, 64, VAR),
    "dd1": (1, 681, 1, 64, (1, *(1 + end for end in VAR))),
    "llamagen": (1, 256, 1, 64, None),
}
# gain, rotary, strict, scale
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unit": {"gain": True},
    "unit_strict": {"gain": True, "strict": True},
    "strict": {"strict": True, "scale": 0.0625},
    "rotary": {"rotary": True},
    "all": {"gain": True, "rotary": True, "strict": True, "scale": 0.5},
}
OF_MODELS = {"var": "unit", "dd1": "unit_strict", "llamagen": "rotary"}


def make_inputs(regime: tuple, kind: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments on the CPU; a query and a key are zero."""
    images, count, heads, size, ends = regime
    generator = torch.Generator().manual_seed(count + size)
    qkv = torch.randn(images, count, 3, heads, size, generator=generator)
    qkv[0, count // 2, :2] = 0
    angles = 6 * torch.rand(count, size // 2, generator=generator)
    given = {"qkv": qkv.to(dtype), "ends": ends, **kind}
    if kind.get("gain"):
        given["gain"] = 1 + 10 * torch.rand(heads, generator=generator) * (-1) ** torch.arange(
            heads
        )
    if kind.get("rotary"):
        given["rotary"] = torch.stack([angles.cos(), angles.sin()], -1)
    return given


def definition(
    qkv: Tensor,
    ends: tuple[int, ...] | None,
    gain: Tensor | None = None,
    rotary: Tensor | None = None,
    strict: bool = False,
    scale: float | None = None,
    *,
    inner: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64, and how far from it one may be that rounds what products read, turned
    vectors and weights, by ``inner`` at most.

    A product's terms and their sum are float32: of 24 bits, or of 21 of three products of tf32,
    and tensor cores cut a term off at 2^-24 of the largest.
    """
    x = qkv.double().numpy()
    count, size = x.shape[1], x.shape[4]
    q, k, v = x.transpose(2, 0, 3, 1, 4)
    turned = 0.0
    if rotary is not None:
        turn = (rotary[..., 0] + 1j * rotary[..., 1]).to(torch.complex128).numpy()
        q, k = ((y[..., ::2] + 1j * y[..., 1::2]) * turn for y in (q, k))
        q, k = (np.stack([y.real, y.imag], -1).reshape(v.shape) for y in (q, k))
        turned = 2 * inner + 2.0**-22
    factor = np.float64((1 / size**0.5 if gain is None else 1.0) if scale is None else scale)
    if gain is not None:
        q, k = (y / np.maximum(np.sqrt((y * y).sum(-1, keepdims=True)), 1e-12) for y in (q, k))
        factor = factor * gain.double().numpy()[:, None, None]
    block = np.searchsorted(ends or np.arange(1, count + 1), np.arange(count), side="right")
    allowed = block[:, None] > block if strict else block[:, None] >= block
    allowed = allowed | np.eye(count, dtype=bool)
    score = np.where(allowed, factor * (q @ k.swapaxes(-1, -2)), -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    # The sum over the channels, the inverse lengths, the factor, the exponential.
    each = abs(factor) * (abs(q) @ abs(k).swapaxes(-1, -2))
    off = np.where(allowed, each, 0).max(-1, keepdims=True) * (turned + (2 * size + 32) * 2.0**-24)
    off += inner + (4 * count + 64) * 2.0**-24
    out = weight @ v
    allowance = off * (1 + off) * (weight @ abs(v))
    rounding = torch.finfo(qkv.dtype).eps / 2 * (abs(out) + allowance) + 1e-30
    both = (out, allowance + rounding)
    return tuple(y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1) for y in both)  # type: ignore[return-value]


def assert_within_budget(backend: str, given: dict[str, Any]) -> None:
    device = device_of(backend)
    moved = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()}
    found = block_causal_attention(**moved, backend=backend)
    dtype = given["qkv"].dtype
    inner = 0.0 if backend == "torch" else max(torch.finfo(dtype).eps / 2, 2.0**-21)
    wanted, budget = definition(**given, inner=inner)
    assert found.dtype == dtype and tuple(found.shape) == wanted.shape
    excess = np.abs(found.double().cpu().numpy() - wanted) / budget
    assert excess.max() <= 1, f"{excess.max():.2f} times the budget at {excess.argmax()}"


@BACKENDS
@pairwise(regime=REGIMES, kind=KINDS, dtype=DTYPES)
def test_equals_the_definition(backend: str, regime: tuple, kind: dict, dtype: torch.dtype) -> None:
    assert_within_budget(backend, make_inputs(regime, kind, dtype))


@pytest.mark.parametrize("backend", runnable_backends(("torch", "triton")))
@pairwise(kind=KINDS, dtype=DTYPES)
def test_widest_heads(backend: str, kind: dict, dtype: torch.dtype) -> None:
    assert_within_budget(backend, make_inputs(WIDEST, kind, dtype))


@BACKENDS
@pytest.mark.parametrize("model", MODELS)
def test_one_head_of_a_model(backend: str, model: str) -> None:
    kind = KINDS[OF_MODELS[model]]
    assert_within_budget(backend, make_inputs(MODELS[model], kind, torch.bfloat16))


@pytest.mark.long
@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_all_heads_of_two_images(backend: str, model: str, dtype: torch.dtype) -> None:
    """16 heads, those of VAR-d16 and of LlamaGen-L."""
    _, count, _, size, ends = MODELS[model]
    given = make_inputs((2, count, 16, size, ends), KINDS[OF_MODELS[model]], dtype)
    assert_within_budget(backend, given)


@BACKENDS
@pytest.mark.parametrize("strict", [False, True])
def test_later_blocks_change_nothing(backend: str, strict: bool) -> None:
    ends = (1, 63, 65, 130, 150)
    given = make_inputs((1, 150, 2, 16, ends), {"gain": True, "strict": strict}, torch.float32)
    given = {n: v.to(device_of(backend)) if isinstance(v, Tensor) else v for n, v in given.items()}
    before = block_causal_attention(**given, backend=backend)
    for end in reversed(ends[:-1]):
        given["qkv"][:, end:] = 1e4
        after = block_causal_attention(**given, backend=backend)
        assert torch.equal(after[:, :end], before[:, :end])
        assert not torch.equal(after[:, end:], before[:, end:])


@BACKENDS
def test_strides_and_empty_inputs(backend: str) -> None:
    """What lies beside a view is NaN."""
    given = make_inputs((2, 70, 2, 16, (20, 70)), {"gain": True}, torch.bfloat16)
    given = {n: v.to(device_of(backend)) if isinstance(v, Tensor) else v for n, v in given.items()}
    qkv = given.pop("qkv")

    def call(qkv: Tensor, **changes: Any) -> Tensor:
        return block_causal_attention(qkv, **{**given, **changes}, backend=backend)

    wanted = call(qkv)
    room = torch.full((3, 80, 3, 4, 24), torch.nan, dtype=qkv.dtype, device=qkv.device)
    view = room[1:, 5:75, :, 1:3, 3:19].copy_(qkv)
    assert torch.equal(call(view), wanted)
    assert torch.equal(call(qkv.transpose(1, 4).contiguous().transpose(1, 4)), wanted)
    assert torch.equal(call(unaligned(qkv)), wanted)
    expanded = call(qkv[:1].expand(3, -1, -1, -1, -1))
    assert torch.equal(expanded, wanted[:1].expand(3, -1, -1))
    gain = given["gain"]
    assert torch.equal(call(qkv, gain=torch.stack([gain, gain], 1)[:, 0]), wanted)
    assert call(qkv[:0]).shape == (0, 70, 32)
    assert call(qkv[:, :0], ends=()).shape == call(qkv[:, :0], ends=None).shape == (2, 0, 32)


@BACKENDS
def test_one_token_a_block_is_causal(backend: str) -> None:
    given = make_inputs((1, 70, 2, 16, None), {}, torch.float32)
    qkv = given["qkv"].to(device_of(backend))
    wanted = block_causal_attention(qkv, backend=backend)
    for strict in (False, True):
        found = block_causal_attention(qkv, range(1, 71), strict=strict, backend=backend)
        assert torch.equal(found, wanted)


@BACKENDS
def test_opcheck(backend: str) -> None:
    given = make_inputs(REGIMES["var_tiny"], KINDS["all"], torch.float32)
    given = {n: v.to(device_of(backend)) if isinstance(v, Tensor) else v for n, v in given.items()}
    arguments = (given["qkv"], list(given["ends"]), given["gain"], given["rotary"], True, 0.5)
    operator = torch.ops.dd2_fast.block_causal_attention.default
    torch.library.opcheck(operator, (*arguments, backend))


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    given = make_inputs(REGIMES["var_tiny"], KINDS["unit"], torch.float32)
    given = {n: v.to(device_of(backend)) if isinstance(v, Tensor) else v for n, v in given.items()}
    qkv = given.pop("qkv")

    def mixed(qkv: Tensor) -> Tensor:
        return 2 * block_causal_attention(qkv + 1, **given, backend=backend)

    compiled = torch.compile(mixed, fullgraph=True, backend=compiler)
    for batch in (1, 2):
        torch.testing.assert_close(compiled(qkv[:batch]), mixed(qkv[:batch]))


LIMITS = {"cuda": (128, 24), "cupy": (128, 24), "triton": (256, None)}  # channels, blocks


@pytest.mark.parametrize("backend", LIMITS)
def test_what_a_kernel_does_not_take_is_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And left to another, where none is named."""
    monkeypatch.setattr(
        registry, "_reason", lambda name, device: None if name in (backend, "torch") else "no"
    )
    largest, most = LIMITS[backend]
    wide = torch.zeros(1, 2, 3, 1, largest + 1)
    message = f"'{backend}' cannot run block_causal_attention: .*most {largest} .*d = {largest + 1}"
    with pytest.raises(RuntimeError, match=message):
        block_causal_attention(wide, backend=backend)
    assert block_causal_attention(wide).shape == (1, 2, largest + 1)
    if most is not None:
        qkv, ends = torch.zeros(1, 50, 3, 1, 16), [*range(1, most + 1), 50]
        with pytest.raises(RuntimeError, match=f"at most {most} blocks of tokens, got {most + 1}"):
            block_causal_attention(qkv, ends, backend=backend)
        assert block_causal_attention(qkv, ends).shape == (1, 50, 16)


def test_float64_is_computed_by_the_definition_alone() -> None:
    given = make_inputs(REGIMES["odd_size"], KINDS["all"], torch.float64)
    found = block_causal_attention(**given)
    np.testing.assert_allclose(found.numpy(), definition(**given)[0], rtol=1e-12, atol=1e-14)


def test_derivatives_are_refused() -> None:
    qkv = torch.randn(1, 4, 3, 2, 16)
    for name in ("qkv", "gain", "rotary"):
        given = {"qkv": qkv, "gain": torch.ones(2), "rotary": torch.ones(4, 8, 2)}
        given[name] = given[name].clone().requires_grad_()
        with pytest.raises(ValueError, match=f"^{name}: expected a constant .*no gradient"):
            block_causal_attention(**given)
    refused = pytest.raises(RuntimeError, match="block_causal_attention: has no derivative")
    with refused:
        torch.func.jvp(block_causal_attention, (qkv,), (qkv,))
    with forward_ad.dual_level(), refused:
        block_causal_attention(forward_ad.make_dual(qkv, qkv))


def test_the_callers_autocast_changes_nothing() -> None:
    given = make_inputs(REGIMES["var_tiny"], KINDS["all"], torch.float32)
    with default_backend("torch"):
        wanted = block_causal_attention(**given)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(block_causal_attention(**given), wanted)


BAD = {
    "qkv type": ({"qkv": [0.0]}, TypeError, "qkv: expected a torch.Tensor, got list"),
    "qkv dtype": ({"qkv": torch.zeros(1, 4, 3, 2, 6).long()}, TypeError, "qkv: .*got int64"),
    "qkv shape": ({"qkv": torch.zeros(1, 4, 2, 2, 6)}, ValueError, r"qkv: .*3, H, d\].*4, 2, 2, 6"),
    "no heads": ({"qkv": torch.zeros(1, 4, 3, 0, 6)}, ValueError, "qkv: .*H, d >= 1"),
    "no tensor": ({"qkv": torch.zeros(4, 36)}, ValueError, r"qkv: .*got \[4, 36\]"),
    "ends type": ({"ends": 4}, TypeError, "ends: expected a list of integers, got int"),
    "ends text": ({"ends": "14"}, TypeError, "ends: expected a list of integers, got str"),
    "ends of floats": ({"ends": (1.0, 4)}, TypeError, "ends: .*integers, got float"),
    "ends early": ({"ends": (1, 3)}, ValueError, r"ends: .*to n = 4, got \[1, 3\]"),
    "ends late": ({"ends": (1, 5)}, ValueError, r"ends: .*to n = 4, got \[1, 5\]"),
    "ends fall": ({"ends": (2, 2, 4)}, ValueError, r"ends: .*rise.*got \[2, 2, 4\]"),
    "ends at zero": ({"ends": (0, 4)}, ValueError, r"ends: .*above 0.*got \[0, 4\]"),
    "no ends": ({"ends": ()}, ValueError, r"ends: .*n = 4, got \[\]"),
    "gain shape": ({"gain": torch.ones(2, 1)}, ValueError, r"gain: .*\[2\].*got \[2, 1\]"),
    "gain type": ({"gain": 2.0}, TypeError, "gain: expected a torch.Tensor, got float"),
    "rotary shape": ({"rotary": torch.ones(4, 6)}, ValueError, r"rotary: .*\[4, 3, 2\]"),
    "odd size": (
        {"qkv": torch.zeros(1, 4, 3, 2, 5), "rotary": torch.ones(4, 2, 2)},
        ValueError,
        "qkv: .*even size.*d = 5",
    ),
    "device": ({"gain": torch.ones(2, device="meta")}, ValueError, "gain: expected device cpu"),
    "strict": ({"strict": 1}, TypeError, "strict: expected a bool, got int"),
    "scale type": ({"scale": "1"}, TypeError, "scale: expected a number or None, got str"),
    "scale sign": ({"scale": 0.0}, ValueError, "scale: expected a positive number, got 0"),
    "scale size": ({"scale": float("inf")}, ValueError, "scale: expected a finite number"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
    "no kernel": ({"backend": "cpu"}, RuntimeError, "no 'cpu' backend"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"qkv": torch.zeros(1, 4, 3, 2, 6), "ends": (1, 4)}
    with pytest.raises(error, match=message):
        block_causal_attention(**{**arguments, **change})
