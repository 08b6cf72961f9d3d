"""Functions that a kernel calls, put in the calls' place.

What a call hands over is kept in registers named after the variable and the offset in it, so it has
to be loaded as it was stored, or its low bytes, as compilers do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .parse import WIDTH, Instruction, Kernel, split

_PLACE = re.compile(r"\[\s*([\w$@]+)\s*(?:\+\s*(\d+)\s*)?\]")
_DEPTH = 8


class Inlining:
    """Copies instructions into a kernel, those of called functions with names of their own."""

    def __init__(self, kernel: Kernel, function: Callable[[str], Kernel | None]) -> None:
        self.kernel, self.function, self.copies = kernel, function, 0
        self.out: list[Instruction] = []
        self.labels: dict[str, int] = {}

    def run(self) -> None:
        self._copy(self.kernel, {}, "", 0)
        self.kernel.code, self.kernel.labels = self.out, self.labels

    def _copy(self, source: Kernel, bound: dict[str, str], prefix: str, depth: int) -> None:
        """``bound``: the registers that hold the parameters and results; ``prefix``: of names."""
        own = source.variables.items()
        bound = bound | {v: f"%{prefix}{v}" for v, kept in own if kept.space == "param"}
        labels = {at: [] for at in range(len(source.code) + 1)}
        for label, at in source.labels.items():
            labels[at].append(label)
        for at, instruction in enumerate(source.code):
            self.labels |= {prefix + label: len(self.out) for label in labels[at]}
            root = instruction.opcode.split(".")[0]
            if root == "call":
                self._call(instruction, bound, prefix, depth)
            elif root == "ret" and prefix:
                end = f"{prefix}end"
                guard = instruction.guard and _renamed(instruction.guard, prefix)
                self.out.append(replace(instruction, guard=guard, opcode="bra", operands=[end]))
            else:
                self.out += self._moved(self._renaming(instruction, source, prefix), bound)
        self.labels |= {prefix + label: len(self.out) for label in labels[len(source.code)]}

    def _renaming(self, instruction: Instruction, source: Kernel, prefix: str) -> Instruction:
        """With the names of a copy's registers, labels and local variables."""
        if not prefix:
            return instruction
        local = {name for name, v in source.variables.items() if v.space == "local"}

        def name(match: re.Match[str]) -> str:
            word = match.group()
            if source.type_of(word):
                return _renamed(word, prefix)
            return prefix + word if word in source.labels or word in local else word

        guard = instruction.guard and _renamed(instruction.guard, prefix)
        operands = [re.sub(r"%?[\w$@]+", name, operand) for operand in instruction.operands]
        return replace(instruction, guard=guard, operands=operands)

    def _moved(self, instruction: Instruction, bound: dict[str, str]) -> list[Instruction]:
        """A store or load of what a call hands over as moves of registers."""
        root, *words = instruction.opcode.split(".")
        if "param" not in words[:1] or root not in ("ld", "st"):
            return [instruction]
        value, place = instruction.operands if root == "ld" else reversed(instruction.operands)
        found = _PLACE.fullmatch(place)
        if found is None or found.group(1) not in bound:
            return [instruction]  # a kernel's own parameter
        kind, moves = words[-1], []
        for n, part in enumerate(split(value.strip("{}"))):
            offset = int(found.group(2) or 0) + n * WIDTH[kind]
            register = f"{bound[found.group(1)]}${offset}"
            width = max(WIDTH[kind], 2)  # no register has a byte
            bits = self.kernel.registers.setdefault(register, f"b{8 * width}")
            if width > WIDTH[bits] or (root == "st" and width < WIDTH[bits]):
                return [instruction]  # unknown to what lowers it: reported where it is reached
            whole = root == "st" or WIDTH[kind] == WIDTH[bits]
            opcode = f"mov.{bits}" if whole else f"cvt.{kind}.{kind}"
            operands = [part, register] if root == "ld" else [register, part]
            moves.append(replace(instruction, opcode=opcode, operands=operands))
        return moves

    def _call(
        self, instruction: Instruction, bound: dict[str, str], prefix: str, depth: int
    ) -> None:
        *result, name, given = _call_parts(instruction.operands)
        callee = None
        if depth < _DEPTH and not instruction.guard:
            callee = self.function(name)
        if callee is None:
            self.out.append(instruction)  # likewise
            return
        self.copies += 1
        copy = f"c{self.copies}$"
        for register, kind in callee.registers.items():
            self.kernel.registers[_renamed(register, copy)] = kind
        for variable, kept in callee.variables.items():
            local = kept.space == "local"
            own_name = copy + variable if local else variable
            self.kernel.variables[own_name] = replace(kept, name=own_name)
        own = [p.name for p in (*callee.results, *callee.params)]
        outer = [bound[variable] for variable in (*split("".join(result)), *split(given))]
        self._copy(callee, dict(zip(own, outer, strict=True)), copy, depth + 1)
        self.labels[f"{copy}end"] = len(self.out)


def _renamed(name: str, prefix: str) -> str:
    sign, name = ("!", name[1:]) if name.startswith("!") else ("", name)
    return f"{sign}%{prefix}{name.removeprefix('%')}"


def _call_parts(operands: list[str]) -> list[str]:
    """Result, name and arguments of ``(result), name, (arguments)``, the outer two if any."""
    parts = [operand.strip("() ") for operand in operands]
    if len(operands) == 1 or not operands[-1].startswith("("):
        parts.append("")
    return parts
