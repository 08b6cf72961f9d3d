"""What the page of `dd2-fast app` draws, without the page."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .picture import tile
from .settings import device_here, image_size

_MOST = 4  # images a side
_SMALL = 64  # pixels of all images a side, up to which there are several and all is drawn at once
_RUNS, _PATIENCE = 5, 0.1  # of one image, to time it; seconds after which no other is begun
_SHOWN = 384  # pixels of a picture


class Page:
    """One step, the teacher and a walk between two noises, of a class.

    Every function returns a Pillow image of the images 0, 1, ... of a seed, and a line about it.

    Args:
        model: a bundle, or a generator with a tokenizer, as of `Sampler`. Raises what that raises,
            and ValueError for a model that is not conditioned on classes.

    Attributes:
        teacher: the model's, or None. small: whether all is drawn in an instant.
        steps: of the teacher, 0 without one. unguided, cfg: guidance that is none, and that the
            model was distilled with.
    """

    def __init__(self, model: Any) -> None:
        from ..condition import ClassCondition
        from ..metrics import teacher_sampling
        from ..sampling import Sampler

        self._model, self.sampler = model, Sampler(model, device=device_here())
        self._drawing = threading.Lock()
        condition = self.sampler.condition
        if not isinstance(condition, ClassCondition):
            raise ValueError(
                "--model: expected one that is conditioned on classes, got one on "
                f"{type(condition).__name__}"
            )
        self.num_classes = condition.num_classes
        size = image_size(self.sampler)
        self.small = size <= _SMALL
        self._side = min(_MOST, max(1, _SMALL // size))
        self._scale = max(1, _SHOWN // (size * self._side))
        self.teacher = self.sampler.teacher
        self.steps = 0 if self.teacher is None else len(self.teacher.steps)
        self.unguided = 1.0 if self.teacher is None else float(self.teacher.unguided)
        self._options = teacher_sampling(model) if hasattr(model, "settings") else {}
        cfg = self._options.pop("cfg", None)
        self.cfg = self.unguided if cfg is None else float(cfg)
        if self.small:
            self.one_step(0, 0)  # the first packs the weights
            self.walk(0, 0, 1, 0.5)

    def one_step(self, label: int, seed: int, teacher_steps: int = 0, cfg: float = 1.0) -> Any:
        """The generator's images; of ``teacher_steps`` k > 1, the last k - 1 by the teacher."""
        from ..sampling import Sampler

        sampler, told = self.sampler, "1 step"
        if teacher_steps > 1:
            options = {"cfg": self._guidance(cfg), **self._options}
            sampler = Sampler(self._model, teacher_steps=int(teacher_steps), **options)
            told = f"1 step and {teacher_steps - 1} of the teacher's"
        return self._timed(told, label, lambda labels: sampler(labels, seed=seed))

    def by_teacher(self, label: int, seed: int, cfg: float = 1.0) -> Any:
        """The teacher's own images, step by step."""
        teacher, tokenizer = self.teacher, self.sampler.tokenizer
        if teacher is None:
            raise ValueError("teacher: expected a model with one, such as a bundle's folder")
        options = {"cfg": self._guidance(cfg), **self._options}

        def draw(labels: Tensor) -> Tensor:
            tokens = teacher.sample(labels, seed=seed, **options)
            images: Tensor = tokenizer.decode(tokenizer.embed(tokens))
            return images

        return self._timed(f"{self.steps} steps", label, draw)

    def walk(self, label: int, seed: int, other: int, way: float) -> Any:
        """The generator's images of noise between that of two seeds: ``cos(a) e + sin(a) e'`` with
        ``a = way pi / 2``, which is normal again, ``way`` in 0..1."""
        from ..models import prepare
        from ..sampling.arguments import image_seed
        from ..sampling.noise import image_noise

        ends = image_seed(seed), image_seed(other)
        angle = way * math.pi / 2
        generator, tokenizer = prepare(self.sampler.generator), prepare(self.sampler.tokenizer)
        codebook = tokenizer.codebook
        shape = self.sampler.num_tokens, codebook.shape[1]

        def draw(labels: Tensor) -> Tensor:
            index = torch.arange(len(labels), device=codebook.device)
            here, there = (image_noise(end, index, shape) for end in ends)
            noise = math.cos(angle) * here + math.sin(angle) * there
            images: Tensor = tokenizer.decode(generator(noise.to(codebook.dtype), labels))
            return images

        with self._drawing:
            picture = self._picture(self._images(draw, self._labels(label)))
        return picture, f"{way:.0%} of the way"

    def _guidance(self, cfg: float) -> float | None:
        return None if cfg == self.unguided else float(cfg)

    def _timed(self, told: str, label: int, draw: Callable[[Tensor], Tensor]) -> Any:
        """A picture, and the least time that one image alone takes."""
        labels = self._labels(label)
        with self._drawing:  # others would take time from this one
            images = self._images(draw, labels) if len(labels) > 1 else None
            seconds: list[float] = []
            while not seconds or (len(seconds) < _RUNS and sum(seconds) < _PATIENCE):
                start = time.perf_counter()
                one = self._images(draw, labels[:1])
                seconds.append(time.perf_counter() - start)
        picture = self._picture(one if images is None else images)
        return picture, f"{told}, {1e3 * min(seconds):.1f} ms for one image"

    def _labels(self, label: int) -> Tensor:
        device = self.sampler.tokenizer.codebook.device
        labels: Tensor = self.sampler.check_labels(label)
        return labels.repeat(self._side**2).to(device)

    def _images(self, draw: Callable[[Tensor], Tensor], labels: Tensor) -> np.ndarray:
        from ..sampling.outputs import to_uint8

        with torch.inference_mode():
            images: np.ndarray = to_uint8(draw(labels)).numpy()
        return images

    def _picture(self, images: np.ndarray) -> Any:
        return tile(images, columns=self._side, scale=self._scale)
