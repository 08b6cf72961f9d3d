"""The engine, compiled once for this CPU and kept in a cache folder."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Handlers are loops over 32 lanes that shall become vector instructions; -O3 takes twice as long.
_FLAGS = ("-std=c++17", "-O1", "-ftree-vectorize", "-march=native", "-ffp-contract=off",
          "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-Wall", "-Wextra")  # fmt: skip
_FOLDER = Path(__file__).parent / "engine"


def cache_folder() -> Path:
    """``PTXRUN_CACHE``, default ``~/.cache/dd2_fast/ptxrun``."""
    folder = Path(os.environ.get("PTXRUN_CACHE") or Path.home() / ".cache" / "dd2_fast" / "ptxrun")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiler_command() -> list[str]:
    """The C++ compiler of ``CXX``, which may carry a launcher, or g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _cpu_flags() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def compile_shared(
    stem: str, sources: Sequence[Path], flags: Sequence[str] = _FLAGS, headers: Sequence[Path] = ()
) -> Path:
    """A shared library of ``sources``, compiled side by side. What neither changed itself nor has
    changed ``headers`` comes from the cache; processes that ask at once wait for the first.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    compile_ = [*compiler_command(), *flags, "-c"]
    common = repr((compile_, _cpu_flags())).encode()
    common += b"".join(path.read_bytes() for path in headers)
    folder = cache_folder()

    def cached(name: str, suffix: str, key: bytes, command: list[str]) -> str:
        target = folder / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}{suffix}"
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _run([*command, "-o", f"{scratch}/made"])
                os.replace(f"{scratch}/made", target)
        return str(target)

    def compiled(source: Path) -> str:
        command = [*compile_, str(source)]
        return cached(source.stem, ".o", common + source.read_bytes(), command)

    with open(folder / f"{stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        link = [*compiler_command(), "-shared", *objects]
        return Path(cached(stem, ".so", repr(link).encode(), link))


def _run(command: list[str]) -> None:
    # A sanitizer's runtime is for this process, not for the compiler.
    unloaded = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=unloaded)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")


class Config(ctypes.Structure):
    """``ptxrun::Config`` of ``engine.h``."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        *((name, ctypes.c_uint32) for name in (
            "static_shared", "dynamic_shared", "local_bytes", "file_bytes", "grain", "param_bytes",
            "instructions", "constants",
        )),
        *((name, ctypes.c_uint8) for name in (
            "races", "uninitialised", "global_races", "transactions", "same_value",
        )),
        ("budget", ctypes.c_uint64),
        ("arch", ctypes.c_uint32),
    ]  # fmt: skip


@functools.cache
def engine() -> ctypes.CDLL:
    """The loaded engine."""
    # The longest first: two processors then end at about the same time.
    sources = sorted(_FOLDER.glob("*.cpp"), key=lambda path: -path.stat().st_size)
    path = compile_shared("engine", sources, headers=sorted(_FOLDER.glob("*.h")))
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    library.ptxrun_handler.argtypes = [ctypes.c_char_p]
    library.ptxrun_create.argtypes = [pointer] * 4
    library.ptxrun_create.restype = pointer
    library.ptxrun_params.argtypes = [pointer, ctypes.c_char_p, ctypes.c_uint32]
    library.ptxrun_range.argtypes = [pointer, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    library.ptxrun_run.argtypes = [pointer]
    library.ptxrun_counts.argtypes = [pointer]
    library.ptxrun_counts.restype = pointer
    library.ptxrun_faults.argtypes = [pointer]
    library.ptxrun_fault.argtypes = [pointer, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int]
    library.ptxrun_destroy.argtypes = [pointer]
    library.ptxrun_destroy.restype = None
    return library
