"""Trainings of ``ablations.py`` with what they pass through: what the claims are measured on.

``Seed(seed, folder)`` has the tokenizer, teacher and classifier of a seed and, by ``along(name)``,
a training of a variant with its averages and CPU seconds along the way. What was made once is kept
in the folder.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablations import PAPER_CSD, VARIANTS, make_base, train
from dd2_fast.checkpoints.files import write_atomic
from dd2_fast.training.loop import Stage
from dd2_fast.training.recipes import digits
from dd2_fast.training.samples.digits import load_digits

# Steps between averages, 3.6 to 5.5 CPU seconds.
EVERY = {"regression": 200, "distill": 40}
HALF = PAPER_CSD // 2  # the last step of stage 2 at full rates
_BASE = ("tokenizer", "classifier", "teacher", "pool")


class Clock:
    """CPU seconds of this process, without what is done while it is paused."""

    def __init__(self) -> None:
        self._began, self._spent = time.process_time(), 0.0

    def __call__(self) -> float:
        return time.process_time() - self._began - self._spent

    def paused(self, action: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = action()
        self._spent += time.process_time() - began
        return result


def weights(network: nn.Module) -> dict[str, Any]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


class Along:
    """Told of a training's steps, it keeps its averages: ``points``, with their CPU seconds;
    ``seconds`` at the end of each stage; and the networks that stage 2 starts from and has at the
    last step of full rates."""

    def __init__(self, last: str) -> None:
        self.last, self.clock = last, Clock()
        self.seconds: dict[str, float] = {}
        self.points: list[dict[str, Any]] = []
        self.networks: dict[str, dict[str, Any]] = {}

    def __call__(self, stage: Any, index: int) -> None:
        done = index + 1
        if done == stage.steps:
            self.seconds[stage.name] = self.clock()
        if stage.name == self.last and (done % EVERY[self.last] == 0 or done == stage.steps):
            seconds = self.clock()
            average = self.clock.paused(lambda: weights(stage.ema))
            self.points.append({"step": done, "seconds": seconds, "weights": average})
        if stage.name == "guidance" and done == stage.steps:
            self.keep("start", generator=stage.update.generator, guidance=self.network(stage))
        if stage.name == "distill" and done == HALF:
            self.keep("half", generator=stage.generator, guidance=stage.guidance, ema=stage.ema)

    def network(self, stage: Any) -> nn.Module:
        found: nn.Module = stage.trained["guidance"].network
        return found

    def keep(self, name: str, **networks: nn.Module) -> None:
        self.networks[name] = self.clock.paused(
            lambda: {k: weights(network) for k, network in networks.items()}
        )


class Seed:
    """Of a seed, everything that variants share, and trainings of variants."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.config = digits.DigitsConfig(seed=seed)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or has given before."""
        path = self.folder / f"{name}-{self.seed}.pt"
        if not path.exists():
            file = io.BytesIO()
            torch.save(make(), file)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, file.getvalue())
        return torch.load(path, weights_only=True)

    @cached_property
    def _base(self) -> tuple[dict[str, Any], float]:
        def make() -> dict[str, Any]:
            clock, ends = Clock(), {}

            def watch(stage: Stage, index: int) -> None:
                ends[stage.name] = clock()

            models, _ = make_base(self.config, watch)
            states = {name: models[name].state_dict() for name in _BASE}
            return {"states": states, "pairs": ends["pairs"] - ends["teacher"]}

        kept = self.once("base", make)
        models = digits.build_models(self.config)
        for name in _BASE:
            models[name].load_state_dict(kept["states"][name])
            models[name].eval().requires_grad_(False)
        return models, kept["pairs"]

    @property
    def models(self) -> dict[str, Any]:
        return self._base[0]

    @property
    def pairs_seconds(self) -> float:
        """CPU seconds of drawing the pairs."""
        return self._base[1]

    @cached_property
    def data(self) -> Any:
        return load_digits()

    def along(self, name: str) -> dict[str, Any]:
        """A training of a variant: see :class:`Along`."""

        def make() -> dict[str, Any]:
            models, variant = self.models, VARIANTS[name]
            along = Along("distill" if variant.csd else "regression")
            train(variant, models, self.seed, along)
            return {k: getattr(along, k) for k in ("seconds", "points", "networks")}

        return self.once(name, make)

    def start(self, name: str) -> dict[str, Any]:
        """The generator and the guidance network that stage 2 of a variant starts from."""

        def make() -> dict[str, Any]:
            along = Along("distill")
            train(dataclasses.replace(VARIANTS[name], csd=1), self.models, self.seed, along)
            return along.networks["start"]

        if (self.folder / f"{name}-{self.seed}.pt").exists():
            start: dict[str, Any] = self.along(name)["networks"]["start"]
            return start
        found: dict[str, Any] = self.once(f"{name}-start", make)
        return found

    def network(self, kind: str, state: dict[str, Any]) -> Any:
        """A generator or guidance network (``kind``) of these weights."""
        network = copy.deepcopy(self.models[kind])
        network.load_state_dict(state)
        return network
