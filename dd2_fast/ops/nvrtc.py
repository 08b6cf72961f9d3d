"""The kernels of ``csrc/include/dd2``, compiled by NVRTC at their first use, through CuPy.

An instantiation is compiled once for each architecture, about a second, and kept on disk under
``CUPY_CACHE_DIR`` (default ``~/.cupy/kernel_cache``). Loading one may fail while a CUDA graph is
captured: call the operator once before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# cupy.RawModule adds -ftz=true: half-precision logits and ties at zero need their denormals.
OPTIONS = ("-std=c++17", "--device-as-default-execution-space")


@dataclass(frozen=True)
class Compiled:
    """A loadable image, the kernels' mangled names in the order asked for, the compiler's log."""

    image: bytes
    symbols: tuple[str, ...]
    log: str


@functools.cache
def load() -> tuple[Any, str | None]:
    """CuPy and None, or None and the reason why its NVRTC cannot be used."""
    try:
        module = importlib.import_module("cupy")
        module.cuda.nvrtc.getVersion()
    except Exception as error:  # also a CUDA library that is missing, or of another version
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return None, "CuPy is not installed: install dd2-fast[cuda13], or dd2-fast[cuda12]"
        return None, f"CuPy has no working NVRTC: {error}"
    if not _include_folder().is_dir():
        return None, f"the kernels' headers are not installed: no folder {_include_folder()}"
    return module, None


def unusable() -> str | None:
    """Why CuPy cannot run kernels here, or None."""
    module, reason = load()
    if module is None:
        return reason
    try:
        module.cuda.runtime.getDeviceCount()
    except Exception as error:  # a driver that is older than CuPy's CUDA version
        return f"CuPy sees no CUDA device: {error}"
    return None


def cupy() -> Any:
    """CuPy, for backends that the registry has already found usable."""
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module


def _include_folder() -> Path:
    """Package data of an installed wheel, or of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "csrc" / "include"
    return installed if installed.is_dir() else package.parent / "csrc" / "include"


def architecture(capability: tuple[int, int], supported: Sequence[int]) -> str:
    """NVRTC's name for a device; for one that it does not know, the newest PTX that runs there."""
    wanted = 10 * capability[0] + capability[1]
    if wanted in supported:
        return f"sm_{wanted}"
    return f"compute_{max(known for known in supported if known < wanted)}"


def source_of(header: str) -> str:
    """A program with the kernels of ``dd2/<header>.cuh``, by their names inside namespace dd2."""
    return f'#include "dd2/{header}.cuh"\nusing namespace dd2;\n'


def compile_program(
    source: str, kernels: Sequence[str], arch: str, options: Sequence[str] = ()
) -> Compiled:
    """Compile template instantiations of ``source`` for ``arch``, which need not be here.

    Raises:
        RuntimeError: they do not compile; the message is the compiler's.
    """
    nvrtc = cupy().cuda.nvrtc
    program = nvrtc.createProgram(source, "dd2_fast.cu", (), ())
    try:
        for kernel in kernels:
            nvrtc.addNameExpression(program, kernel)
        settings = (*OPTIONS, f"-I{_include_folder()}", f"-arch={arch}", *options)
        try:
            nvrtc.compileProgram(program, settings)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"NVRTC cannot compile the kernels for {arch}: {log}") from error
        read = nvrtc.getCUBIN if arch.startswith("sm_") else nvrtc.getPTX
        # CuPy strips the last byte of either, which is zero.
        image = read(program) + b"\0"
        symbols = tuple(nvrtc.getLoweredName(program, kernel) for kernel in kernels)
        return Compiled(image, symbols, nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


@functools.cache
def _headers_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(_include_folder().rglob("*.*h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def cached_image(header: str, kernel: str, arch: str) -> tuple[bytes, str]:
    """Image and mangled name, from the cache on disk or compiled and left there if it can be."""
    version = cupy().cuda.nvrtc.getVersion()
    key = repr((header, kernel, arch, OPTIONS, version)).encode()
    name = hashlib.sha256(key + _headers_digest()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))
    path = folder / f"dd2_fast_{name}.bin"
    try:
        digest, symbol, image = path.read_bytes().split(b"\n", 2)
        if hashlib.sha256(symbol + image).hexdigest().encode() == digest:
            return image, symbol.decode()
    except (OSError, ValueError):
        pass
    compiled = compile_program(source_of(header), [kernel], arch)
    symbol, image = compiled.symbols[0].encode(), compiled.image
    digest = hashlib.sha256(symbol + image).hexdigest().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(b"\n".join((digest, symbol, image)))
        os.replace(file.name, path)
    except OSError:
        pass  # a read-only home: every process compiles for itself
    return image, symbol.decode()
