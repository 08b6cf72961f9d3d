"""What bounds a kernel: executed PTX as cycles of a multiprocessor's units, for no GPU to time.

A model of Hopper: PTX operations are replaced by the number of machine instructions that ptxas
usually makes of them, each unit has its published throughput, and the slowest one gives a lower
bound. Latencies, occupancy, the tail of the last wave and L2 are not in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .findings import Counters

# Warp instructions a clock of a multiprocessor. mma: m16n8k16, that wgmma reaches.
THROUGHPUT = {
    "issue": 4.0, "fma": 4.0, "alu": 2.0, "mufu": 0.5, "cvt": 2.0, "f64": 2.0, "shfl": 1.0,
    "shared": 1.0, "lsu": 1.0, "l1": 1.0, "mma": 1.0,
}  # fmt: skip


def instructions(op: str) -> dict[str, float]:
    """Machine instructions of one PTX operation, by unit. What is 0 vanishes in other ones."""
    root, *words = op.split(".")
    kind = words[-1] if words else ""
    wide = kind.endswith("64") and kind[0] in "busf"
    if root in ("mov", "cvta") or op.startswith("ld.param") or root in ("ret", "exit"):
        return {}
    if kind == "f64":
        return {"f64": {"div": 20, "sqrt": 20, "rcp": 12}.get(root, 1)}
    if root in ("fma", "add", "sub", "mul") and kind in ("f32", "f16", "bf16", "f16x2", "bf16x2"):
        return {"fma": 1}
    if root in ("ex2", "lg2", "rsqrt", "sin", "cos", "tanh"):
        return {"mufu": 1} if "ftz" in words else {"mufu": 1, "fma": 2, "alu": 1}
    if root in ("div", "rcp", "sqrt") and kind == "f32":
        if "rn" in words:
            return {"mufu": 1, "fma": 6, "alu": 3}
        return {"mufu": 1, "fma": 1, "alu": 1}
    if root in ("div", "rem"):
        return {"mufu": 1, "alu": 60 if wide else 12, "fma": 20 if wide else 4}
    if root == "cvt":
        types = [w for w in words if re.fullmatch(r"[busf]\d+|bf16|f16x2|bf16x2", w)]
        if all(t[0] in "bus" and t != "bf16" for t in types):
            return {"alu": 1 if "s64" in types[:1] else 0}
        return {"cvt": 4 if any("64" in t for t in types) else 1}
    if root in ("mul", "mad"):
        if "lo" in words and wide:
            return {"fma": 4}
        return {"fma": 1}
    if root in ("bra", "bar", "barrier", "vote", "redux", "match", "activemask"):
        return {"alu": 1}
    if root == "shfl":
        return {"shfl": 1}
    if root == "ldmatrix" or root == "stmatrix" or root == "cp":
        return {"lsu": 1}
    if root in ("ld", "st", "atom", "red"):
        return {"lsu": 1}
    if root in ("mma",):
        return {"mma": 0.5 if "m16n8k8" in op and "tf32" not in op else 1}
    if root == "wgmma":
        columns = re.search(r"n(\d+)k", op)  # else a fence, a commit or a wait
        return {"mma": int(columns[1]) / 8} if columns else {"alu": 1}
    if kind == "pred":
        return {"alu": 0.5}
    return {"alu": 2 if wide else 1}


@dataclass
class Bound:
    """Cycles of one multiprocessor for all of a launch, by unit."""

    cycles: dict[str, float]
    instructions: float
    global_bytes: int  # of sectors touched

    @property
    def slowest(self) -> str:
        return max(self.cycles, key=lambda unit: self.cycles[unit])


def bound(counters: Counters) -> Bound:
    units = dict.fromkeys(THROUGHPUT, 0.0)
    total = sectors = 0.0
    for op, (warps, _, _, transactions, lines) in counters.table().items():
        for unit, count in instructions(op).items():
            units[unit] += warps * count
            total += warps * count if not op.startswith("wgmma") else warps
        if ".shared" in op or op.startswith(("ldmatrix", "stmatrix")):
            units["shared"] += transactions
        elif transactions:
            sectors += transactions
            units["l1"] += lines
    units["issue"] = total
    return Bound({u: n / THROUGHPUT[u] for u, n in units.items()}, total, int(32 * sectors))
