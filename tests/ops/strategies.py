"""Random inputs of the operators for Hypothesis: structure is drawn, values follow from a seed."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from dd2_fast.ops import available_backends, registry

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOGITS, PRODUCTS = 60_000, 600_000  # of one example, at most


def examples(count: int) -> settings:
    """``count`` examples in the profile "ci"; ``--hypothesis-profile=explore`` takes 50 times so
    many, new ones in every run."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))


def device_of(backend: str) -> str:
    return "cpu" if backend in ("torch", "cpu") else "cuda"


def backends_of(op: str) -> pytest.MarkDecorator:
    """Parametrizes over the backends of an operator; those that cannot run here are skipped."""
    params = []
    for name in registry.BACKENDS:
        if name != "torch" and importlib.util.find_spec(f"dd2_fast.ops.{op}.{name}") is None:
            continue
        gpu = device_of(name) == "cuda"
        reason = available_backends(device_of(name))[name]
        if gpu and not torch.cuda.is_available():
            reason = "no NVIDIA GPU"
        marks = [pytest.mark.skipif(reason is not None, reason=str(reason))]
        params.append(pytest.param(name, marks=marks + [pytest.mark.gpu] * gpu))
    return pytest.mark.parametrize("backend", params)


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """``torch.empty`` and its kin return NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


LAYOUTS = ("plain", "transposed", "window", "step", "expanded")


def laid_out(value: Tensor, layout: str) -> Tensor:
    """The same values with other strides, NaN between; "expanded" repeats the first row."""
    if layout == "plain" or value.ndim == 0:
        return value
    if layout == "expanded":
        return value[:1].expand(value.shape)
    if layout == "transposed":
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    size, step = value.shape[-1], 2 if layout == "step" else 1
    wide = value.new_full((*value.shape[:-1], 3 * size), math.nan)
    part = wide[..., size : size + step * size : step]
    return part.copy_(value)


def _logits(kind: str, size: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(size, generator=generator)
    chosen = torch.randint(size, (), generator=generator)
    if kind == "normal":
        return 2 * normal
    if kind == "flat":
        return 1e-3 * normal
    if kind == "equal":
        return torch.full((size,), 1.5)
    if kind == "levels":
        levels = torch.tensor([0.0, -0.0, 1.5, -2.0, 3e4])
        return levels[torch.randint(5, (size,), generator=generator)]
    if kind == "extreme":
        return 1e4 * normal.clamp(-3, 3)
    if kind == "holes":
        normal[torch.rand(size, generator=generator) < 0.7] = -torch.inf
        normal[chosen] = 0.0
        return normal
    if kind == "empty":
        return torch.full((size,), -torch.inf)
    one_hot = torch.full((size,), -torch.inf if kind == "one_hot" else -1e4)
    one_hot[chosen] = 3.0
    return one_hot


ORDINARY = ("normal", "flat", "equal", "levels", "extreme", "holes", "one_hot", "peaked")
KINDS = (*ORDINARY, "empty")
SIZES = st.one_of(
    st.integers(1, 70),
    st.integers(71, 3000),
    st.sampled_from([127, 128, 129, 255, 256, 257, 1024, 4096, 4099, 16384, 20000]),
)
TOP_P = st.one_of(
    st.just(1.0), st.sampled_from([0.95, 0.5, 1e-3, 1e-30, 1 - 1e-6]), st.floats(0.01, 0.99)
)
BAD_VALUES = (math.nan, math.inf, -math.inf)
SCALES = st.sampled_from([1.0, 0.0, 2.0, 3.5, -1.5, 100.0, 1e4])


@dataclass(frozen=True)
class Teacher:
    """Rows of logits with their guidance and filters, on the CPU."""

    logits: Tensor
    uncond_logits: Tensor | None
    guidance_scale: Tensor
    top_k: int
    top_p: float

    def tensors(self) -> dict[str, Tensor]:
        if self.uncond_logits is None:
            return {"logits": self.logits}
        return {
            "logits": self.logits,
            "uncond_logits": self.uncond_logits,
            "guidance_scale": self.guidance_scale,
        }

    def arguments(self, device: str = "cpu", layout: str = "plain") -> dict:
        tensors = {n: laid_out(v.to(device), layout) for n, v in self.tensors().items()}
        return {**tensors, "top_k": self.top_k, "top_p": self.top_p}

    def __repr__(self) -> str:
        numbers = [*self.logits.shape, self.top_k, self.top_p, *self.guidance_scale.tolist()]
        guided = self.uncond_logits is not None
        return f"Teacher({numbers}, {self.logits.dtype}, {guided=})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def rows(self, index: slice | list[int]) -> Teacher:
        return replace(self, **{name: value[index] for name, value in self.tensors().items()})


@st.composite
def teachers(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, least_rows: int = 0) -> Teacher:
    size = draw(SIZES)
    rows = draw(st.integers(least_rows, max(least_rows, min(30, LOGITS // size))))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def make() -> Tensor:
        made = [_logits(chosen[i % len(chosen)], size, generator) for i in range(rows)]
        return torch.stack(made).to(dtype) if made else torch.empty(0, size, dtype=dtype)

    cond, uncond, scale = make(), None, torch.ones(rows)
    if draw(st.booleans()):
        uncond = cond + make() if draw(st.booleans()) else make()
        scale = torch.tensor(draw(st.lists(SCALES, min_size=rows, max_size=rows)))
    few = st.one_of(st.sampled_from([1, size, size + 5, 900]), st.integers(1, size))
    return Teacher(cond, uncond, scale, draw(st.one_of(st.just(0), few)), draw(TOP_P))


def spoil(teacher: Teacher, row: int, data: st.DataObject) -> Teacher:
    """The teacher with one row's logit or scale NaN, its logit +inf, or all of them -inf."""
    name = data.draw(st.sampled_from(list(teacher.tensors())))
    value = teacher.tensors()[name].clone()
    code = data.draw(st.integers(0, value[row].numel() - 1))
    bad = math.nan if name == "guidance_scale" else data.draw(st.sampled_from(BAD_VALUES))
    value.reshape(len(value), -1)[row, slice(None) if bad == -math.inf else code] = bad
    return replace(teacher, **{name: value})


@dataclass(frozen=True)
class Tokens:
    """Noisy tokens ``[R, C]`` or ``[R, M, C]`` under a teacher, their noise level and codebook."""

    teacher: Teacher
    x_t: Tensor
    t: Tensor
    codebook: Tensor

    def arguments(self, device: str = "cpu", layout: str = "plain") -> dict:
        fixed = "plain" if layout == "expanded" else layout
        return {
            "x_t": laid_out(self.x_t.to(device), layout),
            "t": laid_out(self.t.to(device), layout),
            "codebook": laid_out(self.codebook.to(device), fixed),
            **self.teacher.arguments(device, layout),
        }

    def __repr__(self) -> str:
        levels = self.t.unique().tolist()
        return f"Tokens({self.teacher}, {list(self.x_t.shape)}, {self.x_t.dtype}, {levels})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def rows(self, index: slice | list[int]) -> Tokens:
        return replace(self, teacher=self.teacher.rows(index), x_t=self.x_t[index], t=self.t[index])


def _codebook(kind: str, size: int, dim: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(size, dim, generator=generator)
    if kind == "duplicated":
        return normal[torch.randint(size // 3 + 1, (size,), generator=generator)]
    if kind == "unit":
        return torch.nn.functional.normalize(normal, dim=-1)
    if kind == "clustered":
        centre = normal[torch.randint(size // 5 + 1, (size,), generator=generator)]
        return centre + 0.05 * normal
    return normal


CODEBOOKS = ("normal", "duplicated", "unit", "clustered")
DIMS = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 31, 32, 33, 64]))
ORDINARY_NOISE = st.one_of(st.just(1.0), st.just(0.02), st.floats(0.02, 1.0))
TINY_NOISE = st.floats(-30.0, -1.7).map(lambda exponent: 10.0**exponent)


@st.composite
def tokens(
    draw: st.DrawFn,
    noise: st.SearchStrategy[float] = ORDINARY_NOISE,
    kinds: tuple[str, ...] = KINDS,
    least_rows: int = 0,
) -> Tokens:
    teacher = draw(teachers(kinds, least_rows))
    (rows, size), dim = teacher.logits.shape, draw(DIMS)
    most = max(1, min(40, PRODUCTS // (size * dim * max(rows, 1))))
    draws = draw(st.one_of(st.none(), st.integers(0, 2), st.integers(1, most)))
    lead = (rows,) if draws is None else (rows, draws)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, *DTYPES]))
    codebook = _codebook(draw(st.sampled_from(CODEBOOKS)), size, dim, generator).to(dtype)
    levels = torch.tensor(draw(st.lists(noise, min_size=1, max_size=4)))
    t = levels[torch.randint(len(levels), lead, generator=generator)]
    clean = codebook[torch.randint(size, lead, generator=generator)]
    normal = torch.randn(*lead, dim, generator=generator)
    x_t = (1 - t[..., None]) * clean + t[..., None] * normal
    return Tokens(teacher, x_t.to(dtype), t, codebook)
