"""A kernel's instructions as calls of the engine's handlers."""

from __future__ import annotations

import re

from .lower_lanes import Lanes
from .lower_memory import Memory
from .parse import WIDTH, Instruction, Unsupported, number
from .rows import (
    BRANCH,
    EXIT,
    FTZ,
    LOCAL_WINDOW,
    ROUNDS,
    SAT,
    SHARED_WINDOW,
    SPACES,
    TRAP,
    WIDE,
    Encoded,
    Lowered,
)

# Nothing to do where memory is ordered as the program is.
_NOPS = ("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard",
         "applypriority", "createpolicy", "setmaxnreg", "pmevent")  # fmt: skip


class Lowering(Lanes, Memory):
    """Arithmetic and control, and the kernel as a whole."""

    def run(self) -> Lowered:
        for index, instruction in enumerate(self.kernel.code):
            self.at[index] = first = len(self.out.code)
            self.guard, self.negated = -1, 0
            try:
                if instruction.guard:
                    name = instruction.guard.lstrip("!")
                    self.guard = self.register(name)[0]
                    self.negated = int(instruction.guard.startswith("!"))
                main = self.lower(instruction)
            except (Unsupported, KeyError, ValueError, IndexError) as error:
                del self.out.code[first:]
                main = Encoded("nop", [], kind=TRAP, guard=self.guard, negated=self.negated)
                self.out.code.append(main)
                self.out.unsupported[index] = f"{instruction.opcode}: {error}"
            if main is not None:
                main.op = main.op or instruction.opcode
            for encoded in self.out.code[first:]:
                encoded.of = index
                if encoded is not main:
                    encoded.op = ""
        self.at[len(self.kernel.code)] = len(self.out.code)
        self.guard, self.negated = -1, 0
        self.out.code.append(Encoded("nop", [], kind=EXIT, of=len(self.kernel.code) - 1))
        for encoded, index in self.branches:
            encoded.target = self.at[index]
        self.out.file_bytes = -(-self.end // 64) * 64
        return self.out

    def lower(self, instruction: Instruction) -> Encoded | None:
        root, *words = re.split(r"\.(?!:)", instruction.opcode)
        o = instruction.operands
        method = getattr(self, f"lower_{root}", None)
        if method:
            return method(words, o)
        if root in _NOPS:
            return self.emit("nop", [])
        return self.arithmetic(root, words, o)

    def arithmetic(self, root: str, words: list[str], o: list[str]) -> Encoded:
        kind = words[-1]
        width = WIDTH[kind]
        carry = "cc" in words or root in ("addc", "subc")
        if carry:
            row = self.rows.setdefault("%carry", -1)
            if row < 0:
                row = self.rows["%carry"] = self.new_row(0)
            d, after = self.target(o[0], kind)
            a, b = self.value(o[1], kind), self.value(o[2], kind)
            name = f"{root}.carry.b{8 * width}"
            return self.emit(name, [d, a, b, row], flags=WIDE if "cc" in words else 0)
        if root == "mad" and kind.startswith(("f32", "f64")):
            root = "fma"
        floating = kind[0] == "f" or kind.startswith("bf")
        key = [root]
        kinds = [kind] * len(o)
        if floating:
            if "NaN" in words:
                key.append("nan")
            if root in ("min", "max") and len(o) == 4:
                key = [f"{root}3"]
            if "sat" in words or "relu" in words or "xorsign" in words:
                raise Unsupported("saturation")
            rounding = next((w for w in words if w in ("rz", "rm", "rp")), None)
            if rounding:
                key.append(rounding)
            if "ftz" in words and kind == "f32":
                key.append("ftz")
            key.append(kind)
        else:
            if "sat" in words:
                raise Unsupported("saturation")
            form = next((w for w in words if w in ("lo", "hi", "wide")), None)
            if form:
                key.append(form)
            if root in ("shf", "bfind"):
                key += words[:-1]
            elif root == "testp":
                raise Unsupported(root)
            unsigned = root in ("add", "sub", "neg", "and", "or", "xor", "not", "cnot", "shl",
                                "popc", "clz", "brev", "bfi") or form == "lo"  # fmt: skip
            if unsigned:
                key.append(f"b{8 * width}" if kind != "pred" else "pred")
            elif (
                root in ("shr", "div", "rem", "min", "max", "bfe", "sad", "bfind")
                and kind[0] == "b"
            ):
                key.append("u" + kind[1:])
            else:
                key.append(kind)
            if form == "wide":
                wide = f"{kind[0]}{16 * width}"
                kinds[0] = wide
                if root == "mad":
                    kinds[3] = wide
            elif root in ("shl", "shr"):
                kinds[2] = "u32"
            elif root in ("popc", "clz", "bfind"):
                kinds[0] = "u32"
            elif root == "bfe":
                kinds[2] = kinds[3] = "u32"
            elif root == "bfi":
                kinds[3] = kinds[4] = "u32"
        imm = 0
        if root == "lop3":
            imm, o = number(o[4]), o[:4]
        if root == "prmt" and len(words) > 1:
            raise Unsupported("mode of prmt")
        if kind == "pred":
            d = self.predicate(o[0])
            rows = [self.predicate(x) for x in o[1:]]
            return self.emit(".".join(key), [d, *rows, *rows][:3])
        sources = [self.value(x, k) for x, k in zip(o[1:], kinds[1:], strict=False)]
        d, after = self.target(o[0], kinds[0])
        main = self.emit(".".join(key), [d, *sources], imm=imm)
        after()
        return main

    def lower_mov(self, words: list[str], o: list[str]) -> Encoded:
        kind = words[-1]
        if kind == "pred":
            row = self.predicate(o[1])
            return self.emit("mov.pred", [self.predicate(o[0]), row, row])
        if o[0].startswith("{") or o[1].startswith("{"):
            vector = o[0] if o[0].startswith("{") else o[1]
            parts = [p.strip() for p in vector.strip("{} ").split(",")]
            width = WIDTH[kind] // len(parts)
            part_kind = f"b{8 * width}"
            if vector is o[0]:
                rows, afters = zip(*(self.target(p, part_kind) for p in parts), strict=True)
                main = self.emit(
                    "unpack", [*rows, self.value(o[1], kind)], imm=len(parts), size=width
                )
                for after in afters:
                    after()
                return main
            d, after = self.target(o[0], kind)
            sources = [self.value(p, part_kind) for p in parts]
            main = self.emit("pack", [d, *sources], imm=len(parts), size=width)
            after()
            return main
        d, after = self.target(o[0], kind)
        main = self.emit(f"mov.b{8 * WIDTH[kind]}", [d, self.value(o[1], kind)])
        after()
        return main

    def lower_cvt(self, words: list[str], o: list[str]) -> Encoded:
        *modes, to, source = words
        flags = (FTZ if "ftz" in modes else 0) | (SAT if "sat" in modes else 0)
        if to in ("f16x2", "bf16x2") and source == "f32":
            flags |= WIDE if "relu" in modes else 0
            mode = next((ROUNDS[m[1]] for m in modes if m in ("rn", "rz")), 0)
            rows = [self.value(x, "f32") for x in o[1:3]]
            return self.emit(
                f"cvt.{to}.f32", [self.value(o[0], "b32"), *rows], round=mode, flags=flags
            )
        if to == "tf32":
            return self.emit("cvt.tf32.f32", [self.value(o[0], "b32"), self.value(o[1], "f32")])
        if "relu" in modes:
            raise Unsupported("relu")
        mode, whole = 0, 0
        for m in modes:
            if match := re.fullmatch(r"r([nzmpa])(i?)", m):
                mode, whole = ROUNDS[match.group(1)], int(bool(match.group(2)))
        # The register may be wider than the type.
        row = self.value(o[1], f"b{8 * WIDTH[source]}" if not o[1][0].isdigit() else source)
        d, after = self.target(o[0], to)
        main = self.emit(f"cvt.{to}.{source}", [d, row], imm=whole, round=mode, flags=flags)
        after()
        return main

    def lower_setp(self, words: list[str], o: list[str]) -> Encoded:
        compare, kind = words[0], words[-1]
        join = next((i for i, w in enumerate(("and", "or", "xor"), 1) if w in words[1:-1]), 0)
        if kind in ("f16x2", "bf16x2"):
            if join or "ftz" in words:
                raise Unsupported("setp of pairs with more")
            p, _, q = o[0].partition("|")
            targets = [self.predicate(x) if x and x != "_" else -1 for x in (p, q)]
            rows = [self.value(x, "b32") for x in o[1:3]]
            return self.emit(f"setp2.{compare}.{kind[:-2]}", [*targets, *rows])
        typed = "u" + kind[1:] if kind[0] == "b" and kind != "bf16" else kind
        prefix = "ftz." if "ftz" in words and kind == "f32" else ""
        p, _, q = o[0].partition("|")
        third = self.predicate(o[3]) if join else -1
        rows = [self.value(x, kind) for x in o[1:3]]
        targets = [self.predicate(x) if x and x != "_" else -1 for x in (p, q)]
        return self.emit(f"setp.{compare}.{prefix}{typed}", [*targets, *rows, third], imm=join)

    def lower_selp(self, words: list[str], o: list[str]) -> Encoded:
        kind = words[-1]
        if kind == "pred":
            return self.emit("selp.pred", [self.predicate(x) for x in o])
        rows = [self.value(x, kind) for x in o[1:3]]
        d, after = self.target(o[0], kind)
        main = self.emit(f"selp.b{8 * WIDTH[kind]}", [d, *rows, self.predicate(o[3])])
        after()
        return main

    def lower_cvta(self, words: list[str], o: list[str]) -> Encoded:
        space = next(w.split("::")[0] for w in words if w.split("::")[0] in SPACES)
        window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
        kind = words[-1]
        sign = -window if "to" in words else window
        rows = [self.value(o[0], kind), self.value(o[1], kind)]
        return self.emit("add.b64", [*rows, self.constant(sign, 8)])

    def lower_bra(self, words: list[str], o: list[str]) -> Encoded:
        main = self.emit("nop", [], kind=BRANCH)
        self.branches.append((main, self.kernel.labels[o[0]]))
        return main

    def lower_ret(self, words: list[str], o: list[str]) -> Encoded:
        return self.emit("nop", [], kind=EXIT)

    lower_exit = lower_ret

    def lower_trap(self, words: list[str], o: list[str]) -> Encoded:
        return self.emit("nop", [], kind=TRAP)
