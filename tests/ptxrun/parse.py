"""PTX text as kernels of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WIDTH = {"pred": 0, "b128": 16}
WIDTH |= {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)}
WIDTH |= {"f16x2": 4, "bf16": 2, "bf16x2": 4, "tf32": 4}


class Unsupported(Exception):
    """PTX that the tool does not know."""


@dataclass
class Instruction:
    guard: str | None  # "%p1", or "!%p1"
    opcode: str
    operands: list[str]
    line: int  # of the PTX text, from 1
    source: str  # file:line of .loc, or ""


@dataclass
class Variable:
    name: str
    space: str
    align: int
    size: int
    data: bytes = b""
    offset: int = 0


@dataclass
class Kernel:
    name: str
    params: list[Variable]
    registers: dict[str, str] = field(default_factory=dict)  # name, or name of a family, to type
    variables: dict[str, Variable] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    limits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    results: list[Variable] = field(default_factory=list)  # of a function

    def type_of(self, name: str) -> str | None:
        found = self.registers.get(name)
        return found or self.registers.get(name.rstrip("0123456789") + "<")


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
_FUNCTION = re.compile(r"\.func\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*\{")
_VARIABLE = re.compile(
    r"\.(shared|local|global|const|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"(?:\.(?:attribute)\([^)]*\)\s*)?\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)?(?:\.align\s+\d+\s*)?)?"
    r"([\w$]+)\s*((?:\[\w*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)


def split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def number(text: str) -> int:
    text = text.strip().rstrip("U")
    return int(text, 0) if not re.fullmatch(r"-?0\d+", text) else int(text, 8)


def _initial(text: str, kind: str) -> bytes:
    width, out = WIDTH[kind], b""
    for item in re.sub(r"[{}]", "", text).split(","):
        item = item.strip()
        if not item:
            continue
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", item):
            value = int(item[2:], 16)
        elif re.fullmatch(r"-?(0[xX])?[0-9a-fA-F]+U?", item):
            value = number(item)
        else:
            raise Unsupported(f"initial value {item}")
        out += (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return out


def variable(text: str) -> Variable | None:
    match = _VARIABLE.search(text.strip())
    if not match:
        return None
    space, align, kind, name, dims, initial = match.groups()
    size = WIDTH[kind]
    for dim in re.findall(r"\[(\w*)\]", dims):
        size *= number(dim) if dim else 0
    data = _initial(initial, kind) if initial else b""
    return Variable(name, space, int(align or WIDTH[kind]), size, data)


def _parameters(texts: str | None) -> list[Variable]:
    params, offset = [], 0
    for text in split(texts or ""):
        found = variable(text)
        if found is None:
            raise Unsupported(f"parameter {text}")
        found.offset = offset = -(-offset // found.align) * found.align
        offset += found.size
        params.append(found)
    return params


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


class Program:
    """A module: the text of its kernels, parsed when they are asked for."""

    def __init__(self, text: str) -> None:
        text = _without_comments(text)
        self._text = text
        target = re.search(r"\.target\s+(\w+)", text)
        self.target = target.group(1) if target else "sm_80"
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        self._entries = {m.group(1): m for m in _ENTRY.finditer(text)}
        self._functions = {m.group(2): m for m in _FUNCTION.finditer(text)}
        self.variables = {}
        bodies = (*self._entries.values(), *self._functions.values())
        first = min((m.start() for m in bodies), default=len(text))
        for piece in self._outside(first):
            found = variable(piece)
            if found:
                self.variables[found.name] = found

    def _outside(self, first: int) -> list[str]:
        """Statements that are in no function: before the first, and between."""
        found = (*self._entries.values(), *self._functions.values())
        bodies, at, out = sorted(m.end() for m in found), 0, []
        for body in bodies:
            out += self._text[at:body].split(";")
            at = self._end(body)
        return out + self._text[at:].split("\n\t.section")[0].split(";")

    def _end(self, body: int) -> int:
        depth = 1
        for match in re.compile(r"[{}]").finditer(self._text, body):
            depth += 1 if match.group() == "{" else -1
            if depth == 0:
                return match.start()
        raise Unsupported("a body without an end")

    @property
    def kernels(self) -> list[str]:
        return list(self._entries)

    def kernel(self, name: str) -> Kernel:
        match = self._entries[name]
        kernel = Kernel(name, _parameters(match.group(2)))
        for word, values in re.findall(r"\.(\w+)\s+([\d, ]+)", match.group(3)):
            kernel.limits[word] = tuple(int(v) for v in values.split(","))
        self._parse_body(kernel, match.end(), self._end(match.end()))
        return kernel

    def function(self, name: str) -> Kernel | None:
        """What a kernel calls, if it is here."""
        if name not in self._functions:
            return None
        match = self._functions[name]
        results = _parameters(match.group(1))
        function = Kernel(name, _parameters(match.group(3)), results=results)
        self._parse_body(function, match.end(), self._end(match.end()))
        return function

    def _parse_body(self, kernel: Kernel, start: int, end: int) -> None:
        line = self._text.count("\n", 0, start) + 1
        # .loc ends with its line: make it a statement.
        body = re.sub(r"^(\s*\.loc\s[^\n]*)$", r"\1;", self._text[start:end], flags=re.MULTILINE)
        statements = _Statements(kernel, self.files)
        at = 0
        for match in re.finditer(r"[;{}]", body):
            if match.start() < at:
                continue
            text = body[at : match.start()]
            blank = not text.strip() or text.strip().endswith(":")
            if match.group() in "{}" and not blank:
                continue  # of a vector
            stripped = text.lstrip()
            here = line + text[: len(text) - len(stripped)].count("\n")
            line += text.count("\n")
            at = match.end()
            statements.add(stripped.rstrip(), here, match.group())


class _Statements:
    """Puts a body's statements into its kernel."""

    def __init__(self, kernel: Kernel, files: dict[str, str]) -> None:
        self.kernel, self.files = kernel, files
        self.scopes: list[dict[str, str]] = [{}]  # registers of inner scopes hide outer ones
        self.serial, self.source = 0, ""

    def add(self, text: str, line: int, end: str) -> None:
        """A statement, with its labels, that ``end`` ends: ``;``, or a brace of a scope."""
        while label := re.match(r"([\w$]+):\s*", text):
            self.kernel.labels[label.group(1)] = len(self.kernel.code)
            line += label.group().count("\n")
            text = text[label.end() :]
        if end == "{":
            self.serial += 1
            self.scopes.append({})
        elif end == "}":
            self.scopes.pop()
        elif re.match(r"\.loc\s", text):
            self._locate(text.split())
        elif text.startswith(".reg"):
            self._declare(text.replace(".reg", "", 1).strip())
        elif text.startswith("."):
            found = variable(text)
            if found:
                if found.space == "param" and len(self.scopes) > 1:  # of a call
                    hidden = f"{found.name}@{self.serial}"
                    self.scopes[-1][found.name], found.name = hidden, hidden
                self.kernel.variables[found.name] = found
        elif text:
            self.kernel.code.append(self._instruction(text, line))

    def _locate(self, words: list[str]) -> None:
        self.source = f"{self.files.get(words[1], words[1])}:{words[2]}"
        if "inlined_at" in words:
            file, line = words[words.index("inlined_at") + 1 :][:2]
            self.source += f", inlined at {self.files.get(file, file)}:{line}"

    def _declare(self, text: str) -> None:
        kind, names = text.removeprefix(".").split(None, 1)
        for name in split(names):
            family = re.fullmatch(r"(.+)<(\d+)>", name)
            if len(self.scopes) > 1:
                hidden = f"{name}@{self.serial}"
                self.scopes[-1][name] = hidden
                self.kernel.registers[hidden] = kind
            else:
                self.kernel.registers[family.group(1) + "<" if family else name] = kind

    def _instruction(self, text: str, line: int) -> Instruction:
        hidden = {name: to for scope in self.scopes for name, to in scope.items()}
        if hidden:
            text = re.sub(r"%?[\w$]+", lambda match: hidden.get(match.group(), match.group()), text)
        guard = None
        if guarded := re.match(r"@(!?)\s*(%?[\w$@]+)\s+(.*)", text, re.DOTALL):
            guard, text = guarded.group(1) + guarded.group(2), guarded.group(3)
        opcode, *rest = text.split(None, 1)
        operands = split(re.sub(r"\s+", " ", rest[0])) if rest else []
        return Instruction(guard, opcode, operands, line, self.source)
