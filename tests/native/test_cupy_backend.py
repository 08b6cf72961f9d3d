"""The ``cupy`` backend without a GPU: every launch goes through a fake CuPy to the kernels that the
shim runs on the CPU, so what it packs, chooses and sizes decides the result."""

from __future__ import annotations

import ctypes
import inspect
import re
from pathlib import Path

import pytest
import torch
from native.fake_cupy import H200_SHARED, STREAM, Driver, FakeCupy, Launch, Nvrtc, Runtime, install
from native.structs import Shim
from ops.cases import Case, make_case, relative_error
from ops.test_csd_loss import make_inputs, value_and_gradients
from ops.test_flow_solve import assert_flows_to
from ops.test_flow_solve import make_inputs as make_flow
from ops.test_image_normal import assert_drawn, expected, make_indices

from dd2_fast.ops import conditional_score, csd_loss, flow_solve, nearest_code, sample_code
from dd2_fast.ops.structs import ConditionalScoreParams

STATIC = 1500  # bytes of shared memory that a kernel has of its own
SMALL = 16_384  # bytes of shared memory in all, too few to stage a row of the larger cases


class Gpu:
    """Runs what is launched on the CPU, and remembers it."""

    def __init__(self, shared_limit: int, **shims: Shim) -> None:
        self.shared_limit = shared_limit
        self.shims = shims
        self.launches: list[Launch] = []

    def launch(self, launch: Launch) -> None:
        self.launches.append(launch)
        op = launch.kernel.split("_fwd_kernel")[0]
        self.shims[op].run_at(
            launch.kernel, launch.params, launch.grid[:2], launch.block[0], launch.shared
        )

    def stages(self, floats: int) -> bool:
        return 4 * floats + STATIC <= self.shared_limit


@pytest.fixture(params=[H200_SHARED, SMALL], ids=["h200", "small"])
def gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    conditional_score_shim: Shim, flow_solve_shim: Shim, image_normal_shim: Shim,
    nearest_code_shim: Shim, sample_code_shim: Shim,
) -> Gpu:  # fmt: skip
    gpu = Gpu(
        request.param,
        conditional_score=conditional_score_shim,
        flow_solve=flow_solve_shim,
        image_normal=image_normal_shim,
        nearest_code=nearest_code_shim,
        sample_code=sample_code_shim,
    )
    install(monkeypatch, FakeCupy(gpu.launch, request.param, STATIC), tmp_path)
    return gpu


def arguments_of(case: Case, dtype: torch.dtype = torch.float32) -> dict:
    return {**case.arguments("torch", dtype), "backend": "cupy"}


def parameters(signature: str) -> list[str]:
    """Names in a signature as Cython documents it."""
    inside = re.search(r"\((.*?)\)", signature)
    assert inside is not None
    return [part.split()[-1] for part in inside.group(1).split(",") if part.strip()]


@pytest.mark.parametrize("fake", [Nvrtc, Driver, Runtime])
def test_the_fake_has_cupys_signatures(fake: type) -> None:
    cuda = pytest.importorskip("cupy.cuda", reason="CuPy is not installed")
    real = getattr(cuda, fake.__name__.lower())
    for name, value in vars(fake).items():
        if name.startswith("__"):
            continue
        if inspect.isfunction(value):
            wanted = parameters(getattr(real, name).__doc__)
            assert list(inspect.signature(value).parameters)[1:] == wanted, name
        elif isinstance(value, int):
            assert getattr(real, name) == value, name
        else:
            assert issubclass(getattr(real, name), Exception), name


# (rows, vocabulary, dim, draws, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (1, 1, 1, None, False, 0, 1.0),
    "ragged": (3, 301, 5, None, True, 17, 0.9),
    "no_filter": (2, 700, 32, None, True, 0, 1.0),
    "two_dim_blocks": (2, 300, 40, 2, True, 60, 0.9),
    "llamagen": (1, 16384, 8, None, True, 900, 1.0),
}


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_conditional_score_and_gradient(gpu: Gpu, name: str, dtype: torch.dtype) -> None:
    rows, vocabulary, dim, draws, guided, top_k, top_p = REGIMES[name]
    case = make_case(rows, vocabulary, dim, draws, guided=guided, top_k=top_k, top_p=top_p,
                     dtype=dtype)  # fmt: skip
    direction = torch.randn(case.x_t.shape)
    results = []
    for arguments in (case.arguments("float64"), arguments_of(case, dtype)):
        x_t = arguments.pop("x_t").requires_grad_()
        x0 = conditional_score(x_t, **arguments, prediction="x0")
        (gradient,) = torch.autograd.grad(x0, x_t, direction.to(x0))
        results.append((x0, gradient))
    (wanted, wanted_gradient), (x0, gradient) = results
    assert relative_error(x0, wanted) < 2e-5
    assert (gradient - wanted_gradient).norm() < 1e-4 * wanted_gradient.norm() + 1e-5
    padded = dim if dim == 1 else -(-dim // 8) * 8
    staged = (0 < top_k < vocabulary) and gpu.stages(vocabulary + 4 * padded)
    assert [launch.kernel.endswith("true>") for launch in gpu.launches] == [staged] * 2


@pytest.mark.parametrize("loss", [{}, {"alpha": 2.0}, {"objective": "dmd"}, {"weight": "none"}])
@pytest.mark.parametrize("dim", [6, 40])
def test_csd_loss_and_gradients(gpu: Gpu, loss: dict, dim: int) -> None:
    case = make_case(3, 300, dim, 2, top_k=60, top_p=0.9)
    wanted = value_and_gradients(csd_loss, {**make_inputs(case, "float64"), **loss})
    computed = value_and_gradients(
        csd_loss, {**make_inputs(case, "torch"), **loss, "backend": "cupy"}
    )
    for value, right in zip(computed, wanted, strict=True):
        assert (value - right).norm() < 1e-4 * right.norm() + 1e-5
    assert len(gpu.launches) == (2 if loss.get("alpha") else 1)


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_flow_solve(gpu: Gpu, name: str, solver: str) -> None:
    rows, vocabulary, dim, draws, guided, top_k, top_p = REGIMES[name]
    inputs = make_flow(rows, vocabulary, dim, draws, guided)
    options = {"steps": 3, "solver": solver, "top_k": top_k, "top_p": top_p}
    assert_flows_to(flow_solve(**inputs, **options, backend="cupy"), inputs, **options)
    (launch,) = gpu.launches
    padded = -(-dim // 8) * 8 if dim <= 8 else -(-dim // 32) * 32
    staged = (0 < top_k < vocabulary) and gpu.stages(vocabulary + 4 * padded)
    assert launch.kernel.endswith("true>") == staged
    assert launch.grid == (rows, draws or 1, 1)


@pytest.mark.parametrize("vocabulary", [19, 4096])
def test_sample_code(gpu: Gpu, vocabulary: int) -> None:
    arguments = arguments_of(make_case(6, vocabulary, 1, top_k=900, top_p=0.95))
    arguments = {n: v for n, v in arguments.items() if n not in ("x_t", "t", "codebook")}
    wanted = sample_code(**{**arguments, "backend": "torch"}, seed=3, temperature=0.7)
    assert torch.equal(sample_code(**arguments, seed=3, temperature=0.7), wanted)
    (launch,) = gpu.launches
    assert launch.kernel.endswith("true>") == gpu.stages(vocabulary)


@pytest.mark.parametrize("dim", [3, 32, 40])
def test_nearest_code(gpu: Gpu, dim: int) -> None:
    x, codebook = torch.randn(2, 150, dim), torch.randn(77, dim)
    assert torch.equal(
        nearest_code(x, codebook, backend="cupy"), nearest_code(x, codebook, backend="torch")
    )
    assert gpu.launches[0].grid == (38, 1, 1)


@pytest.mark.parametrize("shape", [(5, 3), (70, 32)])
def test_image_normal(gpu: Gpu, shape: tuple[int, int]) -> None:
    run, indices = torch.ops.dd2_fast.image_normal, make_indices(3)
    for seeds, seed in ((None, -9), (indices[::2].repeat(2)[:3], 0)):
        wanted = expected(torch.full((3,), seed) if seeds is None else seeds, indices, shape, 4)
        assert_drawn(run(seeds, seed, indices, shape, 4, "cupy"), wanted)
    assert len(gpu.launches) == 2


def test_strided_inputs(gpu: Gpu) -> None:
    case = make_case(6, 64, 8, 3, top_k=20)
    plain = arguments_of(case)
    strided = dict(plain, x_t=plain["x_t"].transpose(0, 2).contiguous().transpose(0, 2))
    strided["logits"] = torch.full((6, 192), torch.nan)[:, 64:128].copy_(plain["logits"])
    strided["codebook"] = plain["codebook"].T.contiguous().T
    assert not any(strided[n].is_contiguous() for n in ("x_t", "logits", "codebook"))
    assert torch.equal(conditional_score(**strided), conditional_score(**plain))


@pytest.mark.parametrize("shape", [(0, None), (4, 0), (0, 3)])
def test_nothing_is_launched_without_tokens(gpu: Gpu, shape: tuple) -> None:
    arguments = arguments_of(make_case(shape[0], 20, 3, shape[1]))
    assert conditional_score(**arguments).shape == arguments["x_t"].shape
    assert nearest_code(torch.zeros(0, 3), torch.zeros(9, 3), backend="cupy").shape == (0,)
    assert sample_code(torch.zeros(0, 9), backend="cupy").shape == (0,)
    nobody = torch.zeros(0, dtype=torch.int64)
    assert torch.ops.dd2_fast.image_normal(None, 0, nobody, (2,), 0, "cupy").shape == (0, 2)
    flow = make_flow(shape[0], 20, 3, shape[1])
    assert flow_solve(**flow, backend="cupy").shape == flow["noise"].shape[:-1]
    assert not gpu.launches


def test_arguments_of_a_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernel, grid, block, bytes, stream and every field of the struct."""
    launches, copies = [], []

    def record(launch: Launch) -> None:
        launches.append(launch)
        size = ctypes.sizeof(ConditionalScoreParams)
        copies.append(
            ConditionalScoreParams.from_buffer_copy(ctypes.string_at(launch.params, size))
        )

    install(monkeypatch, FakeCupy(record, static_shared=STATIC), tmp_path)
    a = arguments_of(make_case(5, 100, 40, 2, top_k=7, top_p=0.5), torch.bfloat16)
    logits, uncond = (torch.stack([a[n]] * 2, 1)[:, 0] for n in ("logits", "uncond_logits"))
    x0 = conditional_score(**{**a, "logits": logits, "uncond_logits": uncond}, prediction="x0")
    assert launches == [
        Launch(
            "conditional_score_fwd_kernel<LogitType::kBFloat16, 32, false, true>",
            launches[0].params, (5, 2, 1), (256, 1, 1), 4 * (4 * 64 + 100), STREAM,
        )
    ]  # fmt: skip
    (p,) = copies
    names = [name for name, _ in p.teacher._fields_]
    expected = {
        "logits": logits.data_ptr(), "uncond": uncond.data_ptr(),
        "scale": a["guidance_scale"].data_ptr(), "logits_stride": 200, "uncond_stride": 200,
        "rows": 5, "vocabulary": 100, "top_k": 7, "top_p": 0.5, "logit_type": 1,
    }  # fmt: skip
    assert {name: getattr(p.teacher, name) for name in names} == expected
    assert (p.out, p.jacobian, p.direction) == (x0.data_ptr(), None, None)
    inputs = [a[n].data_ptr() for n in ("x_t", "t", "codebook")]
    assert [p.x_t, p.t, p.codebook] == inputs and (p.draws, p.dim) == (2, 40)
    assert p.csd.loss is None


def test_too_little_shared_memory_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, FakeCupy(lambda launch: None, 100), tmp_path)
    with pytest.raises(RuntimeError, match="needs 128 bytes of shared memory.*the device has 100"):
        conditional_score(torch.zeros(2, 3), 0.5, torch.zeros(2, 5), torch.zeros(5, 3),
                          backend="cupy")  # fmt: skip


def test_a_kernel_is_compiled_once_and_then_read_from_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for process in range(2):
        fake = FakeCupy(lambda launch: None)
        install(monkeypatch, fake, tmp_path)
        for _ in range(3):
            nearest_code(torch.zeros(2, 3), torch.zeros(5, 3), backend="cupy")
        assert len(fake.cuda.nvrtc.compiled) == (1 if process == 0 else 0)
        assert len(fake.cuda.driver.functions) == 1
