"""Training data drawn from a teacher, each image a function of (seed, index, label) alone."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ...condition import Rows, condition_of
from ...losses import TeacherScore, flow_pairs
from ...models import sampling
from ...models.family import Teacher
from ...sampling.noise import image_noise

_NUMBERS = 1 << 40  # so many that none comes twice; times a scale's tokens still 64 bits
_NOISE_POSITION = 1 << 32  # beyond any token's, whose positions seed the draws of tokens


def draw_seed(rng: torch.Generator) -> int:
    """A seed for the random numbers of one batch."""
    return int(torch.randint(2**62, (), generator=rng))


def draw_tokens(score: TeacherScore, labels: Rows, indices: Tensor, seed: int) -> Tensor:
    """Samples of a teacher, int64 tokens ``[B, n]``, of images ``indices`` (int64 ``[B]``).

    An image in another batch is the same but where rounding moves a code's probability across its
    uniform number.

    Raises:
        ValueError: the teacher's logits have a NaN or infinity.
    """
    settings: dict[str, Any] = dict(cfg=score.cfg, top_k=score.top_k, top_p=score.top_p)
    tokens = sampling.draw_tokens(_drawn(score), labels, seed=seed, index=indices, **settings)
    if (tokens < 0).any():
        image, i = (tokens < 0).nonzero()[0].tolist()
        raise ValueError(
            "score: expected finite teacher's logits, got a NaN or infinity at "
            f"token {i} of image {int(indices[image])}"
        )
    return tokens


def pair_noise(seed: int, indices: Tensor, num_tokens: int, dimension: int) -> Tensor:
    """The noise of DD1 pairs, float32 ``[B, n, C]``: a function of (seed, index).

    It is not the noise that sampling takes for the same seed and index, so that a student is never
    shown, or judged by, an image it was trained on because both seeds were left at 0.
    """
    return image_noise(sampling.step_seed(seed, _NOISE_POSITION), indices, (num_tokens, dimension))


def cfg_of(score: TeacherScore) -> float:
    """The ``cfg`` of a score; of one without guidance the number that means none to its teacher."""
    if score.cfg is not None:
        return float(score.cfg)
    return float(getattr(score.teacher, "unguided", 1.0))  # a caller's own may say nothing


class Source(Protocol):
    """Where a stage's images come from: a pool, shards, or the teacher itself."""

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, which images make a random batch; the same in every process."""

    def take(self, chosen: Tensor) -> tuple[Rows, ...]:
        """int64 ``tokens [m, n]`` and conditions (``labels [m]``) of chosen images; of pairs the
        ``noise [m, n, C]`` before them."""


class LiveSamples:
    """Samples of a teacher drawn when asked for, on its device; holds no state.

    Args:
        score: the teacher and its sampling settings.
        batch_size: images a pass of the teacher, which changes speed and memory only; None: all.
    """

    def __init__(self, score: TeacherScore, *, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.score, self.batch_size = score, batch_size

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, numbers of images that were never drawn before."""
        return torch.randint(_NUMBERS, (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Rows]:
        """int64 ``tokens [m, n]`` and uniform conditions, functions of the numbers."""
        teacher = self.score.teacher
        chosen = chosen.to(teacher.codebook.device)
        condition = condition_of(teacher)
        labels = condition.draw("uniform", 0, chosen)
        tokens = [
            draw_tokens(self.score, condition.take(labels, part), chosen[part], 0)
            for part in _parts(len(chosen), self.batch_size)
        ]
        return torch.cat(tokens), labels


class LivePairs:
    """DD1's pairs solved when asked for, on the teacher's device; holds no state.

    Args:
        score: the teacher and its sampling settings.
        ode_steps: Heun steps of the flow. batch_size: as of :class:`LiveSamples`.
    """

    def __init__(
        self, score: TeacherScore, *, ode_steps: int = 20, batch_size: int | None = None
    ) -> None:
        for name, value in (("ode_steps", ode_steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.score, self.ode_steps, self.batch_size = score, ode_steps, batch_size

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        """int64 ``[size]``, numbers of images that were never drawn before."""
        return torch.randint(_NUMBERS, (size,), generator=rng)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor, Rows]:
        """``noise [m, n, C]``, its int64 ``tokens [m, n]`` and uniform conditions, functions of the
        numbers."""
        teacher = self.score.teacher
        chosen = chosen.to(teacher.codebook.device)
        noise = pair_noise(0, chosen, *_noise_shape(self.score))
        condition = condition_of(teacher)
        labels = condition.draw("uniform", 0, chosen)
        tokens = [
            flow_pairs(noise[part], condition.take(labels, part), self.score, self.ode_steps)
            for part in _parts(len(chosen), self.batch_size)
        ]
        return noise, torch.cat(tokens), labels


def _drawn(score: TeacherScore) -> Teacher:
    """A score's teacher, of which draws ask more than losses do."""
    return cast(Teacher, score.teacher)


def _noise_shape(score: TeacherScore) -> tuple[int, int]:
    teacher = _drawn(score)
    return teacher.num_tokens, teacher.codebook.shape[1]


def _parts(size: int, batch_size: int | None) -> list[slice]:
    step = batch_size or max(size, 1)
    return [slice(first, first + step) for first in range(0, max(size, 1), step)]
