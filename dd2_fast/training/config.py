"""Settings of each stage; a recipe's configuration is made of these and is saved whole."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ..losses import TimeDistribution
from ..ops.csd_loss.api import OBJECTIVES
from .settings import configure, flatten, parse_config  # noqa: F401 (where they once were)

_LARGEST = (1 << 63) - 1
_MAY_BE_ZERO = object()
# Numbers of zero or more; every other number of a configuration is positive.
Count = Annotated[int, _MAY_BE_ZERO]
Amount = Annotated[float, _MAY_BE_ZERO]


class Checked:
    """Checks the sign and size of every number of a configuration, before any work."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            parts = (hint, *typing.get_args(hint))  # one that may be None is a union
            zero = any(_MAY_BE_ZERO in getattr(part, "__metadata__", ()) for part in parts)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
            if value < 0 or (value == 0 and not zero):
                wanted = "zero or more" if zero else "a positive number"
                raise ValueError(f"{name}: expected {wanted}, got {value}")
            if isinstance(value, int) and value > _LARGEST:
                raise ValueError(f"{name}: expected at most {_LARGEST}, got {value}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """Auto-encoder first, then k-means and an EMA codebook with straight-through gradients."""

    vocabulary: int = 64
    dimension: int = 8
    width: int = 48
    continuous_steps: Count = 300
    steps: Count = 1200
    batch: int = 128
    rate: Amount = 2e-3
    commitment: Amount = 0.25
    codebook_decay: Amount = 0.98

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.continuous_steps >= self.steps:
            raise ValueError(
                f"continuous_steps: expected fewer than steps = {self.steps}, "
                f"got {self.continuous_steps}"
            )


@dataclass(frozen=True)
class TeacherConfig(Checked):
    """The transformer and its training: AdamW, noise on what it reads, dropped labels."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: Count = 1000
    batch: int = 128
    rate: Amount = 2e-3
    weight_decay: Amount = 0.05
    label_dropout: Amount = 0.1
    token_noise: Amount = 0.1
    embedding_noise: Amount = 0.2


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Size of the generator and the guidance network: arguments of ``from_teacher``.

    With ``exact`` they start as the very function of a LlamaGen teacher; without it they have the
    paper's size, 5% smaller for LlamaGen-L, and stage 1 has to relearn the token table.
    """

    head_width: int = 96
    head_depth: int = 2
    exact: bool = True


@dataclass(frozen=True)
class PairsConfig(Checked):
    """How many (noise, teacher sample) pairs the flow ODE makes, and in how many Heun steps."""

    count: int = 40000
    batch: int = 1000
    ode_steps: int = 20


@dataclass(frozen=True)
class Stage1Config(Checked):
    """GTS: the head alone, then everything; the rate falls from ``hold`` of the steps on.

    ``target="ground_truth"`` is the teacher's analytic velocity, ``"sample"`` the plain
    AR-diffusion loss's ``eps - q_i`` (an ablation).
    """

    head_steps: Count = 100
    steps: Count = 300
    batch: int = 64
    draws: int = 2
    rate: Amount = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: Count = 20
    hold: float = 0.5
    time_low: float = 0.02
    target: str = "ground_truth"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("target", self.target, ("ground_truth", "sample"))


@dataclass(frozen=True)
class RegressionConfig(Checked):
    """DD1's regression of the pairs, the generator's start; 0 steps leaves it out."""

    steps: Count = 1000
    batch: int = 64
    rate: Amount = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: Count = 20
    hold: float = 0.5


@dataclass(frozen=True)
class AdaptationConfig(Checked):
    """Stage 0 of LlamaGen, after the token table has become an MLP of code vectors.

    ``target="sample"`` is the AR loss of the samples, as in the paper; ``"teacher"`` the divergence
    ``KL(teacher | copy)`` of the teacher's own logits, whatever the samples were drawn with: the AR
    loss of guided samples teaches guidance to a copy whose logits are then guided once more.
    """

    steps: Count = 2000
    batch: int = 256
    rate: Amount = 1e-4
    weight_decay: Amount = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: Count = 50
    label_dropout: Amount = 0.1
    embedding_noise: Amount = 0.0
    target: str = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("target", self.target, ("sample", "teacher"))


@dataclass(frozen=True)
class CsdConfig(Checked):
    """Stage 2: K guidance updates (FCS) with each generator update (CSD).

    ``aligned_updates`` is K after the alignment, 0 for the same.
    """

    steps: Count = 1800
    guidance_start: Count = 100
    guidance_updates: int = 1
    align_steps: Count = 0
    aligned_steps: Count = 300
    aligned_updates: Count = 0
    batch: int = 64
    draws: int = 2
    generator_rate: Amount = 7e-4
    guidance_rate: Amount = 1.5e-3
    guidance_floor: float = 0.4
    warmup: Count = 50
    hold: float = 0.5
    betas: tuple[float, float] = (0.0, 0.99)
    objective: str = "dmd"
    alpha: Amount = 1.0
    weight_power: Amount = 0.75
    generator_time_low: float = 0.1
    generator_time_density: str = "uniform"
    guidance_time_low: float = 0.02
    ema_decay: Amount = 0.997
    auxiliary: Amount = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("objective", self.objective, OBJECTIVES)
        TimeDistribution(self.generator_time_low, 1.0, self.generator_time_density)
        TimeDistribution(self.guidance_time_low)


DistillConfig = CsdConfig  # its name while it differed from DistilConfig by one letter


@dataclass(frozen=True)
class LogitsConfig(Checked):
    """The logit student: ``pair_steps`` at DD1's tokens, then ``steps`` at its own.

    ``pairs`` are drawn once, ``pair_batch`` at a time; 0: they come from ``source.data``, or are
    drawn for every batch. ``flow_steps``: Heun steps from noise to a code. ``temperature``: of the
    student's codes, in training and after it.
    """

    pairs: Count = 0
    pair_batch: int = 500
    pair_steps: Count = 1000
    pair_rate: Amount = 2e-3
    steps: Count = 2000
    rate: Amount = 1e-3
    batch: int = 64
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Amount = 0.0
    warmup: Count = 50
    hold: float = 0.5
    ema_decay: Amount = 0.997
    flow_steps: int = 20
    temperature: float = 1.0


@dataclass(frozen=True)
class ExecutionConfig(Checked):
    """How a step's arithmetic is done; results change by rounding alone.

    Args:
        micro_batch: images in a pass on each process; gradients accumulate over the passes of a
            batch. 0 takes a process's whole share at once.
        precision: ``"float32"``, or ``"bfloat16"`` for frozen networks and, by autocast, trained
            ones, whose weights and updates stay in float32.
        compile: compile each block and head by torch.compile.
        checkpoint_activations: keep no activations inside blocks; the backward pass computes them
            again.
        attention: of VAR's trained networks over its scales, ``"scales"``, a call a scale, or
            ``"flex"``, one compiled call of FlexAttention on a GPU with Triton and the calls
            elsewhere. Neither was timed on a GPU.
        sharding: of trained networks on several processes, ``"replicate"`` (DDP) or ``"shard"``
            (FSDP2).
        report_every: steps between looks at the losses, each of which waits for the device.
        keep_state: keep what later runs can continue from: the last saved state of a finished run,
            ``final.pt``, for more steps of its last stage, and stage 1's network.
        keep_every: steps between average generators kept in ``weights``; 0 keeps none.
    """

    micro_batch: Count = 0
    precision: str = "float32"
    compile: bool = False
    checkpoint_activations: bool = False
    attention: str = "scales"
    sharding: str = "replicate"
    report_every: int = 1
    keep_state: bool = True
    keep_every: Count = 0

    def __post_init__(self) -> None:
        if self.report_every < 1:
            raise ValueError(f"report_every: expected at least 1, got {self.report_every}")
        super().__post_init__()
        one_of("precision", self.precision, ("float32", "bfloat16"))
        one_of("attention", self.attention, ("scales", "flex"))
        one_of("sharding", self.sharding, ("replicate", "shard"))


@dataclass(frozen=True)
class ScoreConfig:
    """A sampling distribution of the teacher; ``cfg`` None means no guidance."""

    cfg: float | None = None
    top_k: int = 0
    top_p: float = 1.0
