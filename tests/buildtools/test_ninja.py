"""build.ninja in folders with a user's names, and the dispatch of what a compiler knows."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from buildtools_stubs import ODD, ROOT, module, real_gxx
from native.build import cpu_operators

COMPILE = ["$flags", "-MD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]


def ninja(folder: Path) -> str:
    program = shutil.which("ninja") or pytest.skip("no ninja")
    run = subprocess.run([program], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_paths_and_flags_of_any_characters(tmp_path: Path) -> None:
    source, build = tmp_path / ODD / "csrc", tmp_path / ODD / "build: 1"
    (source / "an include").mkdir(parents=True)
    build.mkdir()
    header = source / "an include" / "value.h"
    header.write_text("constexpr int kValue = 40;\n")
    (source / "a b.cpp").write_text(
        '#include "value.h"\nextern "C" const char* text() { return TEXT; }\n'
        'extern "C" int value() { return kValue; }\n'
    )
    text = 'it\'s $5 & "more" \\ ö'
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    file = module("ninja").NinjaFile(build)
    include = f"-I{file.relative(source / 'an include')}"
    file.rule("cxx", [real_gxx(), "-O0", "-fPIC", include, *COMPILE])
    file.rule("link", [real_gxx(), "-shared", "-o", "$out", "$in"], depfile=False)
    file.compile("cxx", source / "a b.cpp", flags=[f'-DTEXT="{quoted}"'])
    target = tmp_path / ODD / "lib: é.so"
    file.link(target)
    file.write()
    ninja(build)
    library = ctypes.CDLL(str(target))
    library.text.restype = ctypes.c_char_p
    assert library.text().decode() == text and library.value() == 40
    assert "no work to do" in ninja(build)
    os.utime(header, (4e9, 4e9))
    assert "no work to do" not in ninja(build)


def test_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="line break"):
        module("ninja").NinjaFile(tmp_path).rule("cxx", ["g++\n"])


@pytest.mark.parametrize("levels", [("generic",), ("v2",), ("v2", "v3"), ("v2", "v3", "v4")])
def test_the_best_level_that_was_built_is_taken(levels: tuple[str, ...], tmp_path: Path) -> None:
    """dispatch.cpp over kernels that write which level they are of."""
    compiler, csrc = real_gxx(), ROOT / "csrc"
    lines = [
        '#include "dispatch.h"',
        '#include "dd2/sample_code.h"',
        "static const char* taken = nullptr;",
    ]
    for level in levels:
        for kernel, params in cpu_operators().items():
            lines.append(
                f"namespace dd2::cpu::{level} {{ void launch_{kernel}(const {params}&, int) "
                f'{{ taken = "{level}"; }} }}'
            )
    lines.append(
        'extern "C" const char* named() { return dd2::cpu::instruction_set(); }\n'
        'extern "C" const char* ran() { dd2::cpu::launch_sample_code({}, 1); return taken; }'
    )
    (tmp_path / "kernels.cpp").write_text("\n".join(lines))
    includes = [f"-I{csrc}", f"-I{csrc / 'include'}", f"-I{csrc / 'cpu'}"]
    known = [f"-DDD2_WITH_{level.upper()}" for level in levels]
    library = tmp_path / "dispatch.so"
    sources = [str(csrc / "cpu" / "dispatch.cpp"), str(tmp_path / "kernels.cpp")]
    subprocess.run(
        [compiler, "-std=c++17", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
         *includes, *known, *sources, "-o", str(library)], check=True,
    )  # fmt: skip
    code = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1])\n"
        "lib.named.restype = lib.ran.restype = ctypes.c_char_p\n"
        "print(lib.named().decode(), lib.ran().decode())\n"
    )

    def taken(limit: str) -> str:
        run = subprocess.run(
            [sys.executable, "-c", code, str(library)], check=True, capture_output=True, text=True,
            env={**os.environ, "DD2_FAST_CPU_ISA": limit},
        )  # fmt: skip
        named, ran = run.stdout.split()
        assert named.removeprefix("x86-64-") == ran
        return ran

    assert taken("v2") == levels[0]
    assert taken("") in levels
    # What the processor of the tests has is not known here, but more is never taken than was built.
    assert [taken(limit) for limit in ("v3", "v4")] == sorted(
        (taken(limit) for limit in ("v3", "v4")), key=levels.index
    )
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx2" in flags.split() and len(levels) > 1:
        assert taken("v3") == "v3"
