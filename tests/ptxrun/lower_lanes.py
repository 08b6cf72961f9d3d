"""What lanes and threads do together, as calls of the engine's handlers."""

from __future__ import annotations

import re
from typing import Any

from .parse import Unsupported, number
from .rows import ALIGNED, BARRIER, WARP_SYNC, Encoded, Rows


class Lanes(Rows):
    """Instructions of a warp or a block."""

    def together(self, handler: str, operands: list[int], mask: int, **fields: Any) -> Encoded:
        """``mask``: the row with the lanes that take part."""
        return self.emit(handler, operands, kind=WARP_SYNC, target=mask, **fields)

    def vector(self, text: str) -> list[int]:
        """Rows of ``{a, b, ...}``, 32 bits each."""
        return [self.value(part.strip(), "b32") for part in text.strip("{} ").split(",")]

    def lower_shfl(self, words: list[str], o: list[str]) -> Encoded:
        d, _, p = o[0].partition("|")
        mode = ("up", "down", "bfly", "idx").index(words[1])
        mask = self.value(o[4], "u32")
        targets = [self.value(d, "b32"), self.predicate(p) if p else -1]
        sources = [self.value(x, "u32") for x in o[1:4]]
        return self.together("shfl", [*targets, *sources], mask, imm=mode)

    def lower_vote(self, words: list[str], o: list[str]) -> Encoded:
        mode = ("all", "any", "uni", "ballot").index(words[1])
        mask = self.value(o[2], "u32")
        d = self.value(o[0], "b32") if mode == 3 else self.predicate(o[0])
        return self.together("vote", [d, self.predicate(o[1]), mask], mask, imm=mode)

    def lower_redux(self, words: list[str], o: list[str]) -> Encoded:
        mask = self.value(o[2], "u32")
        rows = [self.value(o[0], words[2]), self.value(o[1], words[2]), mask]
        return self.together(f"redux.{words[1]}.{words[2]}", rows, mask)

    def lower_match(self, words: list[str], o: list[str]) -> Encoded:
        if words[0] != "any":
            raise Unsupported("match.all")
        mask = self.value(o[2], "u32")
        rows = [self.value(o[0], "b32"), self.value(o[1], words[2]), mask]
        return self.together(f"match.any.{words[2]}", rows, mask)

    def lower_elect(self, words: list[str], o: list[str]) -> Encoded:
        d, _, p = o[0].partition("|")
        mask = self.value(o[1], "u32")
        rows = [-1 if d == "_" else self.value(d, "b32"), self.predicate(p), mask]
        return self.together("elect", rows, mask)

    def lower_activemask(self, words: list[str], o: list[str]) -> Encoded:
        return self.emit("activemask", [self.value(o[0], "b32")])

    def lower_ldmatrix(self, words: list[str], o: list[str], name: str = "ldmatrix") -> Encoded:
        if "m8n8" not in words or words[-1] != "b16":
            raise Unsupported(f"shape of {name}")
        self.out.grain = min(self.out.grain, 4)
        count = int(next(w for w in words if re.fullmatch(r"x[124]", w))[1:])
        row, offset, flag = self.address(o[1])
        main = self.emit(
            name, [*self.vector(o[0]), row], kind=ALIGNED, imm=offset, space=2, flags=flag,
            size=count, round=int("trans" in words),
        )  # fmt: skip
        main.op = f"{name}.x{count}"
        main.bytes = 4 * count
        return main

    def lower_stmatrix(self, words: list[str], o: list[str]) -> Encoded:
        return self.lower_ldmatrix(words, [o[1], o[0]], "stmatrix")

    def lower_mma(self, words: list[str], o: list[str]) -> Encoded:
        shape = next(w for w in words if re.fullmatch(r"m\d+n\d+k\d+", w))
        d, a, b, _ = words[-4:]
        if "sp" in words or "sp::ordered_metadata" in words or a != b:
            raise Unsupported("mma of this kind")
        name = f"mma.{shape}.{d}.{a}"
        main = self.emit(name, [row for text in o for row in self.vector(text)], kind=ALIGNED)
        main.op = name
        return main

    def lower_wgmma(self, words: list[str], o: list[str]) -> Encoded:
        if words[0] != "mma_async":
            return self.emit("nop", [], kind=ALIGNED)
        shape = re.fullmatch(r"m64n(\d+)k(8|16)", words[3])
        d, a = words[4], words[5]
        if not shape or d != "f32" or a not in ("f16", "bf16", "tf32"):
            raise Unsupported("wgmma of this kind")
        self.out.grain = min(self.out.grain, 2)
        from_registers = o[1].startswith("{")
        left = self.vector(o[1]) if from_registers else [self.value(o[1], "b64")]
        signs = [number(x) for x in o[4:6]]
        transposed = [number(x) for x in o[6:]]
        mode = (signs[0] < 0) | (signs[1] < 0) << 1
        if from_registers:
            mode |= transposed[0] << 3 if transposed else 0
        elif transposed:
            mode |= transposed[0] << 2 | transposed[1] << 3
        main = self.emit(
            f"wgmma.{a}",
            [*self.vector(o[0]), *left, self.value(o[2], "b64"), self.predicate(o[3])],
            kind=ALIGNED, imm=int(shape.group(1)), size=len(left), round=mode,
        )  # fmt: skip
        main.op = f"wgmma.{words[3]}"
        return main

    def lower_bar(self, words: list[str], o: list[str]) -> Encoded:
        words = [w for w in words if w not in ("cta", "aligned")]
        if words[0] == "warp":
            return self.together("bar.warp", [], self.value(o[0], "u32"))
        if words[0] == "sync":
            count = self.value(o[1], "u32") if len(o) > 1 else -1
            return self.emit("nop", [self.value(o[0], "u32"), count, -1, -1], kind=BARRIER)
        if words[0] == "red":
            mode = ("popc", "and", "or").index(words[1]) + 1
            d = self.value(o[0], "u32") if mode == 1 else self.predicate(o[0])
            count = self.value(o[2], "u32") if len(o) > 3 else -1
            rows = [self.value(o[1], "u32"), count, d, self.predicate(o[-1])]
            return self.emit("nop", rows, kind=BARRIER, round=mode)
        raise Unsupported("barrier of this kind")

    lower_barrier = lower_bar
