"""Each training step by the fused operators against the same step by the plain torch ones (the
reference trainer): on a CPU of tiny networks, on a GPU of VAR-d16's and LlamaGen-L's sizes too.

pytest bench/bench_training.py --benchmark-only [-m "slow or not slow"]

With ``-m slow`` also both trainers with their blocks under torch.compile.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dd2_fast.training.lockstep import compare
from measure import DEVICES, Call, Problem
from training_cases import (
    MODELS,
    STEPS,
    Trainer,
    batch_of,
    call,
    check_memory,
    random_teacher,
    steps_of,
)

VARIANTS = [
    "reference",
    "fused",
    pytest.param("compile", marks=pytest.mark.slow),  # the reference, compiled
    pytest.param("fused_compile", marks=pytest.mark.slow),
]
CASES = [(model, step) for step in STEPS for model in MODELS if step in steps_of(model)]


def problem(size: str, step: str, device: str) -> Problem:
    check_memory(size, device)
    teacher = random_teacher(size, device)
    if not size.startswith("tiny") and device == "cuda":
        teacher.to(torch.bfloat16)
    reference = Trainer(size, step, teacher)
    with FlopCounterMode(display=False) as counter:
        reference.step("torch")
    flops = counter.get_total_flops()

    def make(variant: str) -> list[Call]:
        if variant == "reference":
            return [call(reference, "torch")]
        trainer = Trainer(size, step, teacher, compile=variant.endswith("compile"))
        trainers[variant] = trainer
        return [call(trainer, None if variant.startswith("fused") else "torch")]

    def check(variant: str, made: Call) -> dict[str, Any]:
        if variant == "reference":
            assert all(torch.isfinite(torch.as_tensor(v)) for v in made().values()), variant
            return {}
        trainer = trainers[variant]
        low = trainer.parallel.config.precision == "bfloat16"
        backend = None if variant.startswith("fused") else "torch"
        # From the same moments of Adam, and of weights compare() sees to.
        trainer.stage.load_state_dict(copy.deepcopy(reference.stage.state_dict()))
        modules = trainer.modules, reference.modules
        # After a step of Adam in bfloat16 the two are not where a difference tells anything.
        steps = 1 if low else 2
        parts = compare([trainer.stage], [reference.stage], *modules, steps=steps, backend=backend)
        error = max(max(part.loss, part.gradient) for part in parts)
        # In bfloat16 a logit next to a filter's threshold moves a code in or out.
        assert error < (5e-2 if low else 1e-4), f"{variant} is off by {error:.1e}: not timed"
        return {"error": error}

    trainers: dict[str, Trainer] = {}
    return Problem(
        group=f"training {device} {size} {step}",
        device=device,
        make=make,
        check=check,
        flops=flops,
        seconds=0.4 if device == "cpu" else 1.0,
        info={"images": batch_of(size), "flops_of": "torch's matrix products and attention"},
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "step"), CASES)
def bench_training(race: Any, size: str, step: str, device: str, variant: str) -> None:
    race(lambda: problem(size, step, device))
