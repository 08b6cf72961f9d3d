"""How far a generator's images are from the teacher's draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checkpoints
from ...ambient import outside_autocast
from ...condition import Rows, condition_of
from ...metrics.evaluation_mode import evaluation_mode, submodules
from ...metrics.image_report import Seen
from ...models.family import as_module
from ...models.sampling import draw_tokens
from ...ops.philox import image_normal
from ...sampling.sources import bundled_names, bundled_path
from ..recipes.running import Made
from ..samples.shards import sha256_of_weights

FEATURES, PIXELS = "fd", "fd_pixel"
_NAMES = (FEATURES, "fd_class", PIXELS)
_SEED, _REFERENCE, _OTHER, _NOISE_STREAM = 0, 21, 22, 7
_BATCH = 250
CLASSIFIER = "classifier.safetensors"


def classifier_beside(teacher: str) -> Path | None:
    """The classifier's file in a bundle, or in the folder of a run over images that has the
    teacher; None where there is none."""
    if not teacher:
        return None
    path = bundled_path(teacher) if teacher in bundled_names() else Path(teacher)
    found = (path if path.is_dir() else path.parent) / CLASSIFIER
    return found if found.is_file() else None


class Judge:
    """Fréchet distances between ``samples`` images of a generator and as many of its teacher's.

    Noise, labels (each class in turn) and the teacher's draws are the same at every call.

    Args:
        samples: images of either. sampling: ``cfg``, ``top_k`` and ``top_p`` of the teacher's.
        classifier: the file of one. trained: whether that of a run that makes its own is to be
            taken. Without any the distance is that of grey pixels, averaged to 14 a side.
    """

    def __init__(
        self,
        samples: int,
        sampling: Mapping[str, Any],
        classifier: Path | None = None,
        trained: bool = True,
    ) -> None:
        self.samples, self.sampling, self.trained = samples, dict(sampling), trained
        self.classifier = None if classifier is None else checkpoints.load(classifier).float()
        self._key: tuple[str, ...] = ()
        self._reference: Seen | None = None

    @torch.no_grad()
    def __call__(self, made: Made) -> dict[str, float]:
        """Distances of ``made.ema`` by name: ``fd`` of the classifier's features and ``fd_class``
        inside the classes, where there is one; ``fd_pixel``.

        Raises:
            FloatingPointError: the generator's images are not finite.
        """
        generator = made.ema
        tokenizer = made.tokenizer or generator.tokenizer
        classifier = self._classifier(made, tokenizer.codebook.device)
        teacher = made.teacher or made.modules["teacher"]
        shape = (generator.num_tokens, generator.dimension)

        def images(index: Tensor, labels: Rows) -> Tensor:
            noise = image_normal(_SEED, index, shape, stream=_NOISE_STREAM)
            x = generator(noise.to(tokenizer.codebook.dtype), labels)
            if not x.isfinite().all():
                raise FloatingPointError("expected finite images of the average generator")
            decoded: Tensor = tokenizer.decode(x)
            return decoded

        models = submodules(tokenizer, classifier, teacher, generator)
        with evaluation_mode(models), outside_autocast(tokenizer.codebook.device):
            reference = self._drawn(teacher, tokenizer, classifier)
            return self._seen(images, teacher, classifier).distances(reference, _NAMES)

    @torch.no_grad()
    def floor(self, made: Made) -> dict[str, float]:
        """The same of another draw of the teacher's."""
        tokenizer = made.tokenizer or made.ema.tokenizer
        classifier = self._classifier(made, tokenizer.codebook.device)
        teacher = made.teacher or made.modules["teacher"]
        models = submodules(tokenizer, classifier, teacher)
        with evaluation_mode(models), outside_autocast(tokenizer.codebook.device):
            reference = self._drawn(teacher, tokenizer, classifier)
            other = self._draws(teacher, tokenizer, _OTHER)
            return self._seen(other, teacher, classifier).distances(reference, _NAMES)

    def _classifier(self, made: Made, device: torch.device) -> Any:
        if self.classifier is not None:
            return self.classifier.to(device)
        return made.modules.get("classifier") if self.trained else None

    def _drawn(self, teacher: Any, tokenizer: Any, classifier: Any) -> Seen:
        """The teacher's images, drawn once for all trials that share it."""
        parts = (teacher, tokenizer, *(() if classifier is None else (classifier,)))
        key = tuple(sha256_of_weights(as_module(part)) for part in parts)
        if self._reference is None or key != self._key:
            draws = self._draws(teacher, tokenizer, _REFERENCE)
            self._reference, self._key = self._seen(draws, teacher, classifier), key
        return self._reference

    def _draws(self, teacher: Any, tokenizer: Any, seed: int) -> Any:
        def images(index: Tensor, labels: Rows) -> Tensor:
            tokens = draw_tokens(teacher, labels, index=index, seed=seed, **self.sampling)
            decoded: Tensor = tokenizer.decode(tokenizer.embed(tokens))
            return decoded

        return images

    def _seen(self, images: Any, teacher: Any, classifier: Any) -> Seen:
        device = teacher.codebook.device
        index = torch.arange(self.samples, device=device)
        rows = condition_of(teacher).draw("balanced", _SEED, index)
        plain = isinstance(rows, Tensor) and rows.ndim == 1
        labels = rows if plain else torch.zeros_like(index)
        condition = condition_of(teacher)
        parts = (
            images(part, condition.take(rows, slice(int(part[0]), int(part[-1]) + 1)))
            for part in index.split(_BATCH)
        )
        return Seen(classifier, parts, labels)
