"""How time grows: ``conditional_score`` with tokens and with V, one-step sampling with the batch.
The results page draws it.

pytest bench/bench_scaling.py --benchmark-only
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import bench_conditional_score
from cases import SHAPES, Shape, plain_score, score_inputs, size_in_bytes
from dd2_fast import Sampler
from measure import DEVICES, Call, Problem, input_sets, relative_error, usable

BASE = SHAPES["var_filtered"]
VALUES = {
    "tokens": (170, 680, 2720),
    "V": (1024, 4096, 16384),
    "batch": (1, 8, 64),
}
# A GPU is not filled by what a CPU needs a while for.
TIMES_ON_GPU = {"tokens": 16, "V": 1, "batch": 4}
SIZES = ("tiny", *(f"{axis}_{value}" for axis in VALUES for value in VALUES[axis]))
CASES = [
    (size, variant)
    for size in SIZES
    for variant in (["fused"] if size.startswith("batch") else ["eager", "fused"])
]


def shape_of(axis: str, value: int, device: str) -> Shape:
    if axis == "tokens":
        return dataclasses.replace(BASE, rows=value)
    rows = BASE.rows * (16 if device == "cuda" else 1) // 2
    return dataclasses.replace(BASE, rows=rows, vocabulary=value, top_k=value // 4)


def score_problem(axis: str, value: int, device: str, shape: Shape) -> Problem:
    sets = [score_inputs(shape, device, seed=i) for i in range(input_sets(device))]
    wanted = plain_score(**sets[0])

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = relative_error(call(), wanted)
        assert error < 1e-3, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    def make(variant: str) -> list[Call]:
        backend = usable(device)[0] if variant == "fused" else variant
        return [bench_conditional_score.make_variant(backend, data) for data in sets]

    return Problem(
        group=f"scaling {device} conditional_score {axis} {value}",
        device=device,
        make=make,
        check=check,
        bytes=size_in_bytes(*sets[0].values(), wanted),
        flops=4 * shape.rows * shape.kept * shape.dim,
        seconds=0.25,
        info={"scaling": {"of": "conditional_score", "axis": axis, "value": value}},
    )


def sampling_problem(batch: int, device: str) -> Problem:
    """The bundled digits, decoding included; checked against the images made one by one."""
    labels = torch.arange(batch) % 10
    one = Sampler("digits", device=device, batch_size=1)(labels)
    # A GPU's convolutions round to TF32, and differently at another batch size.
    allowed = 1e-4 if device == "cpu" else 1e-2

    def make(variant: str) -> list[Call]:
        sampler = Sampler("digits", device=device, batch_size=batch)
        return [lambda: sampler(labels)]

    def check(variant: str, call: Call) -> dict[str, Any]:
        error = relative_error(call(), one)
        assert error < allowed, f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    return Problem(
        group=f"scaling {device} sampling batch {batch}",
        device=device,
        make=make,
        check=check,
        seconds=0.25,
        info={"scaling": {"of": "one-step digits", "axis": "batch", "value": batch}},
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "variant"), CASES)
def bench_scaling(race: Any, size: str, device: str, variant: str) -> None:
    def build() -> Problem:
        axis, _, value = ("tokens", "_", "64") if size == "tiny" else size.partition("_")
        count = int(value) * (TIMES_ON_GPU[axis] if device == "cuda" else 1)
        if axis == "batch":
            return sampling_problem(count, device)
        return score_problem(axis, count, device, shape_of(axis, count, device))

    race(build)
