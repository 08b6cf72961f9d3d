"""A driver of Triton whose GPU is an executor: kernels compile for it and run on CPU tensors."""

from __future__ import annotations

from typing import Any

import ptxrun
import pytest
import torch
import triton
from compiled.executor import Executor
from triton.backends.compiler import GPUTarget


class Driver:
    """The part of a driver that launches need."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.functions: list[ptxrun.Function] = []
        self.utils, self.launcher_cls = self, Launcher

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.executor.shared_limit,
            "multiprocessor_count": self.executor.processors,
            "max_num_regs": 65_536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, ptx: bytes, shared: int, device: int) -> tuple[int, ...]:
        self.functions.append(ptxrun.load(ptx).function(name))
        return 1, len(self.functions) - 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.executor.arch, 32)

    def get_current_device(self) -> int:
        return id(self)  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


class Launcher:
    """Launches one kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.types, self.metadata = list(src.signature.values()), metadata

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: int, packed: Any,
        launch_metadata: Any, enter: Any, leave: Any, *args: Any,
    ) -> None:  # fmt: skip
        driver = triton.runtime.driver.active
        executor, found = driver.executor, driver.functions[function]
        values = [
            executor.memory.add(value) if isinstance(value, torch.Tensor) else value
            for kind, value in zip(self.types, args, strict=True)
            if kind != "constexpr"
        ]
        values += [0] * (len(found.kernel.params) - len(values))  # scratch memory, of no bytes
        params = found.params_of(values)
        executor.launch(found, (x, y, z), (32 * self.metadata.num_warps,), params,
                        self.metadata.shared)  # fmt: skip


def install(patch: pytest.MonkeyPatch, executor: Executor) -> None:
    """Makes the executor Triton's GPU."""
    patch.setattr(triton.runtime.driver, "_active", Driver(executor))
