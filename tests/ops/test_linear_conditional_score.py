"""``linear_conditional_score`` on every backend of ``conditional_score``: what the head and then
the operator give, in any number of chunks, without the memory of the logits."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ops.cases import (
    COMPILERS,
    GPU_BACKENDS,
    assert_once_differentiable,
    device_of,
    pairwise_with_backends,
    relative_error,
    runnable_backends,
)
from processes import run_python
from torch import Tensor

from dd2_fast.ops import conditional_score, linear_conditional_score
from dd2_fast.ops.linear_conditional_score import chunks
from dd2_fast.ops.registry import BACKENDS as BACKEND_NAMES

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (rows, width, vocabulary, dim, draws, guided, bias, top_k, top_p); a chunk has 7 rows of tokens
REGIMES = {
    "one": (1, 1, 1, 1, None, False, False, 0, 1.0),
    "less_than_a_chunk": (5, 8, 40, 3, None, True, True, 0, 1.0),
    "one_chunk": (7, 8, 40, 3, 2, False, True, 0, 1.0),
    "a_chunk_and_one_row": (8, 24, 101, 5, None, True, False, 17, 0.9),
    "ragged_draws": (25, 24, 260, 17, 3, True, True, 0, 1.0),
    "top_k_only": (20, 32, 512, 8, 2, True, True, 90, 1.0),
    "top_p_only": (20, 32, 512, 8, None, False, True, 0, 0.8),
}
EMPTY = pytest.mark.parametrize("shape", [(0, None), (4, 0), (0, 3)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "rows_of_logits", lambda *_: 7)


def make_inputs(
    regime: tuple, backend: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict:
    """Halves and integers so small that every logit is exact in every dtype, whatever the order of
    its sum: no filter can keep another code because the head rounded."""
    rows, width, vocabulary, dim, draws, guided, bias, top_k, top_p = regime
    generator = torch.Generator().manual_seed(seed)
    device = "cpu" if backend == "float64" else device_of(backend)
    work = torch.float64 if backend == "float64" else torch.float32
    dtype = work if backend == "float64" else dtype

    def whole(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)

    hidden, uncond = whole(rows, width).clamp(-1, 1), whole(rows, width).clamp(-1, 1)
    lead = (rows,) if draws is None else (rows, draws)
    tokens = [torch.randn(*lead, dim, generator=generator), torch.rand(lead, generator=generator)]
    scale = 1 + 2 * torch.rand(rows, generator=generator)
    codebook = torch.randn(vocabulary, dim, generator=generator)
    return {
        "hidden": hidden,
        "weight": whole(vocabulary, width) / 2,
        "bias": whole(vocabulary) / 2 if bias else None,
        "x_t": tokens[0].to(device, work),
        "t": (tokens[1] * 0.9 + 0.1).to(device, work),
        "codebook": codebook.to(device, work),
        "uncond_hidden": uncond if guided else None,
        "guidance_scale": scale.to(device, work) if guided else 1.0,
        "top_k": top_k,
        "top_p": top_p,
        "backend": "torch" if backend == "float64" else backend,
    }


def head_and_score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, x_t: Tensor, t: Tensor, codebook: Tensor,
    uncond_hidden: Tensor | None = None, **options,
) -> Tensor:  # fmt: skip
    uncond = None if uncond_hidden is None else F.linear(uncond_hidden, weight, bias)
    logits = F.linear(hidden, weight, bias)
    return conditional_score(x_t, t, logits, codebook, uncond_logits=uncond, **options)


def with_gradient(function, arguments: dict, **options) -> tuple[Tensor, Tensor]:
    x_t = arguments["x_t"].clone().requires_grad_()
    out = function(**{**arguments, "x_t": x_t}, **options)
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    (gradient,) = torch.autograd.grad(out, x_t, direction.reshape(out.shape))
    return out.detach(), gradient


@pairwise_with_backends(regime=REGIMES, dtype=DTYPES)
@pytest.mark.usefixtures("small_chunks")
def test_equals_head_and_score(backend: str, dtype: torch.dtype, regime: tuple) -> None:
    """The compiled kernels treat a row alike in any chunk; torch's products round as they like."""
    arguments = make_inputs(regime, backend, dtype)
    for prediction in ("x0", "score", "velocity"):
        x0, gradient = with_gradient(linear_conditional_score, arguments, prediction=prediction)
        wanted = with_gradient(head_and_score, arguments, prediction=prediction)
        if backend == "cpu":
            assert torch.equal(x0, wanted[0]) and torch.equal(gradient, wanted[1])
        else:
            torch.testing.assert_close(x0, wanted[0], atol=2e-4, rtol=1e-5)
            torch.testing.assert_close(gradient, wanted[1], atol=1e-3, rtol=1e-4)


@pairwise_with_backends(regime=REGIMES, dtype=DTYPES)
@pytest.mark.usefixtures("small_chunks")
def test_matches_float64(backend: str, dtype: torch.dtype, regime: tuple) -> None:
    exact, exact_gradient = with_gradient(
        head_and_score, make_inputs(regime, "float64"), prediction="x0"
    )
    x0, gradient = with_gradient(
        linear_conditional_score, make_inputs(regime, backend, dtype), prediction="x0"
    )
    assert x0.dtype == torch.float32
    assert relative_error(x0, exact) < 1e-4
    if exact_gradient.norm() > 1e-6:
        assert relative_error(gradient, exact_gradient) < 1e-3


@BACKENDS
def test_a_real_head(backend: str) -> None:
    """Logits that round, a vocabulary and width of a model, the package's own chunk, three of
    them; without filters, whose thresholds would make a jump of the head's rounding."""
    generator = torch.Generator().manual_seed(0)
    rows, width, vocabulary, dim = 400, 256, 1024, 32
    sizes = ((rows, width), (rows, width), (vocabulary, width), (vocabulary,), (rows, dim))
    hidden, uncond, weight, bias, x_t = (torch.randn(*s, generator=generator) for s in sizes)
    inputs = {
        "hidden": hidden, "uncond_hidden": uncond, "weight": weight / 8, "bias": bias, "x_t": x_t,
        "t": torch.rand(rows, generator=generator) * 0.8 + 0.2,
        "codebook": torch.randn(vocabulary, dim, generator=generator),
    }  # fmt: skip
    doubles = {name: value.double() for name, value in inputs.items()}
    exact = head_and_score(**doubles, guidance_scale=1.5, prediction="x0")
    inputs = {name: value.to(device_of(backend)) for name, value in inputs.items()}
    options = {"guidance_scale": 1.5, "prediction": "x0", "backend": backend}
    apart = relative_error(head_and_score(**inputs, **options), exact)
    together = relative_error(linear_conditional_score(**inputs, **options), exact)
    assert together < 1e-4 and together < 2 * apart + 2e-6


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", runnable_backends([b for b in BACKEND_NAMES if b != "torch"]))
def test_other_derivatives_are_refused(backend: str) -> None:
    arguments = make_inputs(REGIMES["one_chunk"], backend)
    x_t = arguments.pop("x_t")
    assert_once_differentiable(
        "linear_conditional_score", lambda x: linear_conditional_score(x_t=x, **arguments), x_t
    )


def test_reference_gradcheck() -> None:
    arguments = make_inputs(REGIMES["a_chunk_and_one_row"], "float64")
    x_t = arguments.pop("x_t").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: linear_conditional_score(x_t=x, **arguments), (x_t,))


@BACKENDS
@pytest.mark.usefixtures("small_chunks")
def test_invalid_rows_are_nan_alone(backend: str) -> None:
    arguments = make_inputs(REGIMES["ragged_draws"], backend)
    clean = linear_conditional_score(**arguments)
    arguments["hidden"][3, 0] = torch.nan
    arguments["uncond_hidden"][16, 2] = torch.inf
    arguments["guidance_scale"][24] = torch.nan
    out = linear_conditional_score(**arguments)
    bad = torch.zeros(25, dtype=torch.bool)
    bad[[3, 16, 24]] = True
    assert out[bad].isnan().all()
    torch.testing.assert_close(out[~bad], clean[~bad])


@BACKENDS
@pytest.mark.usefixtures("small_chunks")
def test_minus_infinity_in_the_bias_removes_codes(backend: str) -> None:
    arguments = make_inputs(REGIMES["top_k_only"], backend)
    arguments["bias"][:100] = -torch.inf
    out = linear_conditional_score(**arguments)
    for name in ("bias", "weight", "codebook"):
        arguments[name] = arguments[name][100:]
    torch.testing.assert_close(
        out, linear_conditional_score(**arguments), atol=2e-3, rtol=1e-4
    )  # a score is x0 over t^2, here up to 100


@BACKENDS
@pytest.mark.usefixtures("small_chunks")
def test_strided_inputs_and_leading_shapes(backend: str) -> None:
    plain = make_inputs(REGIMES["top_k_only"], backend)
    wanted = linear_conditional_score(**plain)
    strided = dict(plain)
    for name in ("hidden", "uncond_hidden", "weight", "codebook"):
        strided[name] = plain[name].T.contiguous().T
        assert not strided[name].is_contiguous()
    for name in ("bias", "x_t"):
        strided[name] = plain[name].repeat_interleave(2, dim=-1)[..., ::2]
        assert not strided[name].is_contiguous()
    close = {"atol": 1e-3, "rtol": 1e-4}
    torch.testing.assert_close(linear_conditional_score(**strided), wanted, **close)
    shaped = dict(plain)
    for name in ("hidden", "uncond_hidden", "x_t", "t", "guidance_scale"):
        shaped[name] = plain[name].reshape(4, 5, *plain[name].shape[1:])
    out = linear_conditional_score(**shaped)
    torch.testing.assert_close(out, wanted.reshape(4, 5, 2, 8), **close)
    single = dict(plain, guidance_scale=plain["guidance_scale"][3])
    for name in ("hidden", "uncond_hidden", "x_t", "t"):
        single[name] = plain[name][3]
    torch.testing.assert_close(linear_conditional_score(**single), wanted[3], **close)


@BACKENDS
@EMPTY
def test_no_tokens(backend: str, shape: tuple) -> None:
    arguments = make_inputs((shape[0], 4, 20, 3, shape[1], True, True, 0, 1.0), backend)
    x_t = arguments.pop("x_t").requires_grad_()
    score = linear_conditional_score(x_t=x_t, **arguments)
    assert score.shape == x_t.shape
    score.sum().backward()
    assert x_t.grad.shape == x_t.shape


@BACKENDS
@pytest.mark.usefixtures("small_chunks")
def test_opcheck(backend: str) -> None:
    a = make_inputs(REGIMES["a_chunk_and_one_row"], backend)
    bias = a["weight"].new_zeros(101)
    scale = torch.ones(8, device=bias.device)
    for uncond, offset in ((a["uncond_hidden"], bias), (None, None)):
        torch.library.opcheck(
            torch.ops.dd2_fast.linear_conditional_x0.default,
            (a["x_t"][:, None].clone().requires_grad_(), a["t"][:, None], a["hidden"], uncond,
             a["weight"], offset, scale, a["codebook"], 17, 0.9, backend),
        )  # fmt: skip


@BACKENDS
@COMPILERS
@pytest.mark.usefixtures("small_chunks")
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    arguments = make_inputs(REGIMES["ragged_draws"], backend)
    x_t = arguments.pop("x_t")

    def loss(x: Tensor) -> Tensor:
        return linear_conditional_score(x_t=x * 1.5, **arguments, prediction="x0").square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    eager_x, compiled_x = (x_t.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(compiled(compiled_x), loss(eager_x))
    compiled(compiled_x).backward()
    loss(eager_x).backward()
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
@pytest.mark.usefixtures("small_chunks")
def test_cuda_graph(backend: str) -> None:
    arguments = make_inputs(REGIMES["top_k_only"], backend)
    wanted = linear_conditional_score(**arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear_conditional_score(**arguments)
    captured.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(captured, wanted)


def test_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for the head's product and every thread; bytes on a GPU, where one row always fits."""
    on_gpu = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    assert chunks.rows_of_logits(on_gpu, 4096, 1) == 2 * chunks.rows_of_logits(on_gpu, 4096, 2)
    assert chunks.rows_of_logits(on_gpu, 4096, 2) * 2 * 4096 * 2 == 2**27
    assert chunks.rows_of_logits(on_gpu, 2**30, 2) == 1
    hidden = torch.zeros(1, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [chunks.rows_of_logits(hidden, 4096, n) for n in (1, 2)] == [576, 288]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert chunks.rows_of_logits(hidden, 4096, 2) == 64 * 12


MEMORY = """
import sys
import torch
import torch.nn.functional as F
from dd2_fast.ops import conditional_score, linear_conditional_score

torch.set_num_threads(1)
backend = sys.argv[1]
weight, codebook = torch.randn(8192, 16), torch.randn(8192, 4)


def step(rows, fused):
    x_t = torch.randn(rows, 4, requires_grad=True)
    cond, uncond = torch.randn(2, rows, 16)
    options = {"guidance_scale": 1.5, "backend": backend}
    if fused:
        out = linear_conditional_score(
            cond, weight, None, x_t, 0.5, codebook, uncond_hidden=uncond, **options
        )
    else:
        logits, uncond = F.linear(cond, weight), F.linear(uncond, weight)
        out = conditional_score(x_t, 0.5, logits, codebook, uncond_logits=uncond, **options)
    out.sum().backward()


def peak():
    # ru_maxrss would start at that of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


for fused in (True, False):  # the smaller peak first
    step(150, fused)
    before = peak()
    step(3000, fused)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", runnable_backends(("cpu", "torch")))
@pytest.mark.slow
def test_peak_memory_is_below_the_logits(backend: str, tmp_path: Path) -> None:
    """Of a process's own: forward and backward, 3000 tokens after a warm-up with 150."""
    fused, apart = map(int, run_python("-c", MEMORY, backend, folder=tmp_path).split())
    assert apart > 0.8 * 2 * 3000 * 8192 * 4
    assert fused < apart / 4


BAD = {
    "hidden type": ({"hidden": [0.0]}, TypeError, "hidden: expected a torch.Tensor, got list"),
    "hidden dtype": ({"hidden": torch.zeros(4, 6).int()}, TypeError, "hidden: .*got int32"),
    "hidden shape": ({"hidden": torch.zeros(4, 0)}, ValueError, r"hidden: .*D >= 1, got \[4, 0\]"),
    "hidden grad": (
        {"hidden": torch.zeros(4, 6, requires_grad=True)}, ValueError, "hidden: .*constant",
    ),
    "weight type": ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
    "weight dtype": (
        {"weight": torch.zeros(9, 6).half()}, TypeError, "weight: .*float32, got float16",
    ),
    "weight shape": (
        {"weight": torch.zeros(6, 9)}, ValueError, r"weight: .*D = 6 \(from hidden\), got \[6, 9\]",
    ),
    "weight empty": ({"weight": torch.zeros(0, 6)}, ValueError, "weight: expected .* V >= 1"),
    "weight grad": (
        {"weight": torch.zeros(9, 6, requires_grad=True)}, ValueError, "weight: .*constant",
    ),
    "weight device": (
        {"weight": torch.zeros(9, 6, device="meta")}, ValueError, "weight: expected device cpu",
    ),
    "bias type": ({"bias": 0.0}, TypeError, "bias: expected a torch.Tensor, got float"),
    "bias dtype": ({"bias": torch.zeros(9).double()}, TypeError, "bias: .*got float64"),
    "bias shape": ({"bias": torch.zeros(6)}, ValueError, r"bias: expected shape \[9\].*got \[6\]"),
    "bias grad": ({"bias": torch.zeros(9, requires_grad=True)}, ValueError, "bias: .*constant"),
    "x_t type": ({"x_t": [0.0]}, TypeError, "x_t: expected a torch.Tensor, got list"),
    "x_t shape": (
        {"x_t": torch.zeros(5, 3)}, ValueError, r"x_t: .*for hidden \[4, 6\] .*got \[5, 3\]",
    ),
    "t": ({"t": 0.0}, ValueError, r"t: expected a noise level in \(0, 1\], got 0.0"),
    "t shape": ({"t": torch.ones(5)}, ValueError, r"t: expected .* broadcasts to \[4\], got \[5\]"),
    "t type": ({"t": "high"}, TypeError, "t: expected a number"),
    "t grad": ({"t": torch.ones(4, requires_grad=True)}, ValueError, "t: .*constant"),
    "codebook shape": (
        {"codebook": torch.zeros(8, 3)}, ValueError, r"codebook: .*V = 9 \(from weight\).*\[8, 3\]",
    ),
    "codebook device": (
        {"codebook": torch.zeros(9, 3, device="meta")}, ValueError, "codebook: .*of weight.*meta",
    ),
    "codebook grad": (
        {"codebook": torch.zeros(9, 3, requires_grad=True)}, ValueError, "codebook: .*constant",
    ),
    "uncond type": ({"uncond_hidden": 1}, TypeError, "uncond_hidden: .*got int"),
    "uncond shape": (
        {"uncond_hidden": torch.zeros(4, 5)}, ValueError, r"uncond_hidden: .*\[4, 6\].*\[4, 5\]",
    ),
    "uncond dtype": (
        {"uncond_hidden": torch.zeros(4, 6).half()}, TypeError, "uncond_hidden: .*float16",
    ),
    "uncond grad": (
        {"uncond_hidden": torch.zeros(4, 6, requires_grad=True)}, ValueError, "uncond_hidden: .*co",
    ),
    "scale alone": ({"guidance_scale": 2.0}, ValueError, "guidance_scale: .*uncond_hidden"),
    "scale shape": (
        {"uncond_hidden": torch.zeros(4, 6), "guidance_scale": torch.ones(3)},
        ValueError, r"guidance_scale: .*\[4\], got \[3\]",
    ),
    "scale grad": (
        {"uncond_hidden": torch.zeros(4, 6), "guidance_scale": torch.ones(4, requires_grad=True)},
        ValueError, "guidance_scale: .*constant",
    ),
    "top_k": ({"top_k": -1}, ValueError, "top_k: .*got -1"),
    "top_p": ({"top_p": 1.5}, ValueError, r"top_p: .*\(0, 1\], got 1.5"),
    "prediction": ({"prediction": "noise"}, ValueError, "prediction: .*got 'noise'"),
    "backend": ({"backend": "metal"}, ValueError, "backend: .*'torch', got 'metal'"),
    "backend elsewhere": (
        {"backend": "cuda"}, RuntimeError, "'cuda' cannot run conditional_score: .*CUDA tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(4, 6), "weight": torch.zeros(9, 6), "bias": torch.zeros(9),
        "x_t": torch.zeros(4, 3), "t": 0.5, "codebook": torch.zeros(9, 3),
    }  # fmt: skip
    linear_conditional_score(**arguments)
    with pytest.raises(error, match=message):
        linear_conditional_score(**{**arguments, **change})
