"""Counts what the CUDA kernels execute at the models' sizes, without a GPU:
``python bench/tools/counted.py``.

The kernels' PTX, as NVRTC compiles it for sm_90a, runs on the CPU (tests/ptxrun) for a few rows of
the shapes of :mod:`cases`; ``ptxrun.cost`` turns executed instructions into cycles of a
multiprocessor's units. Counts are scaled to all rows by the blocks that they take: the bound is
what the busiest multiprocessor of an H200 needs at least. What ptxas makes of the PTX, latencies
and L2 are not in it. ``--operator NAME`` prints one operator's rows and writes nothing.
What filters a row, in CUDA and in Triton, is counted by itself too (``--operator filters``).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from records import Row

BENCH = Path(__file__).resolve().parents[1]
COUNTS = BENCH / "results" / "counted"
FILE, FILTERS_FILE = COUNTS / "cuda.json", COUNTS / "filters.json"
NORMS_FILE, ATTENTION_FILE = COUNTS / "norms.json", COUNTS / "attention.json"
# An H200: multiprocessors, their clock under load, bytes/s of a copy (measured).
PROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 4.3e12
ROWS = {"var": (680, 43_520), "llamagen": (256, 16_384)}  # of an image, and of 64
# Rows that are counted for those, and multiprocessors that make launchers choose the same kernels.
COUNTED = {
    "conditional_score": ((8, 10_000), (64, 1)),
    "csd_loss": ((8, 10_000), (64, 1)),
    "sample_code": ((8, 1), (8, 1)),
    "logit_distillation_loss": ((8, 1), (8, 1)),
    "flow_solve": ((2, 1), (2, 1)),
    "nearest_code": ((8, 10_000), (256, 1)),
    "image_normal": ((8, 1), (8, 1)),
    "small_generator": ((1, 1), (1, 1)),
}
# A single block of 64 tokens would not pay beside VAR's kept codes.
TENSOR_CORES = {"var_filtered": (128, 1)}
DATA = ("normal", "peaked", "ties")
LOGITS = "logit_distillation_loss"
FILTERED = ("conditional_score", "csd_loss", "sample_code", LOGITS, "flow_solve")
PLAIN = ("nearest_code", "image_normal")
NORM = "group_norm_silu"  # whose rows are pixels of bfloat16 maps, a logit a channel of one
# Channels and pixels of VAR's decoder; an image is counted, in the blocks of one or of 64.
GROUP_NORMS = {"160 channels": (160, 128**2), "640 channels, skip": (640, 16**2)}
NORM_PROCESSORS = {1: PROCESSORS, 64: 8}
SMALL = "small_generator"  # whose rows are images of the bundled digits
DIGIT_PIXELS = 64
# Triton's add_norm_modulate in bfloat16, and how many values have to be read and written for each
# channel of a row.
NORM_WIDTH = 1024
NORMS = {
    "var": {"add_norm_modulate": 4, "add_norm_modulate_backward": 6},
    "llamagen": {"add_norm_modulate": 4, "add_norm_modulate_backward": 4},
}
# Attention of 16 heads of 64 channels in bfloat16, of which one is counted.
HEADS, HEAD_SIZE = 16, 64
SCALES = tuple(accumulate(side**2 for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))  # VAR's tokens
# Kernels, by backend, that filter rows, and the rows counted: of CUDA's as many as in the table of
# the operators.
FILTERS = {("cuda", "row_filter"): 128, ("triton", "filter_rows"): 8, ("triton", "sample_code"): 8}
TOP_K, TOP_P = 900, (1.0, 0.95)


@dataclass(frozen=True)
class Size:
    """A shape of :mod:`cases` with all its rows, and the few that are counted."""

    shape: str
    data: str
    rows: int
    counted: int
    processors: int


def sizes(operator: str) -> Iterator[Size]:
    """Both models, an image and a batch of 64, without and with filters."""
    if operator == SMALL:
        for images in (1, 64):
            yield Size("digits", "normal", images, 1, PROCESSORS)
        return
    if operator == NORM:
        for name, (_, pixels) in GROUP_NORMS.items():
            for images, processors in NORM_PROCESSORS.items():
                yield Size(name, "normal", images * pixels, pixels, processors)
        return
    filters = ("", "_filtered") if operator in FILTERED else ("",)
    for model, suffix in product(ROWS, filters):
        # What is not filtered takes the same steps for any logits.
        for data in DATA if suffix else DATA[:1]:
            image, batch = COUNTED[operator]
            if operator in ("conditional_score", "csd_loss"):
                batch = TENSOR_CORES.get(model + suffix, batch)
            for rows, (counted, processors) in zip(ROWS[model], (image, batch), strict=True):
                yield Size(model + suffix, data, rows, counted, processors)


def inputs(size: Size) -> dict[str, Any]:
    """Arguments of the operators, bfloat16 logits with guidance."""
    import torch

    from cases import SHAPES

    shape, rows = SHAPES[size.shape], size.counted
    g = torch.Generator().manual_seed(0)
    codebook = torch.randn(shape.vocabulary, shape.dim, generator=g)
    t = 0.02 + 0.98 * torch.rand(rows, generator=g)
    clean = codebook[torch.randint(shape.vocabulary, (rows,), generator=g)]
    noise = torch.randn(rows, shape.dim, generator=g)
    logits = torch.randn(rows, shape.vocabulary, generator=g)
    uncond = 2 * logits + torch.randn(rows, shape.vocabulary, generator=g)
    logits = {"normal": 2, "peaked": 6, "ties": 2}[size.data] * logits
    if size.data == "ties":
        logits, uncond = logits.round(), uncond.round()
    return {
        "x_t": (1 - t[:, None]) * clean + t[:, None] * noise, "t": t, "codebook": codebook,
        "logits": logits.bfloat16(), "uncond_logits": uncond.bfloat16(), "guidance_scale": 2.0,
        "top_k": shape.top_k, "top_p": shape.top_p,
    }  # fmt: skip


def call(operator: str, size: Size) -> None:
    """The operator with the default backend; losses with their gradients."""
    import torch

    from dd2_fast import ops
    from dd2_fast.ops.image_normal import image_normal

    if operator == SMALL:
        from dd2_fast.sampling import Sampler

        Sampler("digits")([3] * size.counted, seed=0)
        return
    if operator == NORM:
        channels = GROUP_NORMS[size.shape][0]
        x = torch.randn(1, size.counted, channels, dtype=torch.bfloat16).mT
        skip = x if "skip" in size.shape else None
        ops.group_norm_silu(x, *torch.ones(2, channels), 32, eps=1e-6, residual=skip)
        return
    data = inputs(size)
    rows = ("logits", "uncond_logits", "guidance_scale", "top_k", "top_p")
    teacher = {name: data[name] for name in rows}
    if operator == "conditional_score":
        ops.conditional_score(**data, prediction="x0")
    elif operator == "csd_loss":
        x_t = data.pop("x_t").requires_grad_()
        fake = x_t.detach().clone().requires_grad_()
        ops.csd_loss(x_t, x_t, fake_x0=fake, **data).sum().backward()
    elif operator == "sample_code":
        ops.sample_code(**teacher, seed=0)
    elif operator == LOGITS:
        cond = teacher.pop("logits")
        noise = torch.randn(cond.shape, generator=torch.Generator().manual_seed(1))
        student = (cond + noise).bfloat16().requires_grad_()
        ops.logit_distillation_loss(student, cond, **teacher).sum().backward()
    elif operator == "flow_solve":
        ops.flow_solve(data["x_t"], codebook=data["codebook"], **teacher, steps=20)
    elif operator == "nearest_code":
        ops.nearest_code(data["x_t"], data["codebook"])
    else:
        indices = torch.arange(size.counted)
        image_normal(0, indices, (1, data["codebook"].shape[1]), stream=0)


def blocks_of(kernel: str, counted: int, size: Size) -> float:
    """Blocks at the full size of a kernel that took ``counted``."""
    # Of these the grid depends on the vocabulary, or the device, alone.
    return counted if "split_codebook" in kernel else counted * size.rows / size.counted


@functools.cache
def launched(operator: str, size: Size, executor: Any) -> list[Any]:
    """What the kernels of a call counted; ``rows`` of the size do not matter."""
    executor.processors = size.processors
    executor.clear()
    call(operator, size)
    assert executor.log and not executor.faults, executor.faults
    return [counters for counters, _ in executor.log]


def count(operator: str, size: Size, executor: Any) -> dict[str, Any]:
    """A row of the table; times of the kernels of a call are summed."""
    return summary(operator, size, launched(operator, replace(size, rows=0), executor))


def summary(
    operator: str, size: Size, log: list[Any], values: float = 0, limit: float = 0.0
) -> dict[str, Any]:
    """A row of a table from what the kernels counted, of other than logits a row's ``values``."""
    from ptxrun.cost import bound

    from cases import SHAPES

    shape = SHAPES.get(size.shape)
    seconds = instructions = requests = wavefronts = shared = read = 0.0
    units: dict[str, float] = {}
    kernels = []
    for counters in log:
        cost, table = bound(counters), counters.table()
        blocks = blocks_of(counters.kernel, counters.blocks, size)
        scale = blocks / counters.blocks / size.rows  # to one row of all
        cycles = max(cost.cycles.values()) / counters.blocks  # of a block
        seconds += max(-(-blocks // PROCESSORS), blocks / PROCESSORS) * cycles / CLOCK
        for unit, spent in cost.cycles.items():
            units[unit] = units.get(unit, 0.0) + spent * scale
        instructions += 32 * cost.instructions * scale
        read += cost.global_bytes * scale
        in_shared = [c for op, c in table.items() if ".shared" in op or "matrix" in op]
        shared += sum(c.bytes for c in in_shared) * scale
        # 128 bytes a request at least need a wavefront, or fewer where lanes read the same.
        requests += sum(max(c.warps, c.bytes / 128) for c in in_shared) * scale
        wavefronts += sum(c.transactions for c in in_shared) * scale
        kernels.append(name_of(counters.kernel))
    if values:
        logits = values
    elif operator == NORM:
        logits = GROUP_NORMS[size.shape][0]
    elif shape is None:
        logits = DIGIT_PIXELS
    else:
        logits = shape.vocabulary if operator != "image_normal" else shape.dim
    if not values and operator not in (*PLAIN, NORM, SMALL):
        # bfloat16 rows: the teacher's two; or three twice, and a gradient.
        limit = (14 if operator == LOGITS else 4) * logits * size.rows / BANDWIDTH
    return {
        "operator": operator, "shape": size.shape, "data": size.data, "rows": size.rows,
        "counted_rows": size.counted, "kernels": kernels,
        "instructions_a_logit": round(instructions / logits, 2),
        "cycles_a_row": {u: round(c) for u, c in units.items() if round(c)},
        "global_bytes_a_row": round(read), "shared_bytes_a_row": round(shared),
        "wavefronts_a_request": round(wavefronts / requests, 2) if requests else 0.0,
        "bound_ms": round(1e3 * seconds, 4), "reading_ms": round(1e3 * limit, 4),
    }  # fmt: skip


def name_of(symbol: str) -> str:
    """``conditional_score`` of a mangled ``conditional_score_fwd_kernel<...>``."""
    name = symbol.removeprefix("_ZN3dd2").lstrip("0123456789")
    return name.split("_kernel")[0].removesuffix("_fwd")


def count_all(
    operators: tuple[str, ...] = (*FILTERED, *PLAIN, NORM, SMALL),
) -> list[dict[str, Any]]:
    """Every row of the table of these operators."""
    sys.path += [str(BENCH), str(BENCH.parent / "tests")]
    from compiled.backends import installed
    from compiled.executor import Executor

    from dd2_fast.ops.registry import default_backend

    executor = Executor(90)
    with installed("cuda", executor), default_backend("cuda"):
        return [count(name, size, executor) for name in operators for size in sizes(name)]


def count_filters() -> list[dict[str, Any]]:
    """Every row of the table of what filters rows, for 64 images."""
    sys.path += [str(BENCH), str(BENCH.parent / "tests")]
    from compiled.backends import installed
    from compiled.executor import Executor

    class OneKernel(Executor):
        """What comes after it, on tensor cores, is not counted."""

        wanted = ""

        def launch(self, function: Any, *arguments: Any) -> None:
            if self.wanted in function.name:
                super().launch(function, *arguments)
            else:
                self.log.append((None, []))

    entries = []
    for (backend, kernel), rows in FILTERS.items():
        executor = OneKernel(90, processors=1)
        executor.wanted = kernel
        with installed(backend, executor):
            for model, top_p, data in product(ROWS, TOP_P, DATA):
                if backend == "cuda" and model != "var":  # LlamaGen's rows go on where filtered
                    continue
                size = Size(f"{model}_filtered", data, ROWS[model][1], rows, 1)
                executor.clear()
                filter_rows(backend, kernel, inputs(size) | {"top_k": TOP_K, "top_p": top_p})
                assert not executor.faults, executor.faults
                log = [counters for counters, _ in executor.log if counters is not None]
                entry = summary(kernel, size, log)
                entries.append({"backend": backend, "top_k": TOP_K, "top_p": top_p} | entry)
    return entries


def count_norms() -> list[dict[str, Any]]:
    """Every row of the table of norms: VAR's second of a block, modulated and gated by image, and
    LlamaGen's, with a weight."""
    import torch

    sys.path += [str(BENCH), str(BENCH.parent / "tests")]
    from compiled.backends import installed
    from compiled.executor import Executor

    from dd2_fast.ops import add_norm_modulate
    from dd2_fast.ops.add_norm_modulate import triton

    executor, entries = Executor(90), []
    tile = triton._tile
    generator = torch.Generator().manual_seed(0)
    with installed("triton", executor):
        for model, (image, batch) in ROWS.items():
            names = ("gate", "scale", "shift") if model == "var" else ("weight",)
            shape = (1, NORM_WIDTH) if model == "var" else (NORM_WIDTH,)
            rows = [torch.randn(1, image, NORM_WIDTH, generator=generator) for _ in range(2)]
            given = dict(zip(("h", "branch"), rows, strict=True))
            given |= {name: torch.randn(shape, generator=generator) for name in names}
            given = {name: value.bfloat16().requires_grad_() for name, value in given.items()}
            norm = "layer" if model == "var" else "rms"
            for rows_of_all in (image, batch):
                # Of a batch, an image by the tiles that its blocks have.
                triton._tile = lambda rows, of=rows_of_all: tile(of)
                size = Size(model, "normal", rows_of_all, image, PROCESSORS)
                outputs: tuple[torch.Tensor, ...] = ()
                for operator, passes in NORMS[model].items():
                    executor.clear()
                    if outputs:
                        torch.autograd.grad(outputs, list(given.values()), outputs)
                    else:
                        outputs = add_norm_modulate(**given, norm=norm, eps=1e-6)
                    assert executor.log and not executor.faults, executor.faults
                    log = [counters for counters, _ in executor.log]
                    limit = 2 * passes * NORM_WIDTH * rows_of_all / BANDWIDTH
                    entries.append(summary(operator, size, log, NORM_WIDTH, limit))
    triton._tile = tile
    return entries


def count_attention() -> list[dict[str, Any]]:
    """Every row of the table of attention, a row a query of one head: VAR's scales with unit
    queries and keys, and LlamaGen's one token a block, turned."""
    import torch

    sys.path += [str(BENCH), str(BENCH.parent / "tests")]
    from compiled.backends import installed
    from compiled.executor import Executor

    from dd2_fast.ops import block_causal_attention

    operator, entries = "block_causal_attention", []
    generator = torch.Generator().manual_seed(0)
    for backend, model, images in product(("cuda", "triton"), ROWS, (1, 64)):
        count = ROWS[model][0]
        qkv = torch.randn(1, count, 3, 1, HEAD_SIZE, generator=generator).bfloat16()
        if model == "var":
            given = {"ends": SCALES, "gain": torch.full((1,), 4.0)}
            seen = sum(
                end * (end - start) for start, end in zip((0, *SCALES), SCALES, strict=False)
            )
        else:
            angles = torch.rand(count, HEAD_SIZE // 2, generator=generator)
            given = {"rotary": torch.stack([angles.cos(), angles.sin()], -1)}
            seen = count * (count + 1) // 2
        # One head of a batch fills a multiprocessor as all of them do the device.
        executor = Executor(90, processors=PROCESSORS if images == 1 else 1)
        with installed(backend, executor):
            block_causal_attention(qkv, **given, backend=backend)
        assert executor.log and not executor.faults, executor.faults
        size = Size(model, "normal", count * HEADS * images, count, executor.processors)
        limit = 4 * 2 * HEAD_SIZE * size.rows / BANDWIDTH
        log = [counters for counters, _ in executor.log]
        entry = summary(operator, size, log, seen / count, limit)
        entries.append({"backend": backend, "images": images} | entry)
    return entries


def filter_rows(backend: str, kernel: str, data: dict[str, Any]) -> None:
    """Launches a kernel of FILTERS."""
    import torch

    from dd2_fast import ops
    from dd2_fast.ops.triton_rows import TeacherRows

    teacher = [data[name] for name in ("logits", "uncond_logits", "top_k", "top_p")]
    if kernel == "filter_rows":
        scale = torch.full((len(teacher[0]),), data["guidance_scale"])
        TeacherRows(*teacher[:2], scale, *teacher[2:]).limits()
    elif kernel == "sample_code":
        for name in ("x_t", "t", "codebook"):
            del data[name]
        ops.sample_code(**data, seed=0, backend=backend)
    else:
        ops.conditional_score(**data, prediction="x0", backend=backend)


NORMS_LEGEND = f"""Triton's kernels between two products of a block of {NORM_WIDTH} channels: VAR's,
modulated and gated, and LlamaGen's, with a weight. "Reading" is the time of what has to be read
and written, 4 values a channel forward, 6 and 4 backward; a logit is a channel.
"""


ATTENTION_LEGEND = f"""{HEADS} heads of {HEAD_SIZE} channels in bfloat16: VAR's 680 tokens with
unit queries and keys, LlamaGen's 256 with rotary positions. Instructions and cycles are those of a
query of one head, instructions by the keys that it sees, 421 and 128.5; "tensor" is the share of
the slowest unit's cycles in which tensor cores work, at the rate that wgmma reaches, mma.sync, that
of `cuda`, does not. "Reading" is the time of queries, keys, values and the result once.
"""


UNITS = ("issue", "alu", "fma", "mufu", "l1", "lsu", "shared", "shfl", "mma")
_RATES = f"{CLOCK / 1e9:.3f} GHz and {BANDWIDTH / 1e12:.1f} TB/s"
LEGEND = f"""PTX for sm_90a as executed on a CPU for a few rows, and what the slowest unit of the
busiest of {PROCESSORS} multiprocessors needs for it: a lower bound, without latencies and
occupancy, and without what ptxas changes. "Reading" is the time of the conditional and the
unconditional logits once ({_RATES}); `{LOGITS}`
reads them and the student's twice, and writes a gradient. Cycles are a multiprocessor's
for one row, by unit, bytes a row's, conflicts wavefronts of shared memory a 128 bytes asked for,
below 1 where lanes read the same. bfloat16 logits with guidance; filtered: top-k 900, VAR with
top-p 0.95; losses with their gradients; `flow_solve` with 20 Heun steps; a row of
`small_generator` is an image of the bundled digits, from seed to pixels, "a logit" one of its 64
pixels. A count moves with the data: normal logits, peaked ones, heavy ties. Made by
`python bench/tools/counted.py`, held to 1% by a test.
"""


FILTERS_LEGEND = f"""By itself, with top-k {TOP_K} alone and with top-p {TOP_P[1]}: the kernel
ahead of the tensor cores, and Triton's `sample_code`, which filters and draws.
"""


def markdown(entries: list[dict[str, Any]]) -> str:
    """The table of the page."""
    names = ["", "rows", "logits", "bound ms", "reading ms", "instr. a logit", *UNITS]
    names += ["global KB", "shared KB", "conflicts"]
    lines = [names, ["---", "---:", "---", *["---:"] * (len(names) - 3)]]
    for e in entries:
        cycles = [str(e["cycles_a_row"].get(unit, "")) for unit in UNITS]
        name = f"`{e['operator']}` {e['shape']}"
        if "backend" in e:
            filters = f"k {e['top_k']}" + (f", p {e['top_p']}" if e["top_p"] < 1 else "")
            name = f"{e['backend']} `{e['operator']}` {e['shape'].split('_')[0]}, {filters}"
        lines.append([
            name, str(e["rows"]), e["data"], f"{e['bound_ms']:.3g}",
            f"{e['reading_ms']:.3g}" if e["reading_ms"] else "", f"{e['instructions_a_logit']:.3g}",
            *cycles, f"{e['global_bytes_a_row'] / 1e3:.3g}", f"{e['shared_bytes_a_row'] / 1e3:.3g}",
            f"{e['wavefronts_a_request']:.2f}" if e["wavefronts_a_request"] else "",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def attention_markdown(entries: list[dict[str, Any]]) -> str:
    """The table of attention."""
    names = ["", "images", "bound ms", "reading ms", "instr. a key", "tensor", *UNITS]
    names += ["conflicts"]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    for e in entries:
        cycles = e["cycles_a_row"]
        lines.append([
            f"{e['backend']} {e['shape']}", str(e["images"]), f"{e['bound_ms']:.3g}",
            f"{e['reading_ms']:.3g}", f"{e['instructions_a_logit']:.3g}",
            f"{cycles['mma'] / max(cycles.values()):.0%}",
            *(str(cycles.get(unit, "")) for unit in UNITS), f"{e['wavefronts_a_request']:.2f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def section() -> str:
    """Of RESULTS.md."""
    files = (FILE, FILTERS_FILE, NORMS_FILE)
    tables = [markdown(json.loads(f.read_text())["entries"]) for f in files]
    attention = attention_markdown(json.loads(ATTENTION_FILE.read_text())["entries"])
    return (
        f"## Counted, not measured: GPU kernels\n\n{LEGEND}\n{tables[0]}\n"
        f"### What filters a row\n\n{FILTERS_LEGEND}\n{tables[1]}\n"
        f"### Norms\n\n{NORMS_LEGEND}\n{tables[2]}\n"
        f"### Attention\n\n{ATTENTION_LEGEND}\n{attention}"
    )


def against(rows: list[Row]) -> list[str]:
    """A line for each measurement of the CUDA kernels that a count is of: their ratio, which says
    how far the model is from that GPU."""
    entries = [e for e in json.loads(FILE.read_text())["entries"] if e["data"] == "normal"]
    lines = []
    for row in rows:
        operator, device, shape = row.words
        own = [e for e in entries if (e["operator"], e["shape"]) == (operator, shape)]
        if device != "cuda" or row.variant != "cuda" or not own:
            continue
        # An image, or of a batch its share of 64.
        image, batch = sorted(own, key=lambda e: e["rows"])
        images = row.extra.get("images", 1)
        bound = image["bound_ms"] if images == 1 else batch["bound_ms"] * images / 64
        measured = 1e3 * row.median
        lines.append(
            f"{operator} {shape}, {images} images: {measured:.3f} ms measured, {bound:.3f} ms "
            f"counted, {measured / bound:.2f}x"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = (*FILTERED, *PLAIN, NORM, SMALL, "filters", "norms", "attention")
    parser.add_argument("--operator", choices=names, help="count and print one")
    parser.add_argument("--out", type=Path, default=COUNTS, help="folder of the files")
    parser.add_argument("--file", choices=("cuda", *names[-3:]), help="write that one alone")
    options = parser.parse_args()
    if options.operator:
        wanted = options.operator
        counts = {"filters": count_filters, "norms": count_norms}
        if wanted == "attention":
            print(attention_markdown(count_attention()), end="")
            return 0
        entries = counts[wanted]() if wanted in counts else count_all((wanted,))
        print(markdown(entries), end="")
        return 0
    options.out.mkdir(exist_ok=True)
    files = {FILE: count_all, FILTERS_FILE: count_filters, NORMS_FILE: count_norms}
    files[ATTENTION_FILE] = count_attention
    for file, made in files.items():
        if options.file in (None, file.stem):
            out = options.out / file.name
            out.write_text(json.dumps({"arch": "sm_90a", "entries": made()}, indent=1) + "\n")
            print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
