"""One table that judges a distilled model against its teacher, set prediction and stage 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..ambient import outside_autocast
from ..models.family import Student
from ..ops import nearest_code
from .evaluation_mode import evaluation_mode, submodules
from .frechet import frechet_distance, frechet_distance_per_class
from .likelihood import negative_log_likelihood

ROWS = ("reconstruction", "teacher", "one_step", "set_prediction", "stage1")
COLUMNS = ("accuracy", "fd", "fd_class", "fd_pixel", "nll")
_BATCH = 500


@torch.no_grad()
def evaluate(
    bundle: Any,
    data: Any,
    *,
    num_samples: int = 5000,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Return `COLUMNS` for each of `ROWS`, in the classifier's eyes and the teacher's.

    bundle holds `tokenizer`, `teacher`, `generator`, `stage1` (None leaves its row out) and
    `classifier`; data holds the held-out `test_images` [M, 3, H, W] and `test_labels` [M], which
    are the reference of every Fréchet distance, and whose labels, repeated, are the labels drawn.

    * accuracy: share of samples that the classifier gives the label they were drawn with;
    * fd, fd_pixel: Fréchet distance of classifier features, of pixels averaged over the channels;
    * fd_class: mean over the classes of the Fréchet distance of features inside the class;
    * nll: mean negative log-likelihood of a token under the teacher, in nats.

    `reconstruction` is the held-out images through the tokenizer. `set_prediction` shuffles the
    tokens of a second teacher draw at every position inside each class: exact independent draws
    from the teacher's empirical marginals. sampling gives keyword arguments of `teacher.sample`;
    None takes `teacher_sampling(bundle)`. Raises ValueError for fewer than 2 samples a class.
    """
    options = dict(teacher_sampling(bundle) if sampling is None else sampling)
    with outside_autocast(data.test_images.device):
        references = _Reference(bundle, data)
    if num_samples < 2 * references.num_classes:
        raise ValueError(
            f"num_samples: expected at least {2 * references.num_classes}, got {num_samples}"
        )
    labels = references.labels.repeat(-(-num_samples // references.labels.shape[0]))[:num_samples]
    models = (bundle.tokenizer, bundle.teacher, bundle.generator, bundle.stage1)
    with evaluation_mode(submodules(*models)), outside_autocast(labels.device):
        real = [bundle.tokenizer.encode(part) for part in references.images.split(_BATCH)]
        rows = {"reconstruction": references.judge_tokens(torch.cat(real), references.labels)}
        draws = [
            torch.cat(
                [
                    bundle.teacher.sample(part, seed=_seed(seed, draw, i), **options)
                    for i, part in enumerate(labels.split(_BATCH))
                ]
            )
            for draw in (0, 1)
        ]
        rows["teacher"] = references.judge_tokens(draws[0], labels)
        rows["one_step"] = references.judge_generator(bundle.generator, labels, seed)
        shuffled = shuffle_within_class(draws[1], labels, seed=seed)
        rows["set_prediction"] = references.judge_tokens(shuffled, labels)
        if bundle.stage1 is not None:
            rows["stage1"] = references.judge_generator(bundle.stage1, labels, seed)
    return rows


def teacher_sampling(bundle: Any) -> dict[str, Any]:
    """Return the cfg, top_k and top_p that the bundle was distilled with, where it says so."""
    score = (bundle.settings or {}).get("settings", {}).get("score", {})
    return {name: score[name] for name in ("cfg", "top_k", "top_p") if name in score}


def shuffle_within_class(tokens: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Return tokens [N, n] with every position permuted on its own among rows of equal label [N].

    What is left of the joint distribution are its marginals a class and a position, exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = tokens.clone()
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        shape = rows.shape[0], tokens.shape[1]
        options: dict[str, Any] = dict(generator=generator, dtype=torch.float32, device="cpu")
        order = torch.rand(shape, **options).argsort(0)
        shuffled[rows] = tokens[rows].gather(0, order.to(tokens.device))
    return shuffled


class _Reference:
    """The held-out images with the features that samples are compared with."""

    def __init__(self, bundle: Any, data: Any) -> None:
        self.bundle = bundle
        self.images = data.test_images
        self.labels = data.test_labels
        self.num_classes = int(self.labels.unique().numel())
        self.features, _ = self._describe(self.images)
        self.pixels = self.images.mean(1).flatten(1)

    def judge_tokens(self, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the metrics of tokens [N, n] drawn with labels [N]."""
        embed, decode = self.bundle.tokenizer.embed, self.bundle.tokenizer.decode
        images = torch.cat([decode(embed(part)) for part in tokens.split(_BATCH)])
        return self._judge(images, tokens, labels)

    def judge_generator(self, generator: Student, labels: Tensor, seed: int) -> dict[str, float]:
        """Return the metrics of a one-step generator's images, from one pass each."""
        codebook = self.bundle.tokenizer.codebook
        noise = torch.randn(
            (labels.shape[0], self.bundle.teacher.num_tokens, codebook.shape[1]),
            generator=torch.Generator().manual_seed(_seed(seed, 2, 0)),
            dtype=torch.float32,
            device="cpu",
        ).to(codebook)
        parts = zip(noise.split(_BATCH), labels.split(_BATCH), strict=True)
        x = torch.cat([generator(part, label) for part, label in parts])
        images = torch.cat([self.bundle.tokenizer.decode(part) for part in x.split(_BATCH)])
        return self._judge(images, nearest_code(x, codebook), labels)

    def _judge(self, images: Tensor, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        features, predicted = self._describe(images)
        pixels = images.mean(1).flatten(1)
        return {
            "accuracy": float((predicted == labels).double().mean()),
            "fd": frechet_distance(features, self.features),
            "fd_class": frechet_distance_per_class(features, labels, self.features, self.labels),
            "fd_pixel": frechet_distance(pixels, self.pixels),
            "nll": negative_log_likelihood(self.bundle.teacher, tokens, labels),
        }

    def _describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and predicted classes [N] of images [N, 3, H, W]."""
        classifier = self.bundle.classifier
        with evaluation_mode(submodules(classifier)):
            features = torch.cat([classifier.features(part) for part in images.split(_BATCH)])
            predicted = torch.cat([classifier(part).argmax(1) for part in images.split(_BATCH)])
        return features, predicted


def _seed(seed: int, stream: int, part: int) -> int:
    """Return a seed of its own for every stream of numbers and every part of the job."""
    return ((seed * 1_000_003 + stream) * 1_000_003 + part) % (1 << 63)
