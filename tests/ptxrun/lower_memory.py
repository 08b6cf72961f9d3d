"""Loads, stores, atomics and copies as calls of the engine's handlers."""

from __future__ import annotations

from .parse import WIDTH, Unsupported, number
from .rows import SPACES, Encoded, Rows

_ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


class Memory(Rows):
    """Instructions that access memory."""

    @staticmethod
    def space_of(words: list[str]) -> str:
        return next((w.split("::")[0] for w in words if w.split("::")[0] in SPACES), "generic")

    def _access(self, words: list[str], vector: str) -> tuple[str, str, list[str], int]:
        kind, space = words[-1], self.space_of(words)
        parts = [p.strip() for p in vector.strip("{} ").split(",")]
        width = WIDTH[kind]
        if space in ("shared", "generic"):
            self.out.grain = min(self.out.grain, width)
        return kind, space, parts, width

    def lower_ld(self, words: list[str], o: list[str]) -> Encoded:
        kind, space, parts, width = self._access(words, o[0])
        row, offset, flag = self.address(o[1])
        rows, afters = zip(*(self.target(p, kind) for p in parts), strict=True)
        main = self.emit(f"ld.b{8 * width}.{len(parts)}", [*rows, row], imm=offset,
                         space=SPACES[space], flags=flag)  # fmt: skip
        main.bytes = width * len(parts)
        main.op = f"ld.{space}.{main.bytes}"
        for after in afters:
            after()
        return main

    lower_ldu = lower_ld

    def lower_st(self, words: list[str], o: list[str]) -> Encoded:
        kind, space, parts, width = self._access(words, o[1])
        row, offset, flag = self.address(o[0])
        rows = [self.value(p, kind) for p in parts]
        main = self.emit(f"st.b{8 * width}.{len(parts)}", [*rows, row], imm=offset,
                         space=SPACES[space], flags=flag)  # fmt: skip
        main.bytes = width * len(parts)
        main.op = f"st.{space}.{main.bytes}"
        return main

    def lower_atom(self, words: list[str], o: list[str]) -> Encoded:
        kind, space = words[-1], self.space_of(words)
        op = next(
            w
            for w in words
            if w in ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]
        )
        row, offset, flag = self.address(o[1])
        typed = "u" + kind[1:] if kind[0] == "b" else kind
        sources = [self.value(x, kind) for x in o[2:]] + [-1]
        d = -1 if o[0] == "_" else self.value(o[0], kind)
        main = self.emit(f"atom.{op}.{typed}", [d, row, *sources[:2]], imm=offset,
                         space=SPACES[space], flags=flag)  # fmt: skip
        main.op = f"atom.{space}"
        return main

    def lower_red(self, words: list[str], o: list[str]) -> Encoded:
        return self.lower_atom(words, ["_", *o])

    def lower_cp(self, words: list[str], o: list[str]) -> Encoded:
        if words[:2] == ["async", "commit_group"]:
            return self.emit("cp.async.commit", [])
        if words[:2] == ["async", "wait_group"]:
            return self.emit("cp.async.wait", [], imm=number(o[0]))
        if words[:2] == ["async", "wait_all"]:
            return self.emit("cp.async.wait", [], imm=-1)
        if words[0] != "async" or words[1] not in ("ca", "cg"):
            raise Unsupported("cp of this kind")
        size = number(o[2])
        self.out.grain = min(self.out.grain, size)
        wanted = -1
        if len(o) > 3 and "cache_hint" not in words[-1]:
            if self.is_register(o[3].lstrip("!")) and self.register(o[3].lstrip("!"))[1] == 0:
                wanted = self.new_row(4)  # a predicate: ignore the source
                zero, full = self.constant(0, 4), self.constant(size, 4)
                self.emit("selp.b32", [wanted, zero, full, self.predicate(o[3])])
            else:
                wanted = self.value(o[3], "u32")
        rows = [self.address_row(o[0]), self.address_row(o[1]), wanted]
        main = self.emit("cp.async", rows, size=size)
        main.bytes = size
        main.op = f"cp.async.{size}"
        return main
