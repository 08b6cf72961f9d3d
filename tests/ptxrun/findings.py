"""What launches find and count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Fault:
    """One finding. ``times``: how often this kind was found at this instruction."""

    kind: str
    what: str
    kernel: str
    line: int  # of the PTX
    source: str  # of .loc
    instruction: str
    block: tuple[int, int, int]
    thread: int
    address: int
    times: int

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return (
            f"{self.kind}: {self.what}\n    {self.kernel}, block {self.block}, thread "
            f"{self.thread}, address {self.address:#x}, {self.times}x\n    PTX line {self.line}"
            f"{where}: {self.instruction}"
        )


class PtxError(RuntimeError):
    """A launch with faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = list(faults)


@dataclass
class Checks:
    """What a launch looks for."""

    races: bool = True
    uninitialised: bool = True
    global_races: bool = True
    same_value: bool = False  # races between writes of equal bytes too
    transactions: bool = True  # count wavefronts and sectors
    budget: int = 1 << 40  # warp instructions
    ignore: tuple[str, ...] = ()  # kinds of faults


class Count(NamedTuple):
    """What an instruction did."""

    warps: int  # warp instructions
    lanes: int  # lane instructions
    bytes: int  # asked for
    transactions: int  # 32-byte sectors of global, wavefronts of shared memory
    lines: int  # of 128 bytes of global memory


class Line(NamedTuple):
    """An instruction and what it did."""

    op: str
    done: Count
    line: int  # of the PTX
    source: str


@dataclass
class Counters:
    """Executed instructions."""

    kernel: str
    blocks: int
    warps_per_block: int
    by_line: list[Line] = field(default_factory=list)

    def table(self) -> dict[str, Count]:
        """By opcode, the most executed first."""
        found: dict[str, Count] = {}
        for line in self.by_line:
            old = found.get(line.op, Count(0, 0, 0, 0, 0))
            found[line.op] = Count(*(a + b for a, b in zip(old, line.done, strict=True)))
        return dict(sorted(found.items(), key=lambda item: -item[1].warps))
