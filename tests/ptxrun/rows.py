"""A kernel's registers, immediates and variables as rows of the engine's register file."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .parse import WIDTH, Kernel, Unsupported, Variable, number

PLAIN, BRANCH, EXIT, WARP_SYNC, ALIGNED, BARRIER, TRAP = range(7)
FTZ, SAT, NAN, ADDRESS32, WIDE = 1, 2, 4, 8, 16
SPACES = {"generic": 0, "global": 1, "const": 1, "shared": 2, "local": 3, "param": 4}
ROUNDS = {"n": 0, "z": 1, "m": 2, "p": 3, "a": 4}
SHARED_START, SHARED_WINDOW, LOCAL_WINDOW = 1024, 1 << 60, 1 << 61
_SPECIAL_NAMES = """
    %tid.x %tid.y %tid.z %ctaid.x %ctaid.y %ctaid.z %ntid.x %ntid.y %ntid.z %nctaid.x %nctaid.y
    %nctaid.z %laneid %warpid %nwarpid %lanemask_eq %lanemask_lt %lanemask_le %lanemask_ge
    %lanemask_gt %dynamic_smem_size %total_smem_size %gridid %clock
"""  # as start_block of run.cpp fills them
_SPECIAL = {name: 128 * i for i, name in enumerate(_SPECIAL_NAMES.split())}
_SPECIAL |= {"%clock64": _SPECIAL["%clock"], "%smid": _SPECIAL["%gridid"]}


@dataclass
class Encoded:
    """One call of a handler; ``Inst`` of ``engine.h``."""

    handler: str
    operands: list[int]
    imm: int = 0
    target: int = -1
    guard: int = -1
    kind: int = PLAIN
    negated: int = 0
    space: int = 0
    flags: int = 0
    round: int = 0
    size: int = 0
    of: int = -1  # the instruction it is of; -1: a step of another
    op: str = ""  # what is counted
    bytes: int = 0


@dataclass
class Lowered:
    """A kernel's calls, in order, and what a launch of them needs."""

    kernel: Kernel
    code: list[Encoded] = field(default_factory=list)
    constants: list[tuple[int, int, int]] = field(default_factory=list)
    file_bytes: int = 0
    static_shared: int = 0
    local_bytes: int = 0
    param_bytes: int = 0
    grain: int = 4
    unsupported: dict[int, str] = field(default_factory=dict)


class Rows:
    """Where values are, and the calls emitted so far."""

    def __init__(self, kernel: Kernel, module: dict[str, Variable], known: Callable[[str], bool]):
        """``module``: variables outside of kernels, those in host memory with their address as
        offset. ``known``: whether the engine has a handler."""
        self.kernel, self.known = kernel, known
        self.out = Lowered(kernel)
        self.rows: dict[str, int] = {}
        self.end = 128 * 24
        self.guard, self.negated = -1, 0  # of the instruction that is being lowered
        self.shared_constants: dict[tuple[int, int], int] = {}
        self.variables = dict(module)
        self._place(kernel)
        self.at: dict[int, int] = {}
        self.branches: list[tuple[Encoded, int]] = []

    def _place(self, kernel: Kernel) -> None:
        shared = [v for v in {**self.variables, **kernel.variables}.values() if v.space == "shared"]
        text = {o for i in kernel.code for o in re.findall(r"[\w$]+", " ".join(i.operands))}
        end, dynamic = 0, []
        for v in shared:
            if v.size == 0:
                dynamic.append(v)
            elif v.name in text:
                v.offset = SHARED_START + -(-end // v.align) * v.align
                end = v.offset - SHARED_START + v.size
        if dynamic:
            align = max(v.align for v in dynamic)
            end = -(-end // align) * align
            for v in dynamic:
                v.offset = SHARED_START + end
        self.out.static_shared = end
        depot = 0
        for v in kernel.variables.values():
            if v.space == "local":
                v.offset = -(-depot // v.align) * v.align
                depot = v.offset + v.size
        self.out.local_bytes = -(-depot // 16) * 16
        self.variables |= kernel.variables
        self.variables |= {p.name: p for p in kernel.params}
        if kernel.params:
            self.out.param_bytes = kernel.params[-1].offset + kernel.params[-1].size

    # Rows.

    def new_row(self, width: int) -> int:
        at = self.end
        self.end += max(64, 32 * (width or 1)) if width else 64
        return at

    def constant(self, value: int, width: int) -> int:
        value &= (1 << 8 * width) - 1
        key = value, width
        if key not in self.shared_constants:
            row = self.new_row(width)
            self.shared_constants[key] = row
            for part in range(0, width, 8):
                self.out.constants.append(
                    (row + part, min(width, 8), value >> 8 * part & (2**64 - 1))
                )
        return self.shared_constants[key]

    def register(self, name: str) -> tuple[int, int]:
        """Row and width; width 0: a predicate."""
        if name in _SPECIAL:
            return _SPECIAL[name], 4
        kind = self.kernel.type_of(name)
        if kind is None:
            raise Unsupported(f"register {name}")
        width = WIDTH[kind]
        if name not in self.rows:
            self.rows[name] = self.new_row(width)
        return self.rows[name], width

    def is_register(self, text: str) -> bool:
        return text in _SPECIAL or self.kernel.type_of(text) is not None

    def emit(self, handler: str, operands: list[int], **fields: Any) -> Encoded:
        if not self.known(handler):
            raise Unsupported(f"no handler {handler}")
        encoded = Encoded(handler, operands, guard=self.guard, negated=self.negated, **fields)
        self.out.code.append(encoded)
        return encoded

    def immediate(self, text: str, kind: str) -> int:
        width = WIDTH[kind]
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            bits = int(match.group(1), 16)
            if width == 8:
                (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
                bits = int.from_bytes(struct.pack("<d", value), "little")
            return bits
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
            bits = int(match.group(1), 16)
            if width == 4 and kind[0] == "f":
                (value,) = struct.unpack("<d", bits.to_bytes(8, "little"))
                bits = int.from_bytes(struct.pack("<f", value), "little")
            return bits
        if text == "WARP_SZ":
            return 32
        if "." in text or (kind in ("f32", "f64") and re.fullmatch(r"-?\d+", text)):
            code = {4: "<f", 8: "<d"}[width]
            return int.from_bytes(struct.pack(code, float(text)), "little")
        return number(text)

    def value(self, text: str, kind: str) -> int:
        """Row of a source operand of a type."""
        width = WIDTH[kind]
        if kind == "pred":
            return self.predicate(text)
        if self.is_register(text):
            row, have = self.register(text)
            return row if have == width else self.resized(row, have, width)
        base, _, plus = text.partition("+")
        if base in self.variables:
            return self.constant(self.variables[base].offset + (number(plus) if plus else 0), width)
        return self.constant(self.immediate(text, kind), width)

    def resized(self, row: int, have: int, width: int, signed: bool = False) -> int:
        out = self.new_row(width)
        self.resize_to(out, row, have, width, signed)
        return out

    def resize_to(self, out: int, row: int, have: int, width: int, signed: bool) -> None:
        mark = "s" if signed else "u"
        self.emit(f"cvt.{mark}{8 * width}.{mark}{8 * have}", [out, row])

    def predicate(self, text: str) -> int:
        if text.startswith("!"):
            row, out = self.predicate(text[1:].strip()), self.new_row(0)
            self.emit("not.pred", [out, row, row])
            return out
        if re.fullmatch(r"-?\d+", text):
            return self.constant(0 if int(text) == 0 else 0xFFFFFFFF, 4)
        row, width = self.register(text)
        if width:
            raise Unsupported(f"predicate {text}")
        return row

    def target(self, text: str, kind: str) -> tuple[int, Callable[[], None]]:
        """Row of a destination of a type, and what to do after the instruction."""
        if text == "_":
            return -1, lambda: None
        row, have = self.register(text)
        width = WIDTH[kind]
        if have == width:
            return row, lambda: None
        temporary = self.new_row(width)
        return temporary, lambda: self.resize_to(row, temporary, width, have, kind[0] == "s")

    def address(self, text: str) -> tuple[int, int, int]:
        """Row, offset, and the flag that says whether the row has 32 bits."""
        inside = text.strip().removeprefix("[").removesuffix("]").strip()
        base, _, plus = inside.partition("+")
        base, offset = base.strip(), number(plus.replace(" ", "")) if plus else 0
        if self.is_register(base):
            row, width = self.register(base)
            return row, offset, ADDRESS32 if width == 4 else 0
        if base in self.variables:
            return self.constant(self.variables[base].offset, 8), offset, 0
        return self.constant(number(base), 8), offset, 0

    def address_row(self, text: str) -> int:
        """Row of 64 bits with the address itself."""
        row, offset, flag = self.address(text)
        if flag:
            row = self.resized(row, 4, 8)
        if offset:
            out = self.new_row(8)
            self.emit("add.b64", [out, row, self.constant(offset, 8)])
            row = out
        return row
