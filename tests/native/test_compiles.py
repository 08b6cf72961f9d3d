"""Every kernel through NVRTC and nvcc for the architectures of the release: none spills registers,
and the rows of real models fit in shared memory. Runs nothing. What nvcc made is read from the
installed extension, where it has it; compiling all anew takes minutes and is long."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from native.build import CSRC, operators
from native.compilers import (
    Usage,
    require_cuobjdump,
    require_nvcc,
    require_nvrtc,
    resources,
    usage,
)
from native.test_plans import Launch, attention, kernels, plan, small

from dd2_fast.ops import extension, nvrtc
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams
from dd2_fast.ops.flow_solve.native import FlowSolveParams
from dd2_fast.ops.launch import header_of
from dd2_fast.ops.logit_distillation_loss.native import LogitDistillationLossParams
from dd2_fast.ops.sample_code.native import SampleCodeParams
from dd2_fast.ops.structs import TeacherRows

# Bytes of shared memory that a block can have.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}
OPERATORS = tuple(operators())
LAUNCHERS = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))
MODELS = {"var": (4096, 32), "llamagen": (16_384, 8)}


def check(found: dict[str, Usage]) -> None:
    spilling = {symbol: used for symbol, used in found.items() if used.spilled}
    assert not spilling
    assert all(used.shared <= 16 * 1024 for used in found.values())  # dd2::kOwnShared


def model_launches(op: str) -> Iterator[Launch]:
    """The launches that should stage the filtered rows of real models, and the bundled digits."""
    if op == "small_generator":
        yield from plan(op, small(4, 8, 64, 96, 1))[1]
    if op == "block_causal_attention":
        for images in (1, 64):
            yield from plan(op, attention(images))[1]
    for vocabulary, dim in MODELS.values():
        teacher = TeacherRows(rows=1, vocabulary=vocabulary, top_k=900, top_p=1.0)
        if op == "sample_code":
            yield from plan(op, SampleCodeParams(teacher=teacher))[1]
        elif op == "logit_distillation_loss":
            yield from plan(op, LogitDistillationLossParams(teacher=teacher, loss=1))[1]
        elif op == "flow_solve":
            yield from plan(op, FlowSolveParams(teacher, draws=1, dim=dim))[1]
        elif op == "conditional_score":
            for direction in (0, 1):
                params = ConditionalScoreParams(teacher, draws=1, dim=dim, direction=direction)
                yield from plan(op, params)[1]


def test_reports_of_cuobjdump_are_read() -> None:
    report = """
Fatbin elf code:
================
arch = sm_80
Resource usage:
 Function _Za:
  REG:155 STACK:0 SHARED:5440 LOCAL:0 CONSTANT[0]:1112
 Function _Zb:
  REG:9 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:1112
Fatbin elf code:
arch = sm_90
 Function _Za:
  REG:2 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:1112
"""
    assert resources(report) == {
        "sm_80": {"_Za": Usage(0, 155, 5440), "_Zb": Usage(24, 9, 0)},
        "sm_90": {"_Za": Usage(0, 2, 0)},
    }


def elf_size(image: bytes) -> int:
    """Where the program headers end, which a cubin has last."""
    (offset,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    return offset + size * count


def test_reports_of_ptxas_are_read() -> None:
    log = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Za' for 'sm_80'
ptxas info    : Function properties for _Za
    32 bytes stack frame, 28 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 32 bytes cumulative stack size, 688 bytes smem
ptxas info    : Compiling entry function '_Zb' for 'sm_80'
ptxas info    : Function properties for _Zb
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""
    assert usage(log) == {"_Za": Usage(84, 80, 688), "_Zb": Usage(0, 12, 0)}


@pytest.mark.long
@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("op", OPERATORS)
def test_nvrtc(op: str, arch: str) -> None:
    by_header: dict[str, list[str]] = {}
    for kernel in sorted(kernels()[op]):
        # Those of the tensor cores take minutes, and nvcc compiles them: one of each.
        same = [k for k in by_header.get(header_of(kernel), []) if "dense" in k or "direct" in k]
        if not same:
            by_header.setdefault(header_of(kernel), []).append(kernel)
    for header, names in by_header.items():
        compile_and_check(header, names, arch, model_launches(op))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATORS)
def test_nvrtc_of_what_real_models_launch(op: str) -> None:
    launched = {launch.kernel for launch in model_launches(op)}
    compile_and_check(op, sorted(launched or kernels()[op]), "sm_90", model_launches(op))


def compile_and_check(header: str, names: list[str], arch: str, launches: Iterator[Launch]) -> None:
    require_nvrtc()
    source = nvrtc.source_of(header)
    compiled = nvrtc.compile_program(source, names, arch, ["--ptxas-options=-v"])
    assert compiled.image.startswith(b"\x7fELF") and len(compiled.image) == elf_size(compiled.image)
    found = usage(compiled.log)
    assert set(found) == set(compiled.symbols) and len(found) == len(names)
    check(found)
    for launch in launches:
        if header_of(launch.kernel) == header:
            static = found[compiled.symbols[names.index(launch.kernel)]].shared
            assert static + launch.shared <= SHARED[arch]


def test_products_that_must_round_are_not_fused() -> None:
    """In PTX ``mul.rn`` is one that ptxas keeps: a logit by 1 / temperature, a row's mass by the
    uniform number."""
    require_nvrtc()
    source, streaming = (
        nvrtc.source_of("sample_code"),
        "sample_code_fwd_kernel<LogitType(0), 256, false>",
    )
    ptx = nvrtc.compile_program(source, [streaming], "compute_80").image
    assert b"mul.rn.f32" in ptx and b"mul.rn.f64" in ptx


def expected(launcher: str) -> int:
    """How many kernels a file has: those that plans can name."""
    op = max((op for op in OPERATORS if launcher.startswith(op)), key=len, default="")
    if not op:
        return 1  # the probe of device.cu
    dense = [name for name in kernels()[op] if header_of(name) == "dense_score"]
    if launcher == op:
        return len(kernels()[op]) - len(dense)
    return sum("LogitType(0)" in name for name in dense)  # a file for each type of logits


@pytest.mark.slow
def test_the_extension_spills_nothing() -> None:
    """As installed: every kernel of every architecture that it was built for."""
    library = extension.load()[0]
    if library is None or not library.cuda_architectures:
        if os.environ.get("CI") and shutil.which("nvcc"):
            pytest.fail("CI has nvcc, and the extension no CUDA kernels")
        pytest.skip("the extension has no CUDA kernels")
    report = subprocess.run(
        [require_cuobjdump(), "--dump-resource-usage", library.__file__],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = resources(report)
    assert set(found) == {name for name in library.cuda_architectures if name.startswith("sm_")}
    wanted = 1 + len(set().union(*kernels().values()))  # and the probe of device.cu
    for arch, kernels_of in found.items():
        assert len(kernels_of) == wanted, arch
        check(kernels_of)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nvcc(launcher: str, arch: str, tmp_path: Path) -> None:
    command = [
        require_nvcc(), "-std=c++17", "-O3", f"-I{CSRC}", f"-I{CSRC / 'include'}",
        f"-arch={arch}", "-cubin", "-Xptxas=-v", str(CSRC / "cuda" / f"{launcher}.cu"),
        "-o", str(tmp_path / "kernels.cubin"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = usage(result.stderr)
    assert found and len(found) == expected(launcher)
    check(found)
