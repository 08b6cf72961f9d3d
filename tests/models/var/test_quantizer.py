"""Scales and f_hat: the batched form against a loop over the scales, causality, dtypes."""

from __future__ import annotations

import pytest
import torch
from models.var import plain
from parity.var_models import relative_rms

from dd2_fast.models.var.quantizer import MultiScaleQuantizer
from dd2_fast.models.var.scales import Scales

RELEASED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CASES = {
    "two scales": (1, 2),
    "gaps": (1, 3, 7),
    "tiny": (1, 2, 3, 4),
    "256 px": RELEASED,
    "512 px": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}


def make(sides, dimension: int = 5, dtype=torch.float32):
    scales = Scales.of(list(sides))
    quantizer = MultiScaleQuantizer(scales, vocabulary=11, dimension=dimension, phis=4).to(dtype)
    state = {f"quantize.{name}": value for name, value in quantizer.state_dict().items()}
    return quantizer.requires_grad_(False), state, scales


@pytest.mark.parametrize("sides", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_batched_form_equals_the_loop(sides, batch: int):
    quantizer, state, scales = make(sides, dtype=torch.float64)
    x = torch.randn(batch, scales.num_tokens, 5, dtype=torch.float64)
    f_hat, inputs = plain.accumulate(state, x, sides)
    torch.testing.assert_close(quantizer.f_hat(x), f_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quantizer.next_inputs(x), inputs, rtol=1e-12, atol=1e-12)
    running = None
    for k, own in enumerate(scales.slices):
        running = quantizer.add_scale(running, x[:, own], k)
        if k + 1 < scales.count:
            following = scales.slices[k + 1]
            row = quantizer.next_input(running, k + 1)
            expected = inputs[:, following.start - 1 : following.stop - 1]
            torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(running, f_hat, rtol=1e-12, atol=1e-12)


def test_phis_of_the_released_ten_scales():
    assert Scales.of(RELEASED).phi_indices(4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_inputs_depend_on_lower_scales_only():
    quantizer, _, scales = make((1, 2, 3, 4))
    x = torch.randn(1, scales.num_tokens, 5).requires_grad_()
    inputs = quantizer.next_inputs(x)
    for k, own in enumerate(scales.slices[1:], start=1):
        rows = inputs[:, own.start - 1 : own.stop - 1]
        (gradient,) = torch.autograd.grad(rows.square().sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [i < own.start for i in range(scales.num_tokens)], k


def test_a_bad_token_spoils_no_lower_scale():
    quantizer, _, scales = make((1, 2, 3, 4))
    x = torch.randn(2, scales.num_tokens, 5)
    clean = quantizer.next_inputs(x)
    x[0, scales.slices[2]] = torch.nan
    rows = quantizer.next_inputs(x)
    below = scales.slices[2].stop - 1
    assert torch.equal(rows[0, :below], clean[0, :below]) and torch.equal(rows[1], clean[1])
    assert bool(rows[0, below:].isnan().any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_stay_in_float32(dtype: torch.dtype):
    """Cast parameters and inputs are rounded once each: the maps and the sums are not."""
    quantizer, state, scales = make(RELEASED, dtype=dtype)
    x = torch.randn(2, scales.num_tokens, 5).to(dtype)
    wide = {name: value.double() for name, value in state.items()}
    f_hat, inputs = plain.accumulate(wide, x.double(), RELEASED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer.f_hat(x).dtype == quantizer.next_inputs(x).dtype == torch.float32
        assert relative_rms(quantizer.f_hat(x), f_hat) < 1e-6
        assert relative_rms(quantizer.next_inputs(x), inputs) < 1e-6


def test_a_first_call_under_inference_mode_leaves_gradients_possible():
    quantizer, _, scales = make((1, 2, 3))
    x = torch.randn(1, scales.num_tokens, 5)
    with torch.inference_mode():
        quantizer.next_inputs(x)
    quantizer.next_inputs(x.requires_grad_()).sum().backward()
    assert bool((x.grad[:, : scales.slices[1].stop] != 0).any())


def test_encode_takes_the_nearest_code_of_what_is_left():
    quantizer, state, scales = make((1, 2, 3, 4))
    features = torch.randn(2, 5, 4, 4)
    tokens = quantizer.encode(features)
    codebook = state["quantize.embedding.weight"]
    for k, own in enumerate(scales.slices):
        coded = codebook[tokens].clone()
        coded[:, own.start :] = 0
        below, _ = plain.accumulate(state, coded, scales.sides)
        for j in range(k, scales.count):  # a scale of zeros still adds half its bias
            zero = torch.zeros(1, 5, 4, 4)
            below = below - plain.phi(state, zero, j, scales.count)
        side = scales.sides[k]
        rest = torch.nn.functional.interpolate(features - below, size=(side, side), mode="area")
        distance = torch.cdist(rest.flatten(2).transpose(1, 2).double(), codebook.double())
        assert torch.equal(distance.argmin(-1), tokens[:, own])


@pytest.mark.parametrize(
    ("patch_nums", "error", "words"),
    [
        ("1234", TypeError, "patch_nums: expected a list"),
        (5, TypeError, "patch_nums: expected a list"),
        ([1, 2.0], TypeError, "patch_nums: expected a list of integers"),
        ([1, True], TypeError, "patch_nums: expected a list of integers"),
        ([], ValueError, "at least two sides"),
        ([1], ValueError, "at least two sides"),
        ([2, 3], ValueError, "start at 1"),
        ([1, 3, 2], ValueError, "rise"),
    ],
)
def test_bad_patch_nums(patch_nums, error, words: str):
    with pytest.raises(error, match=words):
        Scales.of(patch_nums)
