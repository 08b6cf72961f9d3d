"""What a benchmark ran on, as its JSON says it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
from typing import Any

import torch

_PACKAGES = ("dd2-fast", "numpy", "triton", "pytest-benchmark", "scikit-learn")
_GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit",
               "temperature.gpu")  # fmt: skip


def describe(info: dict[str, Any], threads: int) -> None:
    """Add to pytest-benchmark's ``machine_info`` what the numbers depend on; take out the host's
    name, which says nothing, and the processor's flags."""
    from dd2_fast.ops import extension, nvrtc

    info.pop("node", None)
    info.get("cpu", {}).pop("flags", None)
    module, reason = extension.load()
    cupy, missing = nvrtc.load()
    info["torch"] = torch.__version__
    info["threads"] = threads
    info["packages"] = {name: _version(name) for name in _PACKAGES}
    info["extension"] = dict(module.build_info) if module else reason
    info["nvrtc"] = cupy.cuda.nvrtc.getVersion() if cupy else missing
    info["gpu"] = None
    if torch.cuda.is_available():
        info.update(gpu_state())


def gpu_state() -> dict[str, Any]:
    """Name, driver, clocks and memory of the current GPU."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    state: dict[str, Any] = {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "gpu_multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    try:
        shown = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return state
    values = [value.strip() for value in shown.stdout.partition("\n")[0].split(",")]
    if len(values) == len(_GPU_FIELDS):
        state["nvidia_smi"] = dict(zip(_GPU_FIELDS, values, strict=True))
    return state


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # The checkout itself is not installed, but has a version.
        module = package.replace("-", "_")
        if importlib.util.find_spec(module) is None:
            return None
        return getattr(importlib.import_module(module), "__version__", None)
