"""Dtypes that a processor has no instructions for: one warning, by the flags Linux lists."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import ARTeacher, processor
from dd2_fast.sampling import Sampler, resolve_path

X86 = "flags\t\t: fpu sse2 avx2 avx512f avx512_vnni"
ARM = "Features\t: fp asimd evtstrm"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", path)
    for cached in (processor.processor_flags, processor._warn):
        cached.cache_clear()
    yield path
    for cached in (processor.processor_flags, processor._warn):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("text", "bfloat16", "float16"),
    [
        (X86, True, True),
        (f"processor : 0\n{X86} avx512_bf16\n", False, True),
        (f"{X86} amx_bf16 amx_tile", False, True),
        (f"{X86} avx512_fp16 avx512_bf16", False, False),
        (ARM, True, True),
        (f"{ARM} fphp asimdhp", True, False),
        (f"{ARM} fphp asimdhp bf16 svebf16", False, False),
        ("features\t: esan3 zarch stfle msa", False, False),  # another architecture
        ("cpu\t\t: POWER9", False, False),
        ("", False, False),
        (None, False, False),  # another system
    ],
)
def test_flags(cpuinfo: Path, text: str | None, bfloat16: bool, float16: bool) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    assert processor.emulated(torch.bfloat16) is bfloat16
    assert processor.emulated(torch.float16) is float16
    assert not processor.emulated(torch.float32) and not processor.emulated(torch.float64)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_sampler_warns_once(cpuinfo: Path, name: str) -> None:
    cpuinfo.write_text(X86)
    generator = load_bundle(resolve_path("digits")).generator
    sampler = Sampler(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler([1])
    sampler.to(getattr(torch, name))
    with pytest.warns(RuntimeWarning, match=f"^dtype: {name} takes longer than float32") as seen:
        sampler([1])
        sampler([1])
        Sampler(generator)([1])
    assert len(seen) == 1


def test_a_teacher_warns_and_one_elsewhere_does_not(cpuinfo: Path) -> None:
    cpuinfo.write_text(ARM)
    sizes = dict(num_tokens=2, dimension=3, num_classes=4, width=8, layers=1, heads=1)
    teacher = ARTeacher(vocabulary=5, **sizes).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.warn_if_slow(teacher.to("meta"))
    with pytest.warns(RuntimeWarning, match="bfloat16 takes longer"):
        ARTeacher(vocabulary=5, **sizes).bfloat16().sample(torch.tensor([1]))
