"""The fast forms of attention and upsampling against the plain ones they stand for."""

from __future__ import annotations

import pytest
import torch
from parity import llamagen_models, var_models
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dd2_fast.models import VQTokenizer
from dd2_fast.models.kernels import (
    Linear,
    attention,
    convolution_layout,
    linear,
    linear_gelu,
    upsample_conv,
)

MASK = torch.ones(256, 680, dtype=torch.bool).tril(diagonal=400)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_by_products_is_attention(scale: float | None, mask) -> None:
    """VAR's last scale, where bfloat16 takes the products.

    Scores, weights and result are rounded to 8 bits each: 2^-9 of scores of order 1, of the
    weights and of the result, about 2^-8 together; 2^-7 is allowed.
    """
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 256, 16), torch.randn(2, 3, 680, 16), torch.randn(2, 3, 680, 16)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    options = {"attn_mask": mask, "scale": scale}
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **options)
    found = attention(q, k, v, scale=scale, mask=mask)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() < 2**-7 * wanted.norm()
    if mask is not None:
        changed = attention(q, k.where(MASK.any(0)[:, None], torch.nan), v, scale=scale, mask=mask)
        assert torch.equal(changed.isfinite(), found.isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_attention_is_the_fused_kernel(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 3, 16, 8, dtype=dtype)
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 8, 4, 4), (1, 8, 3, 5), (0, 3, 4, 4)])
def test_upsampling_by_a_transposed_convolution_is_upsampling(shape, layout) -> None:
    """Edges included; (1, 8, 3, 5) has too few pixels for it, and (0, ...) none."""
    torch.manual_seed(0)
    h = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(6, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64)
    doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    wanted = F.conv2d(doubled, weight, bias, padding=1)
    found = upsample_conv(h, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), weight)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-10)


def test_the_layout_has_the_same_values_and_lasts() -> None:
    h = torch.randn(2, 32, 4, 4)
    found = convolution_layout(h)
    assert torch.equal(found, h) and found.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 32, 3, 3)
    for y in (F.conv2d(found, weight), F.group_norm(found, 4), upsample_conv(found, weight, None)):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "family", [llamagen_models.make_tokenizer, var_models.tokenizer, VQTokenizer]
)
def test_every_convolution_of_a_decoder_keeps_the_layout(family, batch: int) -> None:
    """A batch of one too, which torch takes for the plain layout by its stride of the images."""
    tokenizer, strides = family(), set()
    for module in tokenizer.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *args: strides.add(args[2].stride(1)))
    n = getattr(tokenizer, "num_tokens", 16)
    tokenizer.decode(tokenizer.embed(torch.zeros(batch, n, dtype=torch.int64)))
    assert strides == {1}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 60, 96), (300, 96), (2, 3, 96)])
def test_linear_is_linear(shape: tuple[int, ...], bias: bool) -> None:
    """300 rows are oneDNN's, 6 are not; rows of a larger tensor are not next to each other."""
    torch.manual_seed(0)
    layer = Linear(96, 160, bias=bias)
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]
    wanted = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.no_grad():
        found = layer(x)
    assert found.shape == wanted.shape and found.is_contiguous()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    gradient = torch.autograd.grad(linear(x, layer.weight, layer.bias).sum(), layer.weight)[0]
    torch.testing.assert_close(gradient, x.flatten(0, -2).sum(0).expand(160, -1), atol=1e-4, rtol=0)


class Called(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def onednn(self) -> bool:
        return any(name.startswith("mkldnn::_linear") for name in self.names)


ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rows", [300, 70, 6])
@pytest.mark.parametrize("strided", [False, True])
def test_products_with_gelu(dtype: torch.dtype, rows: int, strided: bool) -> None:
    """300 rows are large alone, 70 with GELU, 6 are not; float64 is not oneDNN's."""
    torch.manual_seed(0)
    x = torch.randn(2, rows // 2, 96).to(dtype)
    weight = torch.randn(160, 192)[:, ::2] if strided else torch.randn(160, 96)
    weight, bias = weight.to(dtype) * 0.1, torch.randn(160).to(dtype)
    product = x.double() @ weight.double().T + bias.double()
    for call, least, wanted in (
        (linear, 300, product),
        (linear_gelu, 70, F.gelu(product, approximate="tanh")),
    ):
        with torch.no_grad(), Called() as called:
            found = call(x, weight, bias)
        narrow = dtype == torch.bfloat16
        known = not narrow or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert called.onednn() == (rows >= least and dtype != torch.float64 and known)
        assert found.shape == wanted.shape and found.dtype == dtype and found.is_contiguous()
        error = (found.double() - wanted).abs().max()
        assert error < ROUNDING[dtype] * product.abs().max()


def test_products_that_are_not_onednns() -> None:
    """It has no derivative, knows no autocast and may be missing."""
    x, layer = torch.randn(300, 96), Linear(96, 160)
    with Called() as called:
        layer(x)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert not called.onednn()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch, Called() as called:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        layer(x)
    assert not called.onednn()
