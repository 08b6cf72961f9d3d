"""Modules of PTX text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .findings import Counters
from .launch import Function
from .parse import Program


class Module:
    """The kernels of one PTX text."""

    def __init__(self, text: str) -> None:
        self.program = Program(text)
        self.arch = int("".join(c for c in self.program.target if c.isdigit()))
        self.variables = dict(self.program.variables)
        self._memory, self.host_variables = {}, []
        for variable in self.variables.values():
            if variable.space in ("global", "const") and variable.size:
                data = np.zeros(variable.size + 512, np.uint8)
                offset = -data.ctypes.data % 256
                data[offset : offset + len(variable.data)] = np.frombuffer(variable.data, np.uint8)
                self._memory[variable.name] = data
                variable.offset = data.ctypes.data + offset
                self.host_variables.append(variable)
        self._functions: dict[str, Function] = {}

    @property
    def kernels(self) -> list[str]:
        return self.program.kernels

    def function(self, name: str) -> Function:
        """A kernel, by its mangled name or by a part of it that no other has."""
        if name not in self._functions:
            named = [k for k in self.kernels if k == name] or [k for k in self.kernels if name in k]
            if len(named) != 1:
                raise KeyError(f"{name!r} names {len(named)} kernels of {self.kernels}")
            self._functions[name] = Function(self, named[0])
        return self._functions[name]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any] | None = None,
        **options: Any,
    ) -> Counters:
        """As Function.launch, with what it counted."""
        return self.function(name).launch(grid, block, args, **options)[0]


def load(text: str | bytes) -> Module:
    """A module of PTX text."""
    return Module(text.decode().rstrip("\0") if isinstance(text, bytes) else text)
