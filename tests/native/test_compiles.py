"""Every kernel through NVRTC and nvcc for the architectures of the release: none spills registers,
and the rows of real models fit in shared memory. Runs nothing; all but the kernels that real models
launch on one architecture compiles for minutes and is slow."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from native.build import CSRC
from native.compilers import Usage, require_nvcc, require_nvrtc, usage

from dd2_fast.ops import nvrtc
from dd2_fast.ops.conditional_score import plan as conditional_score
from dd2_fast.ops.flow_solve import plan as flow_solve
from dd2_fast.ops.image_normal import plan as image_normal
from dd2_fast.ops.launch import Way
from dd2_fast.ops.nearest_code import plan as nearest_code
from dd2_fast.ops.sample_code import plan as sample_code
from dd2_fast.ops.structs import (
    ConditionalScoreParams,
    FlowSolveParams,
    SampleCodeParams,
    TeacherRows,
)

# Bytes of shared memory that a block can have.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}
KERNELS = {
    "conditional_score": conditional_score.KERNELS,
    "flow_solve": flow_solve.KERNELS,
    "image_normal": image_normal.KERNELS,
    "nearest_code": nearest_code.KERNELS,
    "sample_code": sample_code.KERNELS,
}
MODELS = {"var": (4096, 32), "llamagen": (16_384, 8)}


def check(found: dict[str, Usage]) -> None:
    spilling = {symbol: used for symbol, used in found.items() if used.spilled}
    assert not spilling
    # dd2::cuda::kSharedUnasked leaves this much of what no kernel must ask for.
    assert all(used.shared <= 16 * 1024 for used in found.values())


def model_ways(header: str) -> Iterator[Way]:
    """The launches that should stage the filtered rows of real models."""
    for vocabulary, dim in MODELS.values():
        teacher = TeacherRows(rows=1, vocabulary=vocabulary, top_k=900, top_p=1.0)
        if header == "sample_code":
            yield sample_code.plan(SampleCodeParams(teacher=teacher))[0]
        elif header == "flow_solve":
            yield flow_solve.plan(FlowSolveParams(teacher, draws=1, dim=dim), processors=1)[0]
        elif header == "conditional_score":
            for direction in (0, 1):
                params = ConditionalScoreParams(teacher, draws=1, dim=dim, direction=direction)
                yield conditional_score.plan(params)[0]


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


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("header", KERNELS)
def test_nvrtc(header: str, arch: str) -> None:
    compile_and_check(header, KERNELS[header], arch)


@pytest.mark.parametrize("header", KERNELS)
def test_nvrtc_of_what_real_models_launch(header: str) -> None:
    launched = {way.kernel for way in model_ways(header)}
    compile_and_check(header, sorted(launched) or KERNELS[header], "sm_90")


def compile_and_check(header: str, kernels: list[str], arch: str) -> None:
    require_nvrtc()
    source = nvrtc.source_of(header)
    compiled = nvrtc.compile_program(source, kernels, arch, ["--ptxas-options=-v"])
    assert compiled.image.startswith(b"\x7fELF") and len(compiled.image) == elf_size(compiled.image)
    found = usage(compiled.log)
    assert set(found) == set(compiled.symbols) and len(found) == len(kernels)
    check(found)
    for way in model_ways(header):
        static = found[compiled.symbols[kernels.index(way.kernel)]].shared
        assert static + way.shared <= SHARED[arch]


def test_products_that_must_round_are_not_fused() -> None:
    """In PTX ``mul.rn`` is one that ptxas keeps: a logit by 1 / temperature, a row's mass by the
    uniform number."""
    require_nvrtc()
    source, streaming = nvrtc.source_of("sample_code"), sample_code.KERNELS[0]
    ptx = nvrtc.compile_program(source, [streaming], "compute_80").image
    assert b"mul.rn.f32" in ptx and b"mul.rn.f64" in ptx


@pytest.mark.slow
def test_nvrtc_takes_the_tensor_core_headers() -> None:
    require_nvrtc()
    source = '#include "dd2/dense_score.cuh"\n' + nvrtc.source_of("direct_score")
    kernels = [
        "dense_score_fwd_kernel<LogitType::kBFloat16, 32, true, true>",
        "direct_score_fwd_kernel<LogitType::kBFloat16, 32, true>",
        "row_filter_kernel<LogitType::kBFloat16, true>",
        "split_codebook_kernel<32>",
    ]
    compiled = nvrtc.compile_program(source, kernels, "sm_90", ["--ptxas-options=-v"])
    found = usage(compiled.log)
    assert set(found) == set(compiled.symbols)
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize("launcher", sorted(p.stem for p in (CSRC / "cuda").glob("*.cu")))
def test_nvcc(launcher: str, arch: str, tmp_path: Path) -> None:
    command = [
        require_nvcc(), "-std=c++17", "-O3", f"-I{CSRC}", f"-I{CSRC / 'include'}",
        f"-arch={arch}", "-cubin", "-Xptxas=-v", str(CSRC / "cuda" / f"{launcher}.cu"),
        "-o", str(tmp_path / "kernels.cubin"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = usage(result.stderr)
    assert found and len(found) == len(KERNELS.get(launcher, found))
    check(found)
