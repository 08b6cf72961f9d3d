"""One table that judges networks trained on images against those images and the teacher."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ambient import outside_autocast
from ..losses import TeacherScore
from ..models.family import Student, Teacher, Tokenizer
from ..models.sampling import draw_tokens
from ..ops import nearest_code
from ..ops.philox import image_normal
from .evaluation_mode import evaluation_mode, submodules
from .frechet import frechet_distance
from .image_classifier import describe
from .likelihood import negative_log_likelihood
from .precision_recall import precision_recall
from .report import shuffle_within_class

COLUMNS = (
    *("accuracy", "fd", "fd_class", "fd_pixel"),
    *("to_teacher", "to_teacher_class", "to_teacher_pixel"),
    *("precision", "recall", "nll", "ms"),
)
_PIXELS = 14  # a side at most, of the distance in pixels
_RUNS = 7
_NOISE_STREAM = 7
_TEACHER, _OTHER, _REFINED = 11, 12, 13  # offsets of the seed, one a kind of draw

Make = Callable[[Tensor, Tensor], Tensor]  # (labels [m], indices [m]) -> what it says


class Seen:
    """What is kept of images: features ``[N, D]``, predicted classes, and pixels made coarse."""

    def __init__(self, classifier: Any, parts: Iterable[Tensor], labels: Tensor) -> None:
        features, predicted, pixels = [], [], []
        for images in parts:
            if classifier is not None:
                f, p = describe(classifier, images)
                features.append(f.cpu())
                predicted.append(p.cpu())
            size = min(_PIXELS, images.shape[-1])
            pixels.append(F.adaptive_avg_pool2d(images.float(), size).mean(1).flatten(1).cpu())
        self.labels, self.pixels = labels.cpu(), torch.cat(pixels)
        self.features = torch.cat(features) if features else None
        self.predicted = torch.cat(predicted) if predicted else None

    def accuracy(self) -> float:
        """Share that the classifier gives its label."""
        assert self.predicted is not None
        return float((self.predicted == self.labels).double().mean())

    def distances(self, other: Seen, names: Sequence[str]) -> dict[str, float]:
        """Fréchet distances to ``other`` of features, of features inside the classes and of pixels,
        by these ``names``; a class with fewer than two images on either side is passed over."""
        found = {}
        if self.features is not None and other.features is not None:
            found[names[0]] = frechet_distance(self.features, other.features)
            inside = []
            for label in other.labels.unique():
                a, b = self.labels == label, other.labels == label
                if int(a.sum()) > 1 and int(b.sum()) > 1:
                    inside.append(frechet_distance(self.features[a], other.features[b]))
            if inside:
                found[names[1]] = statistics.fmean(inside)
        found[names[2]] = frechet_distance(self.pixels, other.pixels)
        return found


@torch.no_grad()
def evaluate_images(
    tokenizer: Tokenizer,
    images: Iterable[Tensor],
    labels: Tensor,
    *,
    classifier: Any = None,
    teacher: Teacher | None = None,
    generators: Mapping[str, Student] | None = None,
    samples: int = 5000,
    teacher_steps: Sequence[int] = (2, 3, 4),
    jacobi: Sequence[int] = (),
    neighbours: int = 3,
    batch: int = 250,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return ``rows``, `COLUMNS` for each way to make images, with ``reconstruction_mse``,
    ``codes_used`` (share), and ``held_out_nll``, the teacher's nats a token on real images.

    * accuracy: share of the images that the classifier gives the label they were made with;
    * fd, fd_class, fd_pixel: Fréchet distance to the held-out images of the classifier's features,
      their mean inside the classes, of grey pixels averaged to at most 14 a side;
    * to_teacher, ...: the same to as many draws of the teacher;
    * precision, recall: of features, against the held-out images (arXiv 1904.06991);
    * nll: mean nats a token under the teacher of the nearest codes;
    * ms: milliseconds for one image alone with its decoding, the median of some.

    Rows are ``real`` (the held-out images), ``reconstruction`` (through the tokenizer),
    ``teacher`` (another draw than the reference), ``set_prediction`` (the tokens of that draw
    shuffled inside each class, at every position), each of ``generators`` and, of ``one_step``,
    ``one_step_K`` with the last ``K - 1`` steps drawn anew by the teacher, ``one_step_jacobi_K``
    with ``K`` of the teacher's passes over all tokens (``teacher_steps`` and ``jacobi`` have K).

    Args:
        tokenizer: that decodes all of them. images: parts ``[m, c, S, S]`` in [0, 1] of the
            held-out images, gone through twice. labels: int64 ``[N]`` of all.
        classifier: None leaves out what features tell.
        teacher: None judges the tokenizer alone. generators: one-step generators by name.
        samples: images of each way; their labels are the held-out ones, again and again.
        sampling: ``cfg``, ``top_k``, ``top_p`` of the teacher's draws.
    """
    options = {"cfg": None, **(sampling or {})}
    modules = submodules(tokenizer, classifier, teacher, *(generators or {}).values())
    device = tokenizer.codebook.device
    with evaluation_mode(modules), outside_autocast(device):
        judge = _Judge(tokenizer, images, labels, classifier, teacher, samples, batch, neighbours)
        if teacher is not None:
            judge.draw(teacher, options, seed)
            for name, generator in (generators or {}).items():
                judge.generated(name, generator, teacher, seed, teacher_steps, jacobi, options)
        return judge.told


class _Judge:
    """Collects the rows; labels of what is made are the held-out ones, repeated."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: Iterable[Tensor],
        labels: Tensor,
        classifier: Any,
        teacher: Teacher | None,
        samples: int,
        batch: int,
        neighbours: int,
    ) -> None:
        self.tokenizer, self.classifier, self.teacher = tokenizer, classifier, teacher
        self.batch, self.neighbours = batch, neighbours
        self.device = tokenizer.codebook.device
        self.real = Seen(classifier, (part.to(self.device) for part in images), labels)
        self.reference: Seen | None = None
        self.rows: dict[str, dict[str, float]] = {}
        tokens: list[Tensor] = []
        errors: list[Tensor] = []

        def reconstructed() -> Iterator[Tensor]:
            for part in images:
                part = part.to(self.device)
                tokens.append(tokenizer.encode(part))
                made = self._decode(tokens[-1])
                errors.append((made - part).square().mean((1, 2, 3)))
                yield made

        seen = Seen(classifier, reconstructed(), labels)
        real = torch.cat(tokens)
        self.told: dict[str, Any] = {
            "reconstruction_mse": float(torch.cat(errors).mean()),
            "codes_used": real.unique().numel() / len(tokenizer.codebook),
            "images": len(labels),
            "samples": samples,
            "rows": self.rows,
        }
        if classifier is not None:
            self.rows["real"] = {"accuracy": self.real.accuracy()}
        self._judge("reconstruction", seen, real, labels)
        if teacher is not None:
            self.told["held_out_nll"] = self.rows["reconstruction"]["nll"]
        self.labels = labels.repeat(-(-samples // len(labels)))[:samples].to(self.device)

    def _decode(self, tokens: Tensor) -> Tensor:
        images: Tensor = self.tokenizer.decode(self.tokenizer.embed(tokens))
        return images

    def _parts(self, make: Make) -> list[Tensor]:
        index = torch.arange(len(self.labels), device=self.device)
        pairs = zip(self.labels.split(self.batch), index.split(self.batch), strict=True)
        return [make(label, number) for label, number in pairs]

    def draw(self, teacher: Teacher, sampling: dict[str, Any], seed: int) -> None:
        """The rows of the teacher and of set prediction; the teacher's reference."""

        def drawn(offset: int) -> Make:
            return lambda labels, index: draw_tokens(
                teacher, labels, index=index, seed=seed + offset, **sampling
            )

        tokens = torch.cat(self._parts(drawn(_TEACHER)))
        parts = (self._decode(part) for part in tokens.split(self.batch))
        self.reference = Seen(self.classifier, parts, self.labels)
        other = torch.cat(self._parts(drawn(_OTHER)))
        self._tokens("teacher", other)
        self._time("teacher", lambda y, i: self._decode(drawn(_OTHER)(y, i)))
        shuffled = shuffle_within_class(other.cpu(), self.labels.cpu(), seed=seed).to(self.device)
        self._tokens("set_prediction", shuffled)

    def generated(
        self,
        name: str,
        generator: Student,
        teacher: Teacher,
        seed: int,
        teacher_steps: Sequence[int],
        jacobi: Sequence[int],
        sampling: dict[str, Any],
    ) -> None:
        """The row of a generator, and of the teacher's steps and passes after ``one_step``."""
        book = self.tokenizer.codebook

        def noise(index: Tensor) -> Tensor:
            shape = (generator.num_tokens, book.shape[1])
            return image_normal(seed, index, shape, stream=_NOISE_STREAM).to(book.dtype)

        def draw(labels: Tensor, index: Tensor) -> Tensor:
            return generator(noise(index), labels)

        made = self._parts(draw)
        images = (self.tokenizer.decode(part) for part in made)
        tokens = torch.cat([nearest_code(part, book) for part in made])
        self._judge(name, Seen(self.classifier, images, self.labels), tokens, self.labels)
        self._time(name, lambda y, i: self.tokenizer.decode(draw(y, i)))
        if name != "one_step":
            return
        for steps in teacher_steps:
            if not 1 < steps <= len(teacher.steps) + 1:
                continue
            kept = teacher.steps[1 - steps].start

            def refine(labels: Tensor, index: Tensor, prefix: Tensor) -> Tensor:
                return draw_tokens(
                    teacher,
                    labels,
                    index=index,
                    seed=seed + _REFINED,
                    prefix=prefix,
                    **sampling,
                )

            pieces = iter(tokens[:, :kept].split(self.batch))
            refined = self._parts(lambda y, i, p=pieces: refine(y, i, next(p)))  # type: ignore[misc]
            self._tokens(f"{name}_{steps}", torch.cat(refined))
            self._time(
                f"{name}_{steps}",
                lambda y, i, k=kept: self._decode(  # type: ignore[misc]
                    refine(y, i, nearest_code(draw(y, i), book)[:, :k])
                ),
            )

        for count in jacobi:

            def passed(labels: Tensor, index: Tensor, passes: int = count) -> Tensor:
                found, eps = nearest_code(draw(labels, index), book), noise(index)
                score = TeacherScore(teacher, **sampling)
                for _ in range(passes):
                    found = score(found, labels).flow(eps)
                return found

            self._tokens(f"{name}_jacobi_{count}", torch.cat(self._parts(passed)))
            self._time(f"{name}_jacobi_{count}", lambda y, i, p=passed: self._decode(p(y, i)))  # type: ignore[misc]

    def _tokens(self, name: str, tokens: Tensor) -> None:
        parts = (self._decode(part) for part in tokens.split(self.batch))
        self._judge(name, Seen(self.classifier, parts, self.labels), tokens, self.labels)

    def _judge(self, name: str, seen: Seen, tokens: Tensor, labels: Tensor) -> None:
        row = self.rows[name] = seen.distances(self.real, ("fd", "fd_class", "fd_pixel"))
        if seen.features is not None:
            row["accuracy"] = seen.accuracy()
            assert self.real.features is not None
            if min(len(seen.features), len(self.real.features)) > self.neighbours:
                row["precision"], row["recall"] = precision_recall(
                    self.real.features, seen.features, neighbours=self.neighbours
                )
        if self.reference is not None:
            names = ("to_teacher", "to_teacher_class", "to_teacher_pixel")
            row.update(seen.distances(self.reference, names))
        if self.teacher is not None:
            row["nll"] = negative_log_likelihood(
                self.teacher, tokens, labels.to(self.device), batch_size=self.batch
            )

    def _time(self, name: str, make: Make) -> None:
        """The median time of one image alone."""
        label, index = self.labels[:1], torch.zeros(1, dtype=torch.int64, device=self.device)
        seconds = []
        for _ in range(_RUNS + 2):
            began = time.perf_counter()
            make(label, index)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        self.rows[name]["ms"] = 1000 * statistics.median(seconds[2:])
