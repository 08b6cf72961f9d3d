"""Kernels, and their launches on the engine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import lower
from .build import Config, engine
from .calls import Inlining
from .findings import Checks, Count, Counters, Fault, Line, PtxError

if TYPE_CHECKING:
    from .module import Module

# Bytes of shared memory that a block can have.
_LARGEST_SHARED = 232_448
SHARED_LIMITS = {
    80: 166_912, 86: 101_376, 89: 101_376, 90: _LARGEST_SHARED, 100: _LARGEST_SHARED, 120: 101_376
}  # fmt: skip
_ENCODED = np.dtype([
    ("handler", "i4"), ("first", "i4"), ("imm", "i8"), ("target", "i4"), ("guard", "i4"),
    ("kind", "u1"), ("negated", "u1"), ("space", "u1"), ("flags", "u1"), ("round", "u1"),
    ("size", "u1"), ("pad", "u1", 2),
])  # fmt: skip
_CONSTANT = np.dtype([("offset", "i4"), ("width", "i4"), ("value", "u8")])
_RED_ZONE = 4096


class Buffer:
    """Host memory as a device allocation between red zones."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.size = array.nbytes
        self._raw = np.full(self.size + 2 * _RED_ZONE + 256, 0xFF, np.uint8)
        start = -(-(self._raw.ctypes.data + _RED_ZONE) // 256) * 256 - self._raw.ctypes.data
        self._inside = self._raw[start : start + self.size]
        self._inside[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.address = self._inside.ctypes.data

    def copy_back(self) -> None:
        if self.array.flags.writeable:
            data = self._inside.tobytes()
            self.array[...] = np.frombuffer(data, self.array.dtype).reshape(self.array.shape)


class Function:
    """One kernel, lowered."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        library = engine()
        handlers: dict[str, int] = {}

        def index(handler: str) -> int:
            if handler not in handlers:
                handlers[handler] = library.ptxrun_handler(handler.encode())
            return handlers[handler]

        kernel = module.program.kernel(name)
        Inlining(kernel, module.program.function).run()
        lowering = lower.Lowering(kernel, module.variables, lambda h: index(h) >= 0)
        self.lowered = lowered = lowering.run()
        self.kernel = kernel
        operands: list[int] = []
        self.code = np.zeros(len(lowered.code), _ENCODED)
        for at, e in zip(range(len(lowered.code)), lowered.code, strict=True):
            self.code[at] = (index(e.handler), len(operands), e.imm, e.target, e.guard, e.kind,
                             e.negated, e.space, e.flags, e.round, e.size, 0)  # fmt: skip
            operands += e.operands
        self.operands = np.array([*operands, 0], np.int32)
        self.constants = np.array(lowered.constants, _CONSTANT)

    @property
    def unsupported(self) -> dict[int, str]:
        """Instructions, by PTX line, that end a launch when they are reached."""
        return {self.kernel.code[i].line: why for i, why in self.lowered.unsupported.items()}

    def _params(self, args: Sequence[Any]) -> tuple[bytes, list[Buffer]]:
        """The parameters' bytes, and the copies of arrays that they point to."""
        params = self.kernel.params
        if len(args) != len(params):
            raise TypeError(f"{self.name}: expected {len(params)} arguments, got {len(args)}")
        data = bytearray(self.lowered.param_bytes)
        buffers: dict[int, Buffer] = {}
        for param, value in zip(params, args, strict=True):
            if isinstance(value, np.ndarray):
                buffer = buffers.setdefault(id(value), Buffer(value))
                raw = buffer.address.to_bytes(8, "little")
            else:
                raw = _raw(value, param.size)
            if len(raw) != param.size:
                raise TypeError(f"{self.name}: {param.name} has {param.size} bytes, got {len(raw)}")
            data[param.offset : param.offset + param.size] = raw
        return bytes(data), list(buffers.values())

    def params_of(self, args: Sequence[Any]) -> bytes:
        """The parameters' bytes of arguments that need no memory: numbers and addresses."""
        return self._params(args)[0]

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any] | None = None,
        *,
        shared: int = 0,
        params: bytes | None = None,
        memory: Sequence[tuple[int, int]] = (),
        checks: Checks | None = None,
        raises: bool = True,
    ) -> tuple[Counters, list[Fault]]:
        """Runs all blocks, one after the other.

        Args:
            args: a NumPy array (copied in and out, between red zones), an int, a float, or bytes
                for each parameter.
            params: the parameters' bytes instead of ``args``.
            memory: ``(address, bytes)`` of host memory that the kernel may access, beside arrays.
            raises: raise PtxError where there are faults, else return them.
        """
        checks = checks or Checks()
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (tuple(grid), tuple(block)))
        self._check_limits(grid, block, shared)
        buffers: list[Buffer] = []
        if params is None:
            params, buffers = self._params(args or ())
        lowered, library = self.lowered, engine()
        config = Config(
            grid, block, lowered.static_shared, shared, lowered.local_bytes, lowered.file_bytes,
            lowered.grain, lowered.param_bytes, len(self.code), len(self.constants), checks.races,
            checks.uninitialised, checks.global_races, checks.transactions, checks.same_value,
            checks.budget, self.module.arch,
        )  # fmt: skip
        handle = library.ptxrun_create(
            ctypes.addressof(config), self.code.ctypes.data, self.operands.ctypes.data,
            self.constants.ctypes.data,
        )  # fmt: skip
        try:
            library.ptxrun_params(handle, params, len(params))
            known = [*memory, *((b.address, b.size) for b in buffers)]
            for variable in self.module.host_variables:
                extent = variable.offset, variable.size
                if any(_overlap(extent, other) for other in known):
                    known.append(extent)  # the memory of what is no longer there
                else:
                    writable = variable.space == "global"
                    library.ptxrun_range(handle, *extent, writable)
            for address, size in _merged(known):
                library.ptxrun_range(handle, address, size, 1)
            library.ptxrun_run(handle)
            faults = [
                fault
                for n in range(library.ptxrun_faults(handle))
                if (fault := self._fault(handle, n)).kind not in checks.ignore
            ]
            blocks = grid[0] * grid[1] * grid[2]
            counters = self._counters(handle, blocks, -(-block[0] * block[1] * block[2] // 32))
        finally:
            library.ptxrun_destroy(handle)
        for buffer in buffers:
            buffer.copy_back()
        if faults and raises:
            raise PtxError(faults)
        return counters, faults

    def _check_limits(self, grid: Sequence[int], block: Sequence[int], shared: int) -> None:
        threads, static = block[0] * block[1] * block[2], self.lowered.static_shared
        limit = SHARED_LIMITS.get(self.module.arch, _LARGEST_SHARED)
        wanted = self.kernel.limits.get("reqntid")
        most = np.prod(self.kernel.limits.get("maxntid", (1024,)))
        problems = [
            (min(*grid, *block) <= 0, f"empty grid {grid} or block {block}"),
            (threads > 1024 or block[2] > 64, f"{threads} threads in a block"),
            (grid[0] >= 2**31 or max(grid[1:]) > 65535, f"grid {grid}"),
            (static > 49_152, f"{static} bytes of static shared memory"),
            (static + shared > limit, f"{static} + {shared} bytes of shared memory, of {limit}"),
            (
                wanted is not None and (*wanted, 1, 1)[:3] != tuple(block),
                f"block {block}, .reqntid {wanted}",
            ),
            (threads > most, f"{threads} threads, .maxntid {most}"),
        ]
        for wrong, text in problems:
            if wrong:
                raise PtxError([Fault("limits", text, self.name, 0, "", "", (0, 0, 0), 0, 0, 1)])

    def _where(self, pc: int) -> tuple[int, str, str]:
        index = self.lowered.code[pc].of
        i = self.kernel.code[index]
        guard = f"@{i.guard} " if i.guard else ""
        return i.line, i.source, f"{guard}{i.opcode} {', '.join(i.operands)}"

    def _fault(self, handle: int, n: int) -> Fault:
        numbers, address = (ctypes.c_int32 * 6)(), ctypes.c_uint64()
        text = ctypes.create_string_buffer(4096)
        engine().ptxrun_fault(handle, n, numbers, ctypes.byref(address), text, 4096)
        kind, what = text.value.decode().split("\n", 1)
        pc, x, y, z, thread, times = numbers
        line, source, instruction = self._where(pc)
        if kind == "trap":
            what = self.lowered.unsupported.get(self.lowered.code[pc].of, "trap")
            kind = "unsupported" if what != "trap" else kind
        return Fault(
            kind,
            what,
            self.name,
            line,
            source,
            instruction,
            (x, y, z),
            thread,
            address.value,
            times,
        )

    def _counters(self, handle: int, blocks: int, warps: int) -> Counters:
        raw = (ctypes.c_uint64 * (4 * len(self.code))).from_address(engine().ptxrun_counts(handle))
        counts = np.ctypeslib.as_array(raw).reshape(-1, 4).astype(np.int64)
        result = Counters(self.name, blocks, warps)
        for pc in np.flatnonzero(counts[:, 0]):
            e = self.lowered.code[pc]
            if e.op:
                i = self.kernel.code[e.of]
                warps, lanes, transactions, lines = map(int, counts[pc])
                count = Count(warps, lanes, lanes * e.bytes, transactions, lines)
                result.by_line.append(Line(e.op, count, i.line, i.source))
        return result


def _raw(value: Any, size: int) -> bytes:
    """A parameter's bytes, of ``size`` where the value has none of its own."""
    if isinstance(value, bytes | bytearray | ctypes.Structure):
        return bytes(value)
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, float):
        return (np.float32 if size == 4 else np.float64)(value).tobytes()
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for address, size in sorted(ranges):
        if not size:
            continue
        if out and address <= out[-1][0] + out[-1][1]:
            first, length = out[-1]
            out[-1] = first, max(length, address + size - first)
        else:
            out.append((address, size))
    return out
