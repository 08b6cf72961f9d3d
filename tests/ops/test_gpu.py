"""What only a GPU shows of the operators: graphs, streams, a second GPU, memory, rows beyond 2^31
logits, and the tensor cores at the sizes that they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.cases import (
    GPU_BACKENDS,
    Case,
    device_of,
    make_case,
    relative_error,
    runnable_backends,
)
from ops.test_conditional_score import x0_and_gradient
from ops.test_csd_loss import make_inputs as make_losses
from ops.test_csd_loss import plain_loss, value_and_gradients
from torch import Tensor

from dd2_fast.ops import (
    conditional_score,
    csd_loss,
    flow_solve,
    launch,
    linear_conditional_score,
    native,
    nearest_code,
    sample_code,
)

BACKENDS = pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
Inputs = dict[str, Tensor]


def make_inputs(
    seed: int, device: str, rows: int = 40, vocabulary: int = 200, dim: int = 8
) -> Inputs:
    """Inputs of every operator, float32, with two draws a row."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    values = {
        "x": normal(rows, dim),
        "x_t": normal(rows, 2, dim),
        "t": 0.1 + 0.9 * torch.rand(rows, 2, generator=generator),
        "fake": normal(rows, 2, dim),
        "logits": 2 * normal(rows, vocabulary),
        "uncond": 2 * normal(rows, vocabulary),
        "scale": 1 + torch.rand(rows, generator=generator),
        "codebook": normal(vocabulary, dim),
        "hidden": normal(rows, 16),
        "weight": normal(vocabulary, 16),
        "index": torch.randint(2**40, (rows,), generator=generator),
        "seed": torch.tensor(2**35 + seed),
    }
    return {name: value.to(device) for name, value in values.items()}


def teacher(a: Inputs) -> dict[str, Any]:
    return {"uncond_logits": a["uncond"], "guidance_scale": a["scale"], "top_k": 60, "top_p": 0.9}


def score_and_gradient(a: Inputs, backend: str) -> list[Tensor]:
    x_t, *rest = (a[name] for name in ("x_t", "t", "logits", "uncond", "scale", "codebook"))
    settings = (*rest, 60, 0.9, backend)
    library = torch.ops.dd2_fast
    return [
        library.conditional_x0(x_t, *settings),
        library.conditional_x0_vjp(a["fake"], x_t, *settings),
    ]


def loss_and_gradients(a: Inputs, backend: str) -> list[Tensor]:
    rest = (a[name] for name in ("x_t", "t", "logits", "uncond", "scale", "codebook"))
    loss = torch.ops.dd2_fast.csd_loss
    return list(loss(a["x"], a["fake"], None, 1.0, "sid", 1.0, True, *rest, 60, 0.9, backend))


OPERATORS: dict[str, Callable[[Inputs, str], list[Tensor]]] = {
    "conditional_score": score_and_gradient,
    "csd_loss": loss_and_gradients,
    "linear_score": lambda a, backend: [
        linear_conditional_score(
            a["hidden"], a["weight"], None, a["x"], 0.4, a["codebook"], top_k=60, backend=backend
        )
    ],
    "sample_code": lambda a, backend: [
        sample_code(a["logits"], **teacher(a), seed=a["seed"], index=a["index"], backend=backend)
    ],
    "nearest_code": lambda a, backend: [nearest_code(a["x_t"], a["codebook"], backend=backend)],
    "flow_code": lambda a, backend: [
        flow_solve(a["x_t"], a["logits"], a["codebook"], steps=3, **teacher(a), backend=backend)
    ],
    "image_normal": lambda a, backend: [
        torch.ops.dd2_fast.image_normal(a["index"] + 1, 0, a["index"], (5, 3), 1, backend)
    ],
}
OPERATOR = pytest.mark.parametrize("name", OPERATORS)


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for value, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, right.to(value.device))


@BACKENDS
@OPERATOR
def test_a_graph_reads_its_inputs_anew(name: str, backend: str) -> None:
    """Captured on one set of inputs, replayed on others; nothing is kept from the capture."""
    inputs, others = (make_inputs(seed, device_of(backend)) for seed in (0, 1))
    operator = OPERATORS[name]
    operator(inputs, backend)  # compiles, where it is compiled at run time
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(inputs, backend)
    for given in (others, make_inputs(2, device_of(backend))):
        for key, value in inputs.items():
            value.copy_(given[key])
        for value in captured:
            value.fill_(torch.nan if value.is_floating_point() else -7)
        graph.replay()
        assert_same(captured, operator(given, backend))


@BACKENDS
@OPERATOR
def test_runs_on_the_callers_stream(name: str, backend: str) -> None:
    """Inputs that are written late on a stream: a launch on another one would read old values."""
    inputs, others = (make_inputs(seed, device_of(backend)) for seed in (0, 1))
    wanted = OPERATORS[name](others, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # about 10 ms
        for key, value in inputs.items():
            value.copy_(others[key])
        found = OPERATORS[name](inputs, backend)
    stream.synchronize()
    assert_same(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@BACKENDS
@OPERATOR
def test_runs_on_the_inputs_gpu(name: str, backend: str) -> None:
    """Which is not the current one, and by the same kernel after it was loaded on the other."""
    wanted = OPERATORS[name](make_inputs(0, "cuda:0"), backend)
    found = OPERATORS[name](make_inputs(0, "cuda:1"), backend)
    assert torch.cuda.current_device() == 0 and found[0].device == torch.device("cuda:1")
    assert_same(found, wanted)


@BACKENDS
@pytest.mark.parametrize("top_k", [0, 900])
@pytest.mark.parametrize("name", ["conditional_score", "csd_loss", "sample_code"])
def test_takes_less_than_a_hundredth_of_the_logits_memory(
    name: str, top_k: int, backend: str
) -> None:
    """LlamaGen's shape, where tokens are small beside their logits; results are counted too."""
    rows, vocabulary = 4096, 16384
    a = make_inputs(0, device_of(backend), rows=16, vocabulary=vocabulary)
    a = {
        k: v if k in ("codebook", "seed") else v.repeat(256, *[1] * (v.ndim - 1))
        for k, v in a.items()
    }
    logits, uncond = (a[key].to(torch.bfloat16) for key in ("logits", "uncond"))
    shared: dict[str, Any] = dict(
        uncond_logits=uncond, guidance_scale=a["scale"], top_k=top_k, backend=backend
    )
    tokens = a["x"], a["x_t"][:, 0], a["t"][:, 0]

    def call() -> Any:
        if name == "sample_code":
            return sample_code(logits, **shared, seed=a["seed"])
        if name == "csd_loss":
            x = [value.requires_grad_() for value in (tokens[0].clone(), tokens[1].clone())]
            fake = a["fake"][:, 0].clone()
            loss = csd_loss(*x, tokens[2], fake, logits, a["codebook"], **shared)
            return torch.autograd.grad(loss.sum(), x)
        return conditional_score(*tokens[1:], logits, a["codebook"], prediction="x0", **shared)

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    added = torch.cuda.max_memory_allocated() - before
    assert result is not None and logits.shape == (rows, vocabulary)
    assert added < 0.01 * 2 * logits.numel() * logits.element_size()


@BACKENDS
@pytest.mark.parametrize("name", ["score_of_all", "score_of_kept", "sample_code", "flow_code"])
def test_rows_beyond_two_to_the_31_logits(name: str, backend: str) -> None:
    """The last rows equal a call with them alone: no index of 32 bits wraps."""
    rows, vocabulary, dim = 140_000, 16384, 8
    if torch.cuda.mem_get_info()[0] < 8e9:
        pytest.skip("needs 8 GB of GPU memory")
    device, generator = device_of(backend), torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    logits = normal(rows, vocabulary, dtype=torch.bfloat16)
    codebook, x = normal(vocabulary, dim), normal(rows, dim)
    index = torch.arange(rows, device=device)
    calls: dict[str, Callable[[slice], Tensor]] = {
        "score_of_all": lambda part: conditional_score(
            x[part], 0.5, logits[part], codebook, prediction="x0", backend=backend
        ),
        "score_of_kept": lambda part: conditional_score(
            x[part], 0.5, logits[part], codebook, prediction="x0", top_k=50, backend=backend
        ),
        "sample_code": lambda part: sample_code(
            logits[part], index=index[part], top_k=50, backend=backend
        ),
        "flow_code": lambda part: flow_solve(
            x[part], logits[part], codebook, steps=1, top_k=50, backend=backend
        ),
    }
    last = slice(rows - 40, rows)
    found, wanted = calls[name](slice(0, rows))[last], calls[name](last)
    if found.is_floating_point():
        # All rows may go through tensor cores where few do not.
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(found, wanted)


# (rows, vocabulary, dim, draws, guided, top_k, top_p): draws enough that tensor cores pay, and the
# shape of four images of VAR.
DENSE = {
    "narrow": (3, 1003, 5, 80, False, 0, 1.0),
    "two_blocks": (5, 1000, 17, 80, True, 0, 1.0),
    "kept": (5, 1000, 32, 80, True, 300, 0.95),
    "top_p": (5, 1001, 32, 96, True, 0, 0.9),
    "wide": (3, 640, 64, 80, True, 300, 1.0),
    "var": (2720, 4096, 32, None, True, 0, 1.0),
}


CUDA = pytest.mark.parametrize("backend", runnable_backends(("cuda", "cupy")))


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each launch of the score asked for; 0 where one block a row was chosen."""
    sizes, give = [], native.give_workspace

    def record(params: Any, size: int, device: torch.device) -> Tensor | None:
        sizes.append(size)
        return give(params, size, device)

    monkeypatch.setattr(native, "give_workspace", record)
    monkeypatch.setattr(launch, "give_workspace", record)
    return sizes


def dense_case(regime: tuple, dtype: torch.dtype) -> Case:
    """From a noise level on where float32 keeps the digits of every distance."""
    rows, vocabulary, dim, draws, guided, top_k, top_p = regime
    filters: dict[str, Any] = {"guided": guided, "top_k": top_k, "top_p": top_p}
    return make_case(rows, vocabulary, dim, draws, dtype=dtype, t=(0.1, 1.0), **filters)


def on_gpu(arguments: dict[str, Any], backend: str) -> dict[str, Any]:
    """The float64 reference of large cases takes a CPU seconds."""
    device = device_of(backend)  # the CPU, where tests/compiled runs them
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


@CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("regime", DENSE.values(), ids=DENSE)
def test_scores_by_tensor_cores_equal_float64(
    backend: str, dtype: torch.dtype, regime: tuple, workspaces: list[int]
) -> None:
    """Budgets of ``test_conditional_score.test_matches_float64``."""
    case = dense_case(regime, dtype)
    direction = torch.randn(case.x_t.shape, generator=torch.Generator().manual_seed(1))
    exact, exact_gradient = x0_and_gradient(on_gpu(case.arguments("float64"), backend), direction)
    assert not workspaces
    x0, gradient = x0_and_gradient(case.arguments(backend, dtype), direction)
    assert workspaces[0] > 0 and (workspaces[1] > 0) == (regime[2] <= 32)
    assert relative_error(x0, exact.cpu()) < 1e-4
    assert relative_error(gradient, exact_gradient.cpu()) < 1e-3


@CUDA
@pytest.mark.parametrize("loss", [{}, {"objective": "dmd"}], ids=["sid", "dmd"])
@pytest.mark.parametrize("name", ["two_blocks", "kept", "top_p"])
def test_losses_by_tensor_cores_equal_float64(
    backend: str, loss: dict[str, Any], name: str, workspaces: list[int]
) -> None:
    case = dense_case(DENSE[name], torch.bfloat16)
    wanted = value_and_gradients(
        plain_loss, {**on_gpu(make_losses(case, "float64"), backend), **loss}
    )
    arguments = {**make_losses(case, backend, torch.bfloat16), **loss}
    computed = value_and_gradients(csd_loss, arguments)
    assert workspaces[0] > 0
    for value, right, allowed in zip(computed, wanted, (1e-4, 1e-3, 1e-3, 1e-3), strict=True):
        assert relative_error(value, right.cpu()) < allowed or right.norm() < 1e-6
