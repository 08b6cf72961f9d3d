"""What a benchmark ran on, as its JSON says it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from records import BUSY

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


class Load:
    """What else the machine does between the start and :meth:`seen`."""

    def __init__(self) -> None:
        self.average = _load_average()
        self.times = _busy_seconds(), _own_seconds(), time.monotonic()

    def seen(self) -> dict[str, Any] | None:
        """Load averages over a minute at the start and now, and the share of the processors that
        other processes had; None where the system does not tell."""
        busy, own, clock = _busy_seconds(), _own_seconds(), time.monotonic()
        if busy is None or self.times[0] is None or self.average is None:
            return None
        available = max(clock - self.times[2], 1e-9) * (os.cpu_count() or 1)
        others = (busy - self.times[0]) - (own - self.times[1])
        share = min(max(others / available, 0.0), 1.0)
        return {"start": self.average, "end": _load_average(), "others": round(share, 3)}


def warning(load: dict[str, Any] | None) -> str | None:
    """Why the times of a run are not to be trusted, or None."""
    if load is None or load["others"] <= BUSY:
        return None
    return (
        f"other processes had {load['others']:.0%} of the processors (load {load['start']:.1f} at "
        f"the start, {load['end']:.1f} at the end): times are longer than on an idle machine"
    )


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _busy_seconds() -> float | None:
    """Of all processors since the machine started, by Linux: user, nice, system, irq, softirq."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, first[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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
