"""One set of tests for every backend of ``logit_distillation_loss``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.cases import (
    COMPILERS,
    GPU_BACKENDS,
    assert_once_differentiable,
    device_of,
    pairwise_with_backends,
    runnable_backends,
    unaligned,
)
from ops.exact import EPSILON, additions, double, guided_row, kept_sets
from ops.strategies import (
    LAYOUTS,
    Teacher,
    backends_of,
    examples,
    laid_out,
    poisoned_outputs,
    same_bits,
    teachers,
)
from processes import run_python
from torch import Tensor

from dd2_fast.ops import available_backends, logit_distillation_loss
from dd2_fast.ops.logit_distillation_loss import reference

BACKENDS = pytest.mark.parametrize("backend", runnable_backends())
FILTERS = pytest.mark.parametrize(
    "filters", [(0, 1.0), (30, 1.0), (0, 0.9)], ids=["none", "k", "p"]
)
WIDE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = {  # of the student's logits and the teacher's
    "float32": (WIDE, WIDE), "bfloat16": (BRAIN, BRAIN), "float16": (HALF, HALF),
    "wide_student": (WIDE, BRAIN), "wide_teacher": (HALF, WIDE),
}  # fmt: skip
SMALLEST_MASS = 2.0**-125  # of the largest: below it single precision may have none
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUBNORMAL = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}

# (rows, vocabulary, guided, top_k, top_p), each with the regime it covers
REGIMES = {
    "one_code": (3, 1, False, 0, 1.0),
    "ragged": (40, 101, True, 17, 0.9),
    "no_filter": (9, 1000, True, 0, 1.0),
    "top_p_only": (12, 2048, True, 0, 0.8),
    "top_k_only": (12, 2048, False, 900, 1.0),
    "blocks_and_tail": (6, 4099, False, 0, 1.0),
    "var": (16, 4096, True, 900, 0.95),
    "llamagen": (4, 16384, True, 900, 1.0),
}


def make_inputs(regime: tuple, dtypes: tuple = (WIDE, WIDE)) -> tuple[Tensor, Teacher]:
    """A student's logits near the teacher's, and the teacher, on the CPU."""
    rows, vocabulary, guided, top_k, top_p = regime
    generator = torch.Generator().manual_seed(vocabulary)

    def normal() -> Tensor:
        return torch.randn(rows, vocabulary, generator=generator)

    cond = 2 * normal()
    uncond = (cond + normal()).to(dtypes[1]) if guided else None
    scale = 1 + 2 * torch.rand(rows, generator=generator) if guided else torch.ones(rows)
    student = (cond + normal() + 3).to(dtypes[0])
    return student, Teacher(cond.to(dtypes[1]), uncond, scale, top_k, top_p)


def arguments(student: Tensor, teacher: Teacher, backend: str, layout: str = "plain") -> dict:
    device = device_of(backend)
    named = teacher.arguments(device, layout)
    named["teacher_logits"] = named.pop("logits")
    return {"logits": laid_out(student.to(device), layout), **named, "backend": backend}


def value_and_gradient(named: dict, incoming: Tensor) -> tuple[Tensor, Tensor]:
    """On the CPU, under a gradient of the loss, computed into poisoned outputs."""
    leaf = named["logits"].detach().requires_grad_()
    with poisoned_outputs():
        loss = logit_distillation_loss(**{**named, "logits": leaf})
        (gradient,) = torch.autograd.grad(loss, leaf, incoming.to(loss))
    assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape
    return loss.detach().cpu(), gradient.cpu()


def explains(
    student: np.ndarray, guided: np.ndarray, kept: np.ndarray, unsure: np.ndarray,
    incoming: float, loss: float, gradient: np.ndarray, dtype: torch.dtype,
) -> bool:  # fmt: skip
    """Whether a row's results are those of its definition in float64 over the codes ``kept``, to
    rounding: of every mass by its exponent, ``unsure`` included, and of sums by additions."""
    steps = additions(len(guided))
    s = student - student.max()
    e = np.exp(s)
    q = e / e.sum()
    q_doubt = EPSILON * (8 + 4 * np.abs(np.where(e > 0, s, 0)))  # relative
    t = guided[kept] - guided.max()
    m = np.exp(t)
    p = m / m.sum()
    p_doubt = EPSILON * (8 + 4 * np.abs(np.where(m > 0, t, 0))) + unsure[kept]
    surely, sets = m > SMALLEST_MASS, []
    for counted in (m > 0, surely):
        terms = np.where(counted, t - s[kept], 0.0)
        terms = np.where(counted, terms, 0.0)
        exact = (p[counted] * terms[counted]).sum() + np.log(e.sum() / m.sum())
        sets.append((exact, terms))
    right = False
    for exact, terms in sets:
        if np.isinf(exact):
            right |= loss == np.inf
            continue
        size = np.where(surely, np.abs(t) + np.abs(s[kept]) + 2 * np.abs(terms), 0.0)
        size = np.where(np.isfinite(size), size, 0.0)
        mean = (p * np.where(surely, terms, 0.0)).sum()
        moved = np.where(surely, p_doubt * (np.abs(terms - mean) + 1), 0.0)
        slack = (p * moved).sum() + (q * q_doubt).sum()
        slack += EPSILON * (steps * ((p * np.abs(terms)).sum() + 2) + 4 * (p * size).sum())
        slack += EPSILON * 4 * (abs(mean) + abs(np.log(e.sum() / m.sum())))
        right |= bool(abs(loss - exact) <= slack)
    wanted, allowed = q.copy(), q * (q_doubt + (q * q_doubt).sum() + steps * EPSILON)
    wanted[kept] -= p
    allowed[kept] += p * (p_doubt + (p * p_doubt).sum() + steps * EPSILON)
    allowed += 4 * EPSILON * (q + np.abs(wanted - q)) + 2 * SMALLEST_MASS
    allowed = abs(incoming) * (allowed + ROUNDING[dtype] * (np.abs(wanted) + allowed))
    allowed += SUBNORMAL[dtype]
    return right and bool((np.abs(gradient - incoming * wanted) <= allowed).all())


def assert_explained(
    student: Tensor, teacher: Teacher, incoming: Tensor, loss: Tensor, gradient: Tensor,
    backend: str,
) -> None:  # fmt: skip
    assert loss.dtype == torch.float32 and loss.shape == student.shape[:-1]
    for row in range(len(student)):
        logits, value, slope = double(student[row]), loss[row].item(), double(gradient[row])
        sets = kept_sets(teacher, row)
        if not sets or np.isnan(logits).any() or logits.max() in (np.inf, -np.inf):
            assert np.isnan(value) and np.isnan(slope).all()
            continue
        guided = guided_row(teacher, row)
        unsure = np.zeros_like(guided)
        if backend == "torch" and teacher.uncond_logits is not None:
            # Its guidance is one operation of torch, which need not be one fma.
            cond, uncond = double(teacher.logits[row]), double(teacher.uncond_logits[row])
            with np.errstate(invalid="ignore"):
                size = abs(teacher.guidance_scale[row].item()) * np.abs(cond - uncond)
                unsure = 2 * EPSILON * np.nan_to_num(size + np.abs(uncond), posinf=0.0)
        factor = incoming[row].item()
        assert any(
            explains(logits, guided, kept, unsure, factor, value, slope, student.dtype)
            for kept in sets
        ), row


@pairwise_with_backends(regime=REGIMES, dtypes=DTYPES)
def test_equals_the_definition(backend: str, dtypes: tuple, regime: tuple) -> None:
    student, teacher = make_inputs(regime, dtypes)
    incoming = torch.randn(len(student), generator=torch.Generator().manual_seed(3))
    found = value_and_gradient(arguments(student, teacher, backend), incoming)
    assert_explained(student, teacher, incoming, *found, backend)


@st.composite
def cases(draw: st.DrawFn, least_rows: int = 0) -> tuple[Tensor, Teacher]:
    """Any teacher, and the logits of another or of itself for a student."""
    teacher = draw(teachers(least_rows=least_rows))
    shape, dtype = teacher.logits.shape, draw(st.sampled_from(list(ROUNDING)))
    kind = draw(st.sampled_from(["normal", "teacher", "flat", "far", "holes", "empty"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student = torch.randn(shape, generator=generator)
    if kind == "teacher":
        student = teacher.logits.float().clone()
    if kind == "flat":
        student = student * 1e-3
    if kind == "far":
        student = student * 30 - 3e3
    if kind == "holes":
        student[student < 0.5] = -torch.inf
    if kind == "empty" and len(student):
        student[-1] = -torch.inf
    return student.to(dtype), teacher


@backends_of("logit_distillation_loss")
@examples(80)
@given(case=cases(), layout=st.sampled_from(LAYOUTS))
def test_float64_explains_every_row(
    backend: str, case: tuple[Tensor, Teacher], layout: str
) -> None:
    student, teacher = case
    if layout == "expanded" and len(student):
        first = [0] * len(student)
        student, teacher = student[first], teacher.rows(first)
    incoming = torch.linspace(-1, 2, len(student))
    found = value_and_gradient(arguments(student, teacher, backend, layout), incoming)
    assert_explained(student, teacher, incoming, *found, backend)


@backends_of("logit_distillation_loss")
@examples(40)
@given(case=cases(least_rows=1), data=st.data())
def test_a_part_of_a_batch_gets_the_bits_of_the_whole(
    backend: str, case: tuple[Tensor, Teacher], data: st.DataObject
) -> None:
    student, teacher = case
    first = data.draw(st.integers(0, len(student) - 1))
    part = slice(first, data.draw(st.integers(first + 1, len(student))))
    incoming = torch.linspace(0.5, 2, len(student))
    whole = value_and_gradient(arguments(student, teacher, backend), incoming)
    named = arguments(student[part], teacher.rows(part), backend)
    for value, wanted in zip(value_and_gradient(named, incoming[part]), whole, strict=True):
        assert same_bits(value, wanted[part])


@pytest.mark.parametrize("guided", [False, True])
@FILTERS
def test_reference_gradcheck(guided: bool, filters: tuple[int, float]) -> None:
    student, teacher = make_inputs((3, 41, guided, *filters))
    named = arguments(student.double(), teacher, "torch")
    named["teacher_logits"] = named["teacher_logits"].double()
    if guided:
        named["uncond_logits"] = named["uncond_logits"].double()
    student = named.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logit_distillation_loss(x, **named), student)


def test_reference_takes_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = make_inputs((5, 90, True, 20, 0.9))
    incoming = torch.linspace(0.5, 2, 5)
    named = arguments(student, teacher, "torch")
    whole = value_and_gradient(named, incoming)
    for rows in (1, 4):
        monkeypatch.setattr(reference, "VALUES", rows * 90 + 1)
        for value, wanted in zip(value_and_gradient(named, incoming), whole, strict=True):
            torch.testing.assert_close(value, wanted)


@BACKENDS
@pytest.mark.parametrize("filters", [(0, 1.0), (7, 1.0), (0, 0.5), (150, 0.5), (0, 1e-6)])
def test_heavy_ties(backend: str, filters: tuple[int, float]) -> None:
    """Equal logits, both zeros among them, share a fate: so do their gradients."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.0, -0.0, 1.5, -2.0, 3.0])
    logits = levels[torch.randint(5, (30, 700), generator=generator)]
    logits[15:].clamp_(max=0)
    teacher = Teacher(logits, None, torch.ones(30), *filters)
    student = torch.zeros(30, 700)
    found = value_and_gradient(arguments(student, teacher, backend), torch.ones(30))
    assert_explained(student, teacher, torch.ones(30), *found, backend)
    for row, slopes in zip(logits, found[1], strict=True):
        for level in (0.0, 1.5, -2.0, 3.0):
            assert len(slopes[row == level].unique()) <= 1


@BACKENDS
def test_zero_where_both_agree(backend: str) -> None:
    """Rounding of logits of size 10 and of two sums is what is left; else it is positive."""
    student, teacher = make_inputs((9, 333, True, 0, 1.0))
    guided = torch.from_numpy(np.stack([guided_row(teacher, row) for row in range(9)])).float()
    loss = logit_distillation_loss(**arguments(guided + 4, teacher, backend))
    assert loss.abs().max() < 100 * EPSILON
    assert logit_distillation_loss(**arguments(student, teacher, backend)).min() > 0.01


@BACKENDS
@FILTERS
def test_invalid_rows_are_nan_alone(backend: str, filters: tuple[int, float]) -> None:
    student, teacher = make_inputs((12, 200, True, *filters))
    incoming = torch.linspace(0.5, 2, 12)
    clean = value_and_gradient(arguments(student, teacher, backend), incoming)
    cond, uncond, scale = (value.clone() for value in teacher.tensors().values())
    student = student.clone()
    cond[1, 7] = torch.nan
    uncond[2, 199] = torch.nan
    cond[3] = -torch.inf
    cond[4, 3] = torch.inf
    uncond[6] = -torch.inf
    scale[7] = torch.nan
    student[8, 199] = torch.nan
    student[9] = -torch.inf
    student[10, 0] = torch.inf
    changed = replace(teacher, logits=cond, uncond_logits=uncond, guidance_scale=scale)
    found = value_and_gradient(arguments(student, changed, backend), incoming)
    bad = torch.zeros(12, dtype=torch.bool)
    bad[[1, 2, 3, 4, 6, 7, 8, 9, 10]] = True
    for value, wanted in zip(found, clean, strict=True):
        assert value[bad].isnan().all()
        assert same_bits(value[~bad], wanted[~bad])


@BACKENDS
@FILTERS
def test_minus_infinity(backend: str, filters: tuple[int, float]) -> None:
    """Of the teacher, in either row: no probability. Of the student: none at a code that the
    teacher drops is no matter, at one that it keeps the loss is infinite, not its gradient."""
    student, teacher = make_inputs((6, 300, True, *filters))
    cond, uncond = teacher.logits.clone(), teacher.uncond_logits.clone()
    cond[:, 0:100] = -torch.inf
    uncond[:, 60:200] = -torch.inf
    student[:, 0:200] = -torch.inf
    student[4:, torch.arange(200, 300)[cond[4, 200:].argmax()]] = -torch.inf
    student[5] = -torch.inf
    student[5, :60] = 0.0
    teacher = replace(teacher, logits=cond, uncond_logits=uncond)
    incoming = torch.ones(6)
    loss, gradient = value_and_gradient(arguments(student, teacher, backend), incoming)
    assert_explained(student, teacher, incoming, loss, gradient, backend)
    assert loss[:4].isfinite().all() and loss[5] == torch.inf
    assert gradient.isfinite().all() and (gradient[:5, :200] == 0).all()


@BACKENDS
@pytest.mark.parametrize("vocabulary", [64, 63], ids=["fours", "ragged"])
def test_strided_inputs(backend: str, vocabulary: int) -> None:
    student, teacher = make_inputs((20, vocabulary, True, 20, 1.0))
    incoming = torch.linspace(0.5, 2, 20)
    plain = arguments(student, teacher, backend)
    wanted = value_and_gradient(plain, incoming)
    for names in (("logits",), ("teacher_logits",), ("logits", "teacher_logits", "uncond_logits")):
        for change in (unaligned, lambda v: laid_out(v, "window"), lambda v: v.T.contiguous().T):
            changed = {name: change(plain[name]) for name in names}
            found = value_and_gradient({**plain, **changed}, incoming)
            for value, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(value, right, rtol=1e-5, atol=1e-6)


@BACKENDS
def test_shapes(backend: str) -> None:
    student, teacher = make_inputs((6, 40, True, 0, 1.0))
    named = arguments(student, teacher, backend)
    flat = logit_distillation_loss(**named)
    assert flat.shape == (6,)

    def shaped(*shape: int, **changes: Any) -> Tensor:
        tensors = {n: named[n].reshape(*shape, 40) for n in named if n.endswith("logits")}
        scale = named["guidance_scale"].reshape(shape)
        return logit_distillation_loss(**{**named, **tensors, "guidance_scale": scale, **changes})

    torch.testing.assert_close(shaped(2, 3), flat.reshape(2, 3))
    per_token = named["guidance_scale"][:3]
    torch.testing.assert_close(
        shaped(2, 3, guidance_scale=per_token)[0], shaped(2, 3)[0], rtol=0, atol=0
    )
    first = {n: v[0] if isinstance(v, Tensor) else v for n, v in named.items()}
    torch.testing.assert_close(logit_distillation_loss(**first), flat[0])


@BACKENDS
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_rows(backend: str, shape: tuple[int, ...]) -> None:
    logits = torch.zeros(*shape, 9, device=device_of(backend), requires_grad=True)
    loss = logit_distillation_loss(logits, logits.detach(), top_k=3, backend=backend)
    assert loss.shape == shape
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.shape == logits.shape


@BACKENDS
def test_a_graph_gives_its_gradient_more_than_once(backend: str) -> None:
    student, teacher = make_inputs((4, 30, True, 10, 1.0))
    named = arguments(student, teacher, backend)
    named["logits"].requires_grad_()
    loss = logit_distillation_loss(**named).sum()
    first, second = (
        torch.autograd.grad(loss, named["logits"], retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second) and first.any()


@BACKENDS
def test_other_derivatives_are_refused(backend: str) -> None:
    student, teacher = make_inputs((3, 20, True, 0, 1.0))
    named = arguments(student, teacher, backend)
    student = named.pop("logits")

    def loss(x: Tensor) -> Tensor:
        return logit_distillation_loss(x, **named)[:, None] * torch.ones_like(x)

    assert_once_differentiable("logit_distillation_loss", loss, student)


@BACKENDS
def test_opcheck(backend: str) -> None:
    student, teacher = make_inputs((4, 30, True, 10, 0.9))
    named = arguments(student, teacher, backend)
    operators = torch.ops.dd2_fast
    for uncond in (named["uncond_logits"], None):
        leaf = named["logits"].clone().requires_grad_()
        rows = (leaf, named["teacher_logits"], uncond, named["guidance_scale"])
        torch.library.opcheck(operators.logit_distillation_loss.default, (*rows, 10, 0.9, backend))
        _, statistics = operators.logit_distillation_loss(*rows, 10, 0.9, backend)
        backward = (torch.ones_like(statistics[:, 0]), statistics, leaf.detach(), *rows[1:])
        torch.library.opcheck(
            operators.logit_distillation_loss_backward.default, (*backward, backend)
        )


@BACKENDS
@COMPILERS
@pytest.mark.parametrize("dtype", [WIDE, BRAIN], ids=["float32", "bfloat16"])
def test_compiles_without_graph_breaks(backend: str, compiler: str, dtype: torch.dtype) -> None:
    student, teacher = make_inputs((12, 64, True, 10, 1.0), (dtype, dtype))
    named = arguments(student, teacher, backend)
    incoming = torch.linspace(0.5, 2, 12)

    def function(logits: Tensor) -> Tensor:
        return logit_distillation_loss(**{**named, "logits": logits * 1.5}) * 2

    def run(called: Any) -> tuple[Tensor, Tensor]:
        leaf = named["logits"].detach().requires_grad_()
        loss = called(leaf)
        return loss.detach(), torch.autograd.grad(loss, leaf, incoming.to(loss))[0]

    compiled = run(torch.compile(function, fullgraph=True, backend=compiler))
    for value, wanted in zip(compiled, run(function), strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("backend", runnable_backends(GPU_BACKENDS))
def test_cuda_graph(backend: str) -> None:
    student, teacher = make_inputs((32, 512, True, 50, 0.9))
    named = arguments(student, teacher, backend)
    wanted = logit_distillation_loss(**named)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = logit_distillation_loss(**named)
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, wanted)


MEMORY = """
import ctypes, sys
from pathlib import Path
import torch
from dd2_fast.ops import logit_distillation_loss
torch.set_num_threads(2)
rows, vocabulary = 1000, 4096
dtype = getattr(torch, sys.argv[1])
generator = torch.Generator().manual_seed(0)
student, cond, uncond = (
    torch.randn(rows, vocabulary, generator=generator).to(dtype) for _ in range(3)
)
def step(count):
    leaf = student[:count].requires_grad_()
    loss = logit_distillation_loss(
        leaf, cond[:count], uncond_logits=uncond[:count], guidance_scale=2.0, top_k=900,
        top_p=0.95, backend="cpu",
    )
    return torch.autograd.grad(loss.mean(), leaf)[0]
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
step(8)
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present size
before = status("VmRSS")
gradient = step(rows)
print((status("VmHWM") - before) / (gradient.numel() * gradient.element_size()))
"""


@pytest.mark.skipif(available_backends("cpu")["cpu"] is not None, reason="no compiled kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_memory_is_that_of_the_gradient(dtype: str, tmp_path: Path) -> None:
    """Of a process of its own, in sizes of the logits; a part is for what threads have of a row."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system resets no high-water mark")
    output = run_python("-W", "ignore", "-c", MEMORY, dtype, folder=tmp_path, timeout=100)
    assert 0.9 < float(output) < 1.3


def test_float64_is_refused_by_compiled_backends() -> None:
    logits = torch.zeros(3, 9)
    assert logit_distillation_loss(logits.double(), logits).dtype == torch.float64
    assert logit_distillation_loss(logits, logits.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="'cpu' cannot run logit_distillation_loss.*float64"):
        logit_distillation_loss(logits, logits.double(), backend="cpu")


NOT_CONSTANT = torch.zeros(4, 9, requires_grad=True)
BAD = {
    "logits type": ({"logits": [0.0]}, TypeError, "logits: expected a torch.Tensor, got list"),
    "logits dtype": ({"logits": torch.zeros(4, 9).int()}, TypeError, "logits.*got int32"),
    "logits shape": (
        {"logits": torch.zeros(4, 8)}, ValueError, r"^logits: .*\[4, 9\].*teacher.*got \[4, 8\]",
    ),
    "device": ({"logits": torch.zeros(4, 9, device="meta")}, ValueError, "logits: expected device"),
    "teacher type": ({"teacher_logits": 1.0}, TypeError, "teacher_logits: .*Tensor, got float"),
    "teacher empty": (
        {"teacher_logits": torch.zeros(4, 0)}, ValueError, "teacher_logits: expected .* V >= 1",
    ),
    "teacher gradient": (
        {"teacher_logits": NOT_CONSTANT}, ValueError, "teacher_logits: expected a constant",
    ),
    "uncond shape": ({"uncond_logits": torch.zeros(4, 8)}, ValueError, r"uncond_logits.*\[4, 8\]"),
    "uncond dtype": (
        {"uncond_logits": torch.zeros(4, 9).half()}, TypeError, "uncond_logits: .*got float16",
    ),
    "scale alone": ({"guidance_scale": 2.0}, ValueError, "guidance_scale.*uncond_logits"),
    "scale shape": (
        {"uncond_logits": torch.zeros(4, 9), "guidance_scale": torch.ones(3)}, ValueError,
        r"guidance_scale: .*\[4\], got \[3\]",
    ),
    "top_k": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "top_p": ({"top_p": 0.0}, ValueError, r"top_p: .*\(0, 1\], got 0.0"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
}  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    named = {"logits": torch.zeros(4, 9), "teacher_logits": torch.zeros(4, 9)}
    logit_distillation_loss(**named)
    with pytest.raises(error, match=message):
        logit_distillation_loss(**{**named, **change})
