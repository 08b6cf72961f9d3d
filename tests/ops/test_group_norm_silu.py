"""One set of tests for every backend of ``group_norm_silu``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import COMPILERS, device_of, pairwise_with_backends, runnable_backends, unaligned
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from dd2_fast.ops import default_backend, group_norm_silu

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (images, channels, sides, groups), each with the regime it covers; a load takes eight channels
REGIMES: dict[str, tuple] = {
    "one": (1, 1, (), 1),
    "one_pixel": (2, 32, (1, 1), 8),
    "groups_of_5": (2, 160, (9, 7), 32),
    "groups_of_10": (1, 320, (16, 16), 32),
    "groups_of_20": (1, 640, (5, 5), 32),
    "ragged_channels": (2, 30, (11,), 6),
    "group_a_channel": (3, 7, (13, 5), 7),
    "one_group": (1, 24, (33,), 1),
    "several_parts": (2, 16, (71, 30), 4),
    "widest": (1, 2056, (3,), 4),
}
# bias of a convolution, residual, SiLU
KINDS: dict[str, tuple[bool, bool, bool]] = {
    "plain": (False, False, True),
    "norm_alone": (False, False, False),
    "bias": (True, False, True),
    "residual": (False, True, True),
    "bias_and_residual": (True, True, True),
    "norm_of_sum": (True, True, False),
}


def make_inputs(regime: tuple, kind: tuple, dtype: torch.dtype) -> dict[str, Any]:
    """Channels' means are twice their deviations; some are 30 times as wide."""
    images, channels, sides, groups = regime
    generator = torch.Generator().manual_seed(channels + images)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    wide = torch.where(torch.arange(channels) % 11 == 5, 30.0, 1.0)
    x = (normal(images, *sides, channels) + 2 * normal(channels)) * wide
    given = {"x": x.to(dtype).movedim(-1, 1), "weight": normal(channels), "bias": normal(channels)}
    given |= {"groups": groups, "eps": 1e-6, "activation": "silu" if kind[2] else None}
    if kind[0]:
        given["pre_bias"] = normal(channels)
    if kind[1]:
        given["residual"] = normal(images, *sides, channels).to(dtype).movedim(-1, 1)
    return given


def moved(given: dict[str, Any], backend: str) -> dict[str, Any]:
    device = device_of(backend)
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()} | {
        "backend": backend
    }


def wide(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()


def of_channels(vector: Tensor, ndim: int) -> np.ndarray:
    return wide(vector).reshape(-1, *[1] * (ndim - 2))


def definition(s: np.ndarray, given: dict[str, Any], eps: float) -> tuple[np.ndarray, np.ndarray]:
    """The result of sums ``s`` in float64, and how far from it single precision may be.

    A mean is of at most a hundred numbers at a time, whose errors add up as a random walk does;
    it and the value are times 1 / deviation.
    """
    unit = 2.0**-24
    grouped = s.reshape(len(s), given["groups"], -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    rate = 1 / np.sqrt(variance + eps)
    normed = ((grouped - mean) * rate).reshape(s.shape)
    terms = ((abs(grouped) + abs(grouped).mean(-1, keepdims=True)) * rate).reshape(s.shape)
    weight, bias = (of_channels(given[n], s.ndim) for n in ("weight", "bias"))
    z = normed * weight + bias
    off = unit * (abs(weight) * (16 * terms + 32 * abs(normed)) + 4 * (abs(z) + abs(bias)))
    if given["activation"] is None:
        return z, off
    y = z / (1 + np.exp(-z))
    return y, 1.1 * off + 2.0**-20 * abs(y) + 2.0**-22 * abs(z * y)


def assert_within_budget(found: Any, given: dict[str, Any]) -> None:
    """The sum to two roundings of its terms and its own, the result as of the returned sum."""
    dtype, x = given["x"].dtype, wide(given["x"])
    half = torch.finfo(dtype).eps / 2
    least = torch.finfo(dtype).smallest_normal * half  # where results are subnormal
    s, terms = x.copy(), abs(x)
    for name in ("pre_bias", "residual"):
        if name in given:
            value = given[name]
            value = of_channels(value, x.ndim) if name == "pre_bias" else wide(value)
            s, terms = s + value, terms + abs(value)
    y = found
    if "residual" in given:
        total, y = found
        assert total.dtype == dtype and tuple(total.shape) == x.shape
        assert total.movedim(1, -1).is_contiguous()
        assert (abs(wide(total) - s) <= half * abs(s) + 2.0**-22 * terms + least).all()
        s = wide(total)
    assert y.dtype == dtype and tuple(y.shape) == x.shape and y.movedim(1, -1).is_contiguous()
    wanted, off = definition(s, given, given["eps"])
    if "pre_bias" in given and "residual" not in given:
        off = off + 2.0**-22 * abs(of_channels(given["weight"], x.ndim)) * terms
    excess = abs(wide(y) - wanted) / (off + half * (abs(wanted) + off) + least)
    assert excess.max() <= 1, f"{excess.max():.2f} times the budget at {excess.argmax()}"


@pairwise_with_backends(regime=REGIMES, kind=KINDS, dtype=DTYPES)
def test_equals_the_definition(
    backend: str, regime: tuple, kind: tuple, dtype: torch.dtype
) -> None:
    given = make_inputs(regime, kind, dtype)
    assert_within_budget(group_norm_silu(**moved(given, backend)), given)


@BACKENDS
@pytest.mark.parametrize("level", [1000.0, -3e4])
def test_far_from_zero(backend: str, level: float) -> None:
    """Where E[x^2] - mean^2 would have no digit left; the first pixels are far from the others."""
    given = make_inputs((2, 40, (37, 9), 8), KINDS["plain"], torch.float32)
    given["x"] = given["x"] + level
    given["x"][:, :, :1, 0] = 0
    given["eps"] = 1e-2
    assert_within_budget(group_norm_silu(**moved(given, backend)), given)


@BACKENDS
def test_constant_maps(backend: str) -> None:
    """Of a variance of zero: roundings are times 1 / sqrt(eps)."""
    given = make_inputs((2, 32, (6, 6), 4), KINDS["norm_alone"], torch.float32)
    given["x"] = torch.full_like(given["x"], 0.7)
    found = group_norm_silu(**moved(given, backend))
    assert_within_budget(found, given)
    assert (found == found[:, :, :1, :1]).all()


@BACKENDS
@pytest.mark.parametrize("residual", [False, True])
def test_nan_and_infinity_stay_in_their_group(backend: str, residual: bool) -> None:
    given = make_inputs((3, 40, (20, 9), 8), KINDS["residual" if residual else "plain"], DTYPES[1])
    wanted = group_norm_silu(**moved(given, backend))
    given["x"][0, 7, 3, 3], given["x"][2, 39, 0, 0] = torch.nan, torch.inf
    found = group_norm_silu(**moved(given, backend))
    if residual:
        wanted, found = wanted[1], found[1]
    spoilt = torch.zeros(3, 40, dtype=torch.bool)
    spoilt[0, 5:10] = spoilt[2, 35:] = True
    assert torch.equal(found[~spoilt], wanted[~spoilt])
    assert found[spoilt].isnan().any(-1).any(-1).all()


@BACKENDS
def test_strides_and_empty_inputs(backend: str) -> None:
    """What lies beside a view is NaN."""
    given = moved(make_inputs((2, 32, (6, 5), 4), KINDS["bias_and_residual"], DTYPES[1]), backend)
    x, residual = given.pop("x"), given.pop("residual")

    def call(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return group_norm_silu(x, residual=residual, **given)

    wanted = call(x, residual)
    room = torch.full((3, 8, 9, 40), torch.nan, dtype=x.dtype, device=x.device).movedim(-1, 1)
    views = [room.clone()[1:, 3:35, 1:7, 2:7].copy_(value) for value in (x, residual)]
    others = [value.contiguous() for value in (x, residual)]
    for given_so in (views, others, [unaligned(x.movedim(1, -1)).movedim(-1, 1), residual]):
        assert all(map(torch.equal, call(*given_so), wanted))
    expanded = call(x[:1].expand(3, -1, -1, -1), residual[:1].expand(3, -1, -1, -1))
    assert torch.equal(expanded[1], wanted[1][:1].expand(3, -1, -1, -1))
    vector = given["weight"]
    given["weight"] = torch.stack([vector, vector], 1)[:, 0]
    assert all(map(torch.equal, call(x, residual), wanted))
    for empty in (x[:0], x[:, :, :0]):
        assert all(one.shape == empty.shape for one in call(empty, empty))


@BACKENDS
def test_images_and_runs_change_nothing(backend: str) -> None:
    """An image alone gives the same bits where as many blocks share it, and so does another run."""
    given = moved(make_inputs((3, 64, (30, 30), 16), KINDS["plain"], DTYPES[0]), backend)
    wanted = group_norm_silu(**given)
    assert torch.equal(group_norm_silu(**given), wanted)
    alone = group_norm_silu(**given | {"x": given["x"][1:2]})
    torch.testing.assert_close(alone, wanted[1:2], rtol=1e-5, atol=1e-5)


@BACKENDS
def test_opcheck(backend: str) -> None:
    given = moved(make_inputs((2, 16, (5,), 4), KINDS["bias_and_residual"], DTYPES[0]), backend)
    x, residual = (given[name].movedim(1, -1).contiguous() for name in ("x", "residual"))
    for pre_bias, other in ((given["pre_bias"], residual), (None, None)):
        arguments = (x, given["weight"], given["bias"], 4, 1e-6, True, pre_bias, other, backend)
        torch.library.opcheck(torch.ops.dd2_fast.group_norm_silu.default, arguments)


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    given = moved(make_inputs((2, 16, (5, 6), 4), KINDS["residual"], DTYPES[0]), backend)
    x, residual = given.pop("x"), given.pop("residual")

    def block(x: Tensor, residual: Tensor) -> Tensor:
        total, y = group_norm_silu(x + 1, residual=residual, **given)
        return 2 * y + total

    compiled = torch.compile(block, fullgraph=True, backend=compiler)
    for batch in (1, 2):
        wanted = block(x[:batch], residual[:batch])
        torch.testing.assert_close(compiled(x[:batch], residual[:batch]), wanted)


@pytest.mark.parametrize("backend", runnable_backends(("cpu",)))
def test_threads_change_nothing(backend: str) -> None:
    given = make_inputs((2, 40, (60, 60), 8), KINDS["bias_and_residual"], DTYPES[0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = group_norm_silu(**given, backend=backend)
        torch.set_num_threads(3)
        assert all(map(torch.equal, group_norm_silu(**given, backend=backend), wanted))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", runnable_backends(("cpu",)))
def test_every_half_is_rounded_as_torch_does(backend: str) -> None:
    """Sums of zero and all kinds of floats: subnormal, halfway, too large, not a number."""
    bits = torch.arange(0, 2**32, 65_521).to(torch.int32)[: 2**16]
    values = bits.view(torch.float32)
    ties = torch.arange(2**15).to(torch.int16).view(torch.float16).float()
    values = torch.cat([values, ties[:-1] + ties.diff() / 2]).nan_to_num(nan=torch.nan)
    for dtype in DTYPES[1:]:
        x = torch.zeros(1, len(values), dtype=dtype)
        one = torch.ones(len(values))
        total, _ = group_norm_silu(
            x, one, one, 1, eps=1.0, pre_bias=values, residual=x, backend=backend
        )
        torch.testing.assert_close(total[0], values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", runnable_backends(("cuda", "cupy")))
def test_more_channels_are_refused(backend: str) -> None:
    x = torch.zeros(1, 4104, 2, device=device_of(backend))
    with pytest.raises(RuntimeError, match="at most 4096 channels, got C = 4104"):
        group_norm_silu(x, x[0, :, 0], x[0, :, 0], 8, eps=1e-6, backend=backend)


def test_float64_is_computed_by_the_definition_alone() -> None:
    given = make_inputs(REGIMES["groups_of_5"], KINDS["bias"], torch.float64)
    x = given["x"] + given["pre_bias"].double()[:, None, None]
    wanted = F.silu(F.group_norm(x, 32, given["weight"].double(), given["bias"].double(), 1e-6))
    torch.testing.assert_close(group_norm_silu(**given), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="'cpu' cannot run group_norm_silu.*float64"):
        group_norm_silu(**given, backend="cpu")


def test_derivatives_are_refused() -> None:
    given = make_inputs(REGIMES["ragged_channels"], KINDS["bias_and_residual"], torch.float32)
    for name in ("x", "weight", "bias", "pre_bias", "residual"):
        changed = {**given, name: given[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=f"^{name}: expected a constant .*no gradient"):
            group_norm_silu(**changed)
    x = given.pop("x")
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no derivative"):
        group_norm_silu(forward_ad.make_dual(x, x), **given)


def test_the_callers_autocast_changes_nothing() -> None:
    given = make_inputs(REGIMES["ragged_channels"], KINDS["bias"], torch.float32)
    with default_backend("torch"):
        wanted = group_norm_silu(**given)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(group_norm_silu(**given), wanted)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x type": ({"x": [0.0]}, TypeError, "x: expected a torch.Tensor, got list"),
    "x dtype": ({"x": torch.zeros(2, 6, 3).int()}, TypeError, "x: .*got int32"),
    "x shape": ({"x": torch.zeros(6)}, ValueError, r"x: expected shape \[B, C, \*\].*got \[6\]"),
    "no channels": ({"x": torch.zeros(2, 0, 3)}, ValueError, r"x: .*C >= 1, got \[2, 0, 3\]"),
    "weight": ({"weight": torch.ones(5)}, ValueError, r"weight: expected shape \[6\].*\[5\]"),
    "no weight": ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
    "bias": ({"bias": torch.ones(6, 1)}, ValueError, r"bias: expected shape \[6\].*\[6, 1\]"),
    "pre_bias": ({"pre_bias": 1.0}, TypeError, "pre_bias: expected a torch.Tensor, got float"),
    "residual": ({"residual": torch.zeros(2, 6)}, ValueError, r"residual: .*\[2, 6, 3\].*\[2, 6\]"),
    "residual dtype": (
        {"residual": torch.zeros(2, 6, 3).half()},
        TypeError,
        "residual: expected dtype float32, got float16",
    ),
    "groups": ({"groups": 4}, ValueError, "groups: expected a divisor of C = 6 .*got 4"),
    "no groups": ({"groups": 0}, ValueError, "groups: expected at least 1, got 0"),
    "groups type": ({"groups": 2.0}, TypeError, "groups: expected an int, got float"),
    "eps": ({"eps": 0.0}, ValueError, "eps: expected a positive number, got 0.0"),
    "eps type": ({"eps": "1e-6"}, TypeError, "eps: expected a number, got str"),
    "activation": ({"activation": "gelu"}, ValueError, "activation: expected one of 'silu', got"),
    "device": ({"bias": torch.ones(6, device="meta")}, ValueError, "bias: expected device cpu"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    x = torch.zeros(2, 6, 3)
    given = {"x": x, "weight": torch.ones(6), "bias": torch.zeros(6), "groups": 2, "eps": 1e-6}
    with pytest.raises(error, match=message):
        group_norm_silu(**given | change)
