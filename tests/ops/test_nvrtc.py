"""Compiling the kernels for the ``cupy`` backend: architectures, the cache on disk, the options."""

from __future__ import annotations

from pathlib import Path

import pytest
from native.fake_cupy import FakeCupy

from dd2_fast.ops import nvrtc


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCupy:
    fake = FakeCupy(lambda launch: None)
    monkeypatch.setattr(nvrtc, "load", lambda: (fake, None))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return fake


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "sm_80"), ((9, 0), "sm_90"), ((8, 9), "compute_80"), ((12, 0), "compute_100")],
)
def test_architecture(capability: tuple[int, int], arch: str) -> None:
    """A device that this NVRTC does not know gets PTX, which its driver compiles."""
    assert nvrtc.architecture(capability, (80, 90, 100)) == arch


def test_what_is_compiled(fake: FakeCupy) -> None:
    compiled = nvrtc.compile_program(
        nvrtc.source_of("nearest_code"), ["one", "two"], "sm_90", ["-G"]
    )
    assert (compiled.image, compiled.symbols) == (b"one\ntwo\0", ("_Zone", "_Ztwo"))
    (program,) = fake.cuda.nvrtc.compiled
    folder = next(option[2:] for option in program.options if option.startswith("-I"))
    assert (Path(folder) / "dd2" / "nearest_code.cuh").is_file()
    assert '#include "dd2/nearest_code.cuh"' in program.source
    assert {"-arch=sm_90", "-G"} <= set(program.options)
    flags = [option for option in program.options if not option.startswith("-I")]
    assert not any("ftz" in flag or "fast" in flag for flag in flags)
    assert all(not vars(program) for program in fake.cuda.nvrtc.programs.values()), "a leak"


def test_the_compilers_message_is_the_error(fake: FakeCupy) -> None:
    fake.cuda.nvrtc.error = "line 3: no"
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile .*sm_90: line 3: no"):
        nvrtc.compile_program("source", ["one"], "sm_90")


def compiles(fake: FakeCupy, *arguments: str) -> int:
    """How often NVRTC runs for an image, which is right in any case."""
    before = len(fake.cuda.nvrtc.compiled)
    header, kernel, arch = arguments
    assert nvrtc.cached_image(header, kernel, arch) == (f"{kernel}\0".encode(), f"_Z{kernel}")
    return len(fake.cuda.nvrtc.compiled) - before


def test_cache_on_disk(fake: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("nearest_code", "kernel<8>", "sm_90")
    assert [compiles(fake, *arguments) for _ in range(3)] == [1, 0, 0]
    assert compiles(fake, "nearest_code", "kernel<32>", "sm_90") == 1
    assert compiles(fake, "nearest_code", "kernel<8>", "compute_100") == 1
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3 and all(file.suffix == ".bin" for file in files)
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    assert [compiles(fake, *arguments) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(nvrtc, "_headers_digest", lambda: b"changed headers")
    assert compiles(fake, *arguments) == 1


def test_a_cache_that_cannot_be_written_is_no_error(
    fake: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert [compiles(fake, "nearest_code", "kernel<8>", "sm_90") for _ in range(2)] == [1, 1]


def test_the_digest_covers_every_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("dd2/a.cuh", "dd2/b.h")
    (tmp_path / "dd2").mkdir()
    monkeypatch.setattr(nvrtc, "_include_folder", lambda: tmp_path)
    digests = set()
    for changed in (None, *names):
        for name in names:
            (tmp_path / name).write_text("old" if name != changed else "new")
        digests.add(nvrtc._headers_digest.__wrapped__())
    assert len(digests) == 3
