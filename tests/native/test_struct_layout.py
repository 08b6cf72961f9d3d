"""The ctypes mirrors of the kernels' arguments against the headers, by the compilers themselves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from native.build import DEFAULT_INCLUDES, compiled_operators, compiler_command
from native.compilers import require_nvrtc

from dd2_fast.ops import extension, native, nvrtc, structs
from dd2_fast.ops.sample_code import native as sample_code

# NVRTC's front end has no offsetof, but its own name for the address in a constant.
OFFSET = """
#ifdef __CUDACC_RTC__
#define OFFSET(type, field) __INTADDR__(&((type*)0)->field)
#else
#define OFFSET(type, field) __builtin_offsetof(type, field)
#endif
"""


def mirrored() -> list[type[ctypes.Structure]]:
    """The arguments of every operator, and the structs inside them."""
    found: dict[type[ctypes.Structure], None] = {}

    def add(struct: type[ctypes.Structure]) -> None:
        for _, kind, *_ in struct._fields_:
            if issubclass(kind, ctypes.Structure):
                add(kind)
        found[struct] = None

    for op, name in compiled_operators().items():
        struct = structs.params_of(op)
        assert struct.__name__ == name
        add(struct)
    return list(found)


def checks(struct: type[ctypes.Structure]) -> str:
    """C++ that compiles where the header's struct has these fields, no others, at these places."""
    name, fields = f"dd2::{struct.__name__}", [field for field, *_ in struct._fields_]
    lines = [f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "size");']
    for field in fields:
        place = getattr(struct, field)
        lines.append(
            f"static_assert(OFFSET({name}, {field}) == {place.offset} && "
            f'sizeof({name}::{field}) == {place.size}, "{field}");'
        )
    lines.append(f"inline void fields_of({name}& value) {{ auto& [{', '.join(fields)}] = value; }}")
    return "\n".join(lines)


def logit_types() -> str:
    order = {torch.float32: "kFloat32", torch.bfloat16: "kBFloat16", torch.float16: "kFloat16"}
    return "\n".join(
        f'static_assert(static_cast<int>(dd2::LogitType::{order[dtype]}) == {i}, "{dtype}");'
        for dtype, i in native.LOGIT_TYPES.items()
    )


def compile_host(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "layout.cpp"
    path.write_text(source)
    includes = [f"-I{path}" for path in DEFAULT_INCLUDES]
    command = [*compiler_command(), "-std=c++17", "-fsyntax-only", *includes, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def source() -> str:
    includes = "".join(f'#include "dd2/{op}.h"\n' for op in compiled_operators())
    return "\n".join([OFFSET, includes, logit_types(), *map(checks, mirrored())])


needs_compiler = pytest.mark.skipif(
    shutil.which(compiler_command()[0]) is None, reason="no C++ compiler"
)


@needs_compiler
def test_the_host_compiler_agrees(source: str, tmp_path: Path) -> None:
    result = compile_host(source, tmp_path)
    assert result.returncode == 0, result.stderr


@needs_compiler
@pytest.mark.parametrize("fault", ["missing", "moved", "size"])
def test_the_check_finds_a_fault(fault: str, tmp_path: Path) -> None:
    fields = dict(structs.TeacherRows._fields_)
    if fault == "missing":
        del fields["logit_type"]
    elif fault == "moved":
        fields = {"uncond": fields.pop("uncond"), **fields}
    else:
        fields["top_p"] = ctypes.c_double
    wrong = type("TeacherRows", (ctypes.Structure,), {"_fields_": list(fields.items())})
    result = compile_host(OFFSET + '#include "dd2/teacher_rows.h"\n' + checks(wrong), tmp_path)
    assert result.returncode != 0


def test_nvrtc_agrees(source: str) -> None:
    require_nvrtc()
    nvrtc.compile_program(source, (), "compute_80")


@pytest.mark.skipif(extension.load()[0] is None, reason="no compiled extension")
@pytest.mark.parametrize("fault", ["none", "moved", "size", "missing"])
def test_an_extension_of_other_sources_is_refused(fault: str, monkeypatch) -> None:
    fields = dict(sample_code.SampleCodeParams._fields_)
    if fault == "moved":
        fields = {"out": fields.pop("out"), **fields}
    elif fault == "size":
        fields["inverse_temperature"] = ctypes.c_double
    elif fault == "missing":
        del fields["index"]
    changed = type("SampleCodeParams", (ctypes.Structure,), {"_fields_": list(fields.items())})
    monkeypatch.setattr(sample_code, "SampleCodeParams", changed)
    module, reason = extension.load.__wrapped__()
    assert (module is None) == (fault != "none")
    assert fault == "none" or "sample_code differs" in reason
