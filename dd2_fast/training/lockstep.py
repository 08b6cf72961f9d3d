"""The fused trainer beside the reference one: the same state and random numbers, step by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import default_backend
from .loop import Stage


@dataclass
class Difference:
    """The largest differences of one part, a stage's network, over its steps.

    Attributes:
        stage, network: the part. steps: compared.
        loss: of the losses, relative to the reference's (absolute where that is below 1).
        gradient: ``|g - g_ref| / |g_ref|`` over all parameters.
        weights: ``|w - w_ref| / |w_ref|`` after the steps.
    """

    stage: str
    network: str
    steps: int = 0
    loss: float = 0.0
    gradient: float = 0.0
    weights: float = 0.0


def compare(
    fused: Sequence[Stage],
    reference: Sequence[Stage],
    fused_modules: Mapping[str, nn.Module],
    reference_modules: Mapping[str, nn.Module],
    *,
    steps: int,
    backend: str | None = None,
    seed: int = 0,
) -> Iterator[Difference]:
    """Run both lists of stages, ``steps`` steps each, and yield what each part differs by.

    Both start every stage from the fused run's models and the same random state, then follow
    their own gradients.

    Args:
        fused, reference: the same stages over models of their own.
        fused_modules, reference_modules: all models that the stages read and train, by name.
        backend: of the fused run's operators; None takes the usual one. The reference's is
            ``"torch"``.
    """
    for number, (ours, theirs) in enumerate(zip(fused, reference, strict=True)):
        for name, module in fused_modules.items():
            reference_modules[name].load_state_dict(module.state_dict())
        runs: list[tuple[Stage, str | None]] = [(ours, backend), (theirs, "torch")]
        rngs = [torch.Generator().manual_seed(seed + number) for _ in runs]
        for stage, _ in runs:
            stage.prepare()
        parts = {name: Difference(ours.name, name) for name in ours.trained}
        for index in range(min(steps, ours.steps)):
            losses = []
            for (stage, used), rng in zip(runs, rngs, strict=True):
                with default_backend(used):
                    losses.append(stage.step(index, rng))
            loss = _loss_difference(*losses)
            for key, part in parts.items():
                a, b = ours.trained[key].network, theirs.trained[key].network
                part.steps, part.loss = index + 1, max(part.loss, loss)
                part.gradient = max(part.gradient, _relative(_gradients(a), _gradients(b)))
        for key, part in parts.items():
            a, b = ours.trained[key].network, theirs.trained[key].network
            part.weights = _relative(list(a.parameters()), list(b.parameters()))
            if part.steps:
                yield part


def shorten(config: Any, steps: int) -> Any:
    """The recipe's configuration with at most ``steps`` steps per stage, stage 1's two
    halves together."""
    stage1, distill, logits = config.stage1, config.distill, config.logits
    head = min(stage1.head_steps, steps // 2)

    def least(value: int) -> int:
        return min(value, steps)

    return dataclasses.replace(
        config,
        adaptation=dataclasses.replace(config.adaptation, steps=least(config.adaptation.steps)),
        stage1=dataclasses.replace(stage1, head_steps=head, steps=min(stage1.steps, steps - head)),
        regression=dataclasses.replace(config.regression, steps=least(config.regression.steps)),
        distill=dataclasses.replace(
            distill,
            guidance_start=least(distill.guidance_start),
            steps=least(distill.steps),
            align_steps=least(distill.align_steps),
            aligned_steps=least(distill.aligned_steps),
        ),
        logits=dataclasses.replace(
            logits,
            pairs=least(logits.pairs),
            pair_steps=least(logits.pair_steps),
            steps=least(logits.steps),
        ),
    )


def _loss_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    differences = (
        abs(float(ours[name]) - float(value)) / max(abs(float(value)), 1.0)
        for name, value in theirs.items()
    )
    return max(differences, default=0.0)


def _gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@torch.no_grad()
def _relative(a: list[Tensor], b: list[Tensor]) -> float:
    """``|a - b| / |b|`` of lists of tensors, in float64."""
    if not b:
        return 0.0
    error = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True))
    size = sum(float(y.double().square().sum()) for y in b)
    return math.sqrt(error / size) if size else math.sqrt(error)
