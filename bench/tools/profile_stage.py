"""One stage in its steady state, for Nsight or torch.profiler: ``profile_stage.py STAGE``.

Each step is an NVTX range; ``cudaProfilerStart`` and ``Stop`` stand round the steps after the
warm-up. ``--trace FILE`` takes a Chrome trace by torch.profiler instead, on any machine; without
CUDA that is all there is. README.md says how to read either.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from cases import SHAPES, operator_arguments, score_inputs
from dd2_fast.ops import flow_solve
from dd2_fast.ranges import annotate
from measure import usable

Step = Callable[[], Any]
OPERATORS = (
    "conditional_score",
    "csd_loss",
    "sample_code",
    "logit_distillation_loss",
    "nearest_code",
    "linear_conditional_score",
    "flow_solve",
)
TRAINING = ("distill", "gts_whole", "gts_head", "fcs", "adaptation")
STAGES = ("operators", "sampling", "training", *OPERATORS, *TRAINING)
# The sizes of operators, and of networks.
SIZES = {"tiny": ("tiny", "tiny_var", "tiny_llamagen"),
         "var": ("var_filtered", "var_d16", ""),
         "llamagen": ("llamagen_filtered", "", "llamagen_l")}  # fmt: skip


def operator(name: str, size: str, device: str, backend: str) -> Step:
    """A call of one operator, forward and, for losses, backward."""
    shape = SIZES[size][0]
    if name == "flow_solve":
        data = operator_arguments(score_inputs(SHAPES[shape], device))
        noise = torch.randn_like(data.pop("x_t"))
        del data["t"]
        return lambda: flow_solve(noise, **data, backend=backend or None)
    bench = importlib.import_module(f"bench_{name}")
    if name == "nearest_code":
        shape = shape.removesuffix("_filtered")
    return bench.problem(shape, device).make(backend or usable(device)[0])[0]


def sampling(size: str, device: str) -> Step:
    """One-step images, decoded: the bundled digits, or random weights of the released sizes."""
    from dd2_fast import Sampler

    if size == "tiny":
        sampler = Sampler("digits", device=device, batch_size=16)
    else:
        from dd2_fast.models import DD2Generator
        from training_cases import random_teacher

        generator = DD2Generator.from_teacher(random_teacher(_network(size, "sampling"), device))
        dtype = torch.bfloat16 if device == "cuda" else None
        sampler = Sampler(generator, device=device, batch_size=16, dtype=dtype)
    labels = torch.arange(16) % 10
    return lambda: sampler(labels)


def training(kind: str, size: str, device: str, backend: str) -> Step:
    """One training step."""
    from training_cases import Trainer, call, random_teacher

    model = _network(size, kind)
    teacher = random_teacher(model, device)
    if device == "cuda" and size != "tiny":
        teacher.to(torch.bfloat16)
    return call(Trainer(model, kind, teacher), backend or None)


def _network(size: str, stage: str) -> str:
    """The networks of a size; adaptation is LlamaGen's."""
    _, var, llamagen = SIZES[size]
    name = llamagen if stage == "adaptation" else var or llamagen
    if not name:
        raise SystemExit(f"profile_stage.py: {stage} is of LlamaGen; take --size llamagen")
    return name


def steps_of(stage: str, size: str, device: str, backend: str) -> dict[str, Step]:
    """The steps of a stage by the names of their ranges."""
    if stage == "sampling":
        return {stage: sampling(size, device)}
    kinds = {"operators": OPERATORS, "training": TRAINING}.get(stage, (stage,))
    if stage == "training" and size == "var":
        kinds = TRAINING[:-1]
    make = operator if kinds[0] in OPERATORS else training
    return {kind: make(kind, size, device, backend) for kind in kinds}


def run(steps: dict[str, Step], count: int) -> None:
    for name, step in steps.items():
        for i in range(count):
            with annotate(f"{name} {i}"), torch.profiler.record_function(name):
                step()


def trace(steps: dict[str, Step], count: int, target: Path) -> None:
    """Write a Chrome trace and print what took longest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    sort = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        sort = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run(steps, count)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(target))
    print(profiler.key_averages().table(sort_by=sort, row_limit=15, max_name_column_width=40))
    print(f"wrote {target}; open it in chrome://tracing or ui.perfetto.dev")


def mark(steps: dict[str, Step], count: int) -> None:
    """The steady state between ``cudaProfilerStart`` and ``Stop``."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run(steps, count)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="", help="of the operators; default the usual one")
    parser.add_argument("--warmup", type=int, default=3, help="steps before (default 3)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each range (default 5)")
    parser.add_argument("--trace", type=Path, help="a Chrome trace by torch.profiler")
    options = parser.parse_args(arguments)
    steps = steps_of(options.stage, options.size, options.device, options.backend)
    run(steps, options.warmup)
    if options.trace is not None or options.device == "cpu":
        trace(steps, options.steps, options.trace or Path(f"{options.stage}-{options.size}.json"))
    else:
        mark(steps, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
