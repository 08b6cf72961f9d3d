"""What the ``cupy`` backend asks of CuPy, without a GPU. tests/compiled runs what it launches."""

from __future__ import annotations

import ctypes
import inspect
import re
from pathlib import Path

import pytest
import torch
from native.fake_cupy import STREAM, Driver, FakeCupy, Launch, Nvrtc, Runtime, install
from ops.cases import Case, make_case

from dd2_fast.ops import conditional_score, nearest_code
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams

STATIC = 1500  # bytes of shared memory that a kernel has of its own


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
            "conditional_score_fwd_kernel<LogitType(3), 32, false, true>",
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
    with pytest.raises(RuntimeError, match="needs 128 bytes of shared memory.* has 100"):
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
