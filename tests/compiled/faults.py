"""Faults to plant in the kernels: what is changed in ``csrc/include/dd2``, and what sees it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from native.build import CSRC
from ops.cases import make_case, unaligned
from ops.test_small_generator import REGIMES, inputs, packed
from torch import Tensor

from dd2_fast.ops import (
    block_causal_attention,
    conditional_score,
    flow_solve,
    logit_distillation_loss,
    nearest_code,
    sample_code,
)
from dd2_fast.ops.small_generator import small_generator

Results = list[Tensor]


@dataclass(frozen=True)
class Planted:
    """One change of one header; ``call`` of a backend and a dtype shows it."""

    header: str
    old: str
    new: str
    call: Callable[[str, torch.dtype], Results]
    found: str  # kind of fault, or "wrong result"
    shim: str  # what the host shim that went said of the same call, once

    def headers(self, folder: Path) -> Path:
        """A copy of the headers with the fault."""
        shutil.copytree(CSRC / "include", folder, dirs_exist_ok=True)
        path = folder / "dd2" / self.header
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.header} has {text.count(self.old)}x {self.old!r}"
        path.write_text(text.replace(self.old, self.new))
        return folder


def score(*size: int | None, aligned: bool = True, **filters: float) -> Callable[..., Results]:
    """x0 of random tokens."""

    def call(backend: str, dtype: torch.dtype) -> Results:
        case = make_case(*size, t=(0.1, 1.0), **filters)  # type: ignore[arg-type]
        arguments = case.arguments("float64" if dtype == torch.float64 else "torch")
        arguments["backend"] = backend
        if not aligned:
            arguments["codebook"] = unaligned(arguments["codebook"])
        return [conditional_score(**arguments, prediction="x0")]

    return call


def codes(rows: int) -> Callable[..., Results]:
    """The nearest codes."""

    def call(backend: str, dtype: torch.dtype) -> Results:
        generator = torch.Generator().manual_seed(0)
        x, codebook = (torch.randn(n, 8, generator=generator) for n in (rows, 40))
        return [nearest_code(x.to(dtype), codebook.to(dtype), backend=backend)]

    return call


def draws(vocabulary: int, top_k: int) -> Callable[..., Results]:
    """Drawn codes."""

    def call(backend: str, dtype: torch.dtype) -> Results:
        logits = 2 * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0))
        return [sample_code(logits.to(dtype), top_k=top_k, seed=5, backend=backend)]

    return call


def flow(backend: str, dtype: torch.dtype) -> Results:
    """The codes that noise flows to."""
    generator = torch.Generator().manual_seed(0)
    noise, logits, codebook = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((2, 8), (2, 100), (100, 8))
    )
    return [flow_solve(noise, logits, codebook, steps=2, top_k=50, backend=backend)]


def distilled(backend: str, dtype: torch.dtype) -> Results:
    """The logit student's loss, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    student, logits = (torch.randn(2, 700, generator=generator).to(dtype) for _ in range(2))
    loss = logit_distillation_loss(student.requires_grad_(), logits, top_k=60, backend=backend)
    return [loss.detach(), torch.autograd.grad(loss.sum(), student)[0]]


def small(backend: str, dtype: torch.dtype) -> Results:
    """Embeddings and image of a small generator."""
    regime = REGIMES["below_a_panel"]
    weights, decoder, sizes = packed(regime)
    noise, labels = inputs(regime, 1)
    arrays = (noise.to(dtype), labels, weights.to(dtype), decoder.to(dtype))
    return list(small_generator(*arrays, sizes, backend=backend))


def attention(backend: str, dtype: torch.dtype) -> Results:
    """Of unit queries and keys, several tiles of them, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 150, 3, 1, 64, generator=generator).bfloat16()
    gain = torch.full((1,), 6.0)
    narrow = qkv if dtype != torch.float64 else qkv.to(dtype)
    return [block_causal_attention(narrow, (20, 150), gain=gain, backend=backend)]


ROW = score(2, 300, 8, 2, top_k=60)
WIDE = score(2, 90, 40, top_k=30)
DENSE = score(3, 203, 8, 80)
FAULTS = {
    "fragment_index": Planted(
        "dense_products.cuh",
        "r = i % 2, c = 16 * s + 8 * (i / 2) + 2 * quad_lane()",
        "r = i / 2, c = 16 * s + 8 * (i % 2) + 2 * quad_lane()",
        DENSE, "wrong result", "wrong result",
    ),
    "matrix_pointer": Planted(
        "dense_products.cuh",
        "across = CodeTile<kDim>::offset(lane & 7, lane >> 3);",
        "across = CodeTile<kDim>::offset(lane & 7, lane >> 2 & 3);",
        DENSE, "wrong result", "wrong result",
    ),
    "missing_barrier": Planted(
        "conditional_score.cuh",
        "direction));\n    __syncthreads();",
        "direction));",
        ROW, "race", "deadlock",
    ),
    "missing_barrier_before_reuse": Planted(
        "block.cuh",
        "value = warp_reduce(value, combine);\n  __syncthreads();",
        "value = warp_reduce(value, combine);",
        draws(301, 60), "race", "nothing",
    ),
    "missing_warp_barrier": Planted(
        "dense_score.cuh",
        "  __syncwarp();\n}\n\n// Writes what is wanted of a warp's tokens",
        "}\n\n// Writes what is wanted of a warp's tokens",
        DENSE, "race", "wrong result",
    ),
    "barrier_by_some": Planted(
        "filter_share.cuh",
        "(kept_too);\n      }\n    }\n    __syncthreads();",
        "(kept_too);\n      }\n      __syncthreads();\n    }",
        draws(300, 60), "deadlock", "deadlock",
    ),
    "read_past_the_tail": Planted(
        "logit_groups.cuh",
        "if (j + i < vocabulary) insert(i, source);",
        "if (j + i <= vocabulary) insert(i, source);",
        DENSE, "out of bounds", "nothing",
    ),
    "token_past_the_last": Planted(
        "nearest_code.cuh",
        "token = token < p.rows ? token : p.rows - 1;",
        "token = token < p.rows ? token : p.rows;",
        codes(33), "out of bounds", "nothing",
    ),
    "copies_not_waited_for": Planted(
        "dense_score.cuh",
        "      wait_for_copies();\n",
        "",
        DENSE, "race", "wrong result",
    ),
    "stale_stage": Planted(
        "dense_score.cuh",
        "const unsigned char* tile = shared + tile_place<kDim>(code);",
        "const unsigned char* tile = shared + tile_place<kDim>(code < 128 ? code : code - 64);",
        DENSE, "race", "wrong result",
    ),
    "next_copy_before_the_barrier": Planted(
        "dense_score.cuh",
        "      wait_for_copies();\n      __syncthreads();",
        "      const int ahead = code + kTileCodes;\n"
        "      if (ahead < p.teacher.vocabulary) copy_tile<kDim>(p, shared, ahead);\n"
        "      wait_for_copies();\n      __syncthreads();",
        DENSE, "race", "wrong result in one order",
    ),
    "misaligned_vector": Planted(
        "load_code.cuh",
        "return dim % kDim == 0 && reinterpret_cast<unsigned long long>(codebook) % 16 == 0;",
        "return dim % kDim == 0;",
        score(2, 90, 8, top_k=30, aligned=False), "misaligned", "nothing",
    ),
    "shared_memory_too_small": Planted(
        "conditional_score.h",
        "return 4 * padded_dim<kDim>(p);",
        "return 5 * padded_dim<kDim>(p);",
        ROW, "out of bounds", "write past the end",
    ),
    "shared_memory_overrun": Planted(
        "kept_codes.cuh",
        "staged[kept.count + i] = row(__float_as_int(staged[i]));",
        "staged[2 * kept.count + i] = row(__float_as_int(staged[i]));",
        flow, "out of bounds", "write past the end",
    ),
    "shuffle_mask": Planted(
        "block.cuh",
        "value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));",
        "value = combine(value, __shfl_xor_sync(kAllLanes >> 1, value, offset));",
        ROW, "warp sync", "wrong mask",
    ),
    "dimensions_of_another_block": Planted(
        "conditional_score.cuh",
        "const long long first = static_cast<long long>(blockIdx.y) * kDim;\n"
        "  const long long last = gridDim.y == 1",
        "const long long first = 0;\n  const long long last = gridDim.y == 1",
        WIDE, "global race", "wrong result",
    ),
    "keys_not_waited_for": Planted(
        "block_causal_attention.cuh",
        "    wait_for_copies();\n    __syncthreads();\n    tile = next;",
        "    __syncthreads();\n    tile = next;",
        attention, "race", "never tried",
    ),
    "tile_reused_too_soon": Planted(
        "block_causal_attention.cuh",
        "    wait_for_copies();\n    __syncthreads();\n    tile = next;",
        "    wait_for_copies();\n    tile = next;",
        attention, "race", "never tried",
    ),
    "length_of_another_row": Planted(
        "block_causal_attention.cuh",
        "from = lane / 4 * 4 + lane / 8;",
        "from = lane / 4 * 4;",
        attention, "wrong result", "never tried",
    ),
    "sums_not_waited_for": Planted(
        "small_products.cuh",
        "    __syncthreads();\n    return {memory_ + sums_",
        "    return {memory_ + sums_",
        small, "race", "wrong result",
    ),
    "sums_of_another_largest": Planted(
        "logit_distillation_loss.cuh",
        "student *= exp2_flushed((largest - to) * kLog2E);",
        "",
        distilled, "wrong result", "never tried",
    ),
}  # fmt: skip


def table() -> str:
    """That of the README."""
    lines = ["| fault | in | ptxrun | host shim |", "| --- | --- | --- | --- |"]
    lines += [f"| {n} | {p.header} | {p.found} | {p.shim} |" for n, p in FAULTS.items()]
    return "\n".join(lines) + "\n"
