"""`dd2-fast info`: versions, devices, and what each backend can do here."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from typing import Any

_PACKAGES = ("torch", "triton", "numpy", "cupy", "safetensors", "Pillow", "nvtx", "scikit-learn")
_CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "info",
        help="versions, devices and backends",
        description="Print versions, what the extension was compiled for, devices, and every "
        "backend with the reason where one cannot run.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; ValueError after it for a DD2_FAST_BACKEND that is no backend."""
    import torch

    from .. import __version__, ops, sampling

    _row("dd2_fast", __version__)
    _row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        _row(package, _version(package))
    for name, value in _extension():
        _row(name, value)
    _row("bundled models", ", ".join(sampling.bundled_names()) or "none")
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for device in devices:
        print()
        _row(f"device {device}", _describe(device))
        for name, reason in ops.available_backends(device).items():
            _row(f"  backend {name}", "available" if reason is None else f"unavailable: {reason}")
    forced = os.environ.get("DD2_FAST_BACKEND")
    known = ops.available_backends("cpu")
    if forced and forced not in known:
        raise ValueError(
            f"DD2_FAST_BACKEND: expected one of {', '.join(map(repr, known))}, got {forced!r}"
        )
    if forced:
        print(f"\nDD2_FAST_BACKEND={forced} overrides the automatic choice")
    return 0


def _row(name: str, value: str) -> None:
    print(f"{name:<23}{value}")  # cpu_instruction_set is the longest


def _version(package: str) -> str:
    for name in _CUPY if package == "cupy" else (package,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _extension() -> list[tuple[str, str]]:
    """Return what the compiled extension says about itself, or why there is none."""
    from ..ops import extension

    module, reason = extension.load()
    if module is None:
        return [("extension", f"unavailable: {reason}")]
    seen = extension.build_record()
    architectures = ", ".join(module.cuda_architectures)
    rows = [("extension", f"compiled for CPU and CUDA {architectures}")]
    if not architectures:
        reason = seen.get("cuda", "no nvcc, or DD2_FAST_CUDA=0, at build")
        rows = [("extension", f"compiled for the CPU only ({reason})")]
    facts = {**dict(module.build_info), **{f"built_{key}": seen[key] for key in seen}}
    return rows + [(f"  {key}", str(value)) for key, value in facts.items()]


def _describe(device: str) -> str:
    import torch

    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}"
    properties = torch.cuda.get_device_properties(device)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
