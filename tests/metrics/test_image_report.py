"""The evaluation of networks on images, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dd2_fast.metrics.image_report import COLUMNS, evaluate_images
from dd2_fast.models import VARTeacher, VARTokenizer

SIZES = dict(patch_nums=(1, 2), vocabulary=8, dimension=3)


class Brightness(nn.Module):
    """A classifier that sees two numbers of an image: how bright its halves are."""

    def features(self, images: Tensor) -> Tensor:
        left, right = images.mean(1).chunk(2, dim=-1)
        return torch.stack([left.flatten(1).mean(1), right.flatten(1).mean(1)], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        return features


class Fixed(nn.Module):
    """A generator that makes the same codes whatever the noise."""

    num_tokens = 5

    def __init__(self, book: Tensor, codes: list[int]) -> None:
        super().__init__()
        self.embeddings = book[torch.tensor(codes)]

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        assert noise.shape == (len(labels), 5, 3)
        return self.embeddings.expand(len(labels), -1, -1) + 1e-4


@pytest.fixture
def networks() -> tuple[VARTokenizer, VARTeacher]:
    tokenizer = VARTokenizer(**SIZES, channels=4, multipliers=(1, 2), blocks=1, groups=2)
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher = VARTeacher(**SIZES, num_classes=2, width=16, layers=1, heads=2)
    nn.init.normal_(teacher.head.weight, std=0.5)
    teacher.tokenizer = tokenizer.eval()
    return tokenizer, teacher.eval()


IMAGES = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 2
SETTINGS = dict(samples=40, teacher_steps=(2, 3, 9), batch=16)


@torch.no_grad()
def test_against_sums_by_hand(networks: tuple[VARTokenizer, VARTeacher]) -> None:
    tokenizer, teacher = networks
    codes = [1, 2, 3, 4, 5]
    one = Fixed(tokenizer.codebook, codes)
    told = evaluate_images(
        tokenizer, IMAGES.split(7), LABELS, classifier=Brightness(), teacher=teacher,
        generators={"one_step": one, "stage1": one}, **SETTINGS,
    )  # fmt: skip
    rows = told["rows"]
    assert set(rows) == {
        *("real", "reconstruction", "teacher", "set_prediction", "stage1"),
        *("one_step", "one_step_2", "one_step_3"),  # nine steps there are not
    }
    tokens = tokenizer.encode(IMAGES)
    made = tokenizer.decode(tokenizer.embed(tokens))
    assert told["reconstruction_mse"] == pytest.approx(float((made - IMAGES).square().mean()))
    assert told["codes_used"] == len(set(tokens.flatten().tolist())) / 8
    log_p = teacher.logits(tokens, LABELS).log_softmax(-1)
    by_hand = -float(np.mean([[log_p[i, j, q] for j, q in enumerate(row)]
                              for i, row in enumerate(tokens.tolist())]))  # fmt: skip
    assert told["held_out_nll"] == pytest.approx(by_hand, abs=1e-5)
    seen = Brightness().features(IMAGES)
    right = (seen.argmax(1) == LABELS).double().mean()
    assert rows["real"]["accuracy"] == pytest.approx(float(right))
    # All of the generator's images are one image: no covariance, so the distance is
    # |m - f|^2 + tr S.
    picture = tokenizer.decode(tokenizer.embed(torch.tensor([codes])) + 1e-4)
    f = Brightness().features(picture)[0].double().numpy()
    real = seen.double().numpy()
    expected = ((real.mean(0) - f) ** 2).sum() + np.cov(real.T).trace()
    assert rows["one_step"]["fd"] == pytest.approx(expected, rel=1e-4)
    inside = [
        ((real[c::2].mean(0) - f) ** 2).sum() + np.cov(real[c::2].T).trace() for c in range(2)
    ]
    assert rows["one_step"]["fd_class"] == pytest.approx(np.mean(inside), rel=1e-4)
    assert rows["one_step"]["recall"] == 0 and rows["stage1"]["fd"] == rows["one_step"]["fd"]
    assert all(set(row) == set(COLUMNS) for name, row in rows.items() if name.startswith("one"))
    assert all(row["ms"] > 0 for name, row in rows.items() if name in ("teacher", "one_step"))


def test_the_teacher_is_nearest_to_itself(networks: tuple[VARTokenizer, VARTeacher]) -> None:
    """Another draw of the teacher, and the teacher's steps and as many passes over all tokens, are
    it; a generator of one image is not."""
    tokenizer, teacher = networks
    generators = {"one_step": Fixed(tokenizer.codebook, [0, 0, 0, 0, 0])}
    settings = {**SETTINGS, "samples": 400, "jacobi": (1, len(teacher.steps))}
    told = evaluate_images(
        tokenizer, [IMAGES], LABELS, classifier=Brightness(), teacher=teacher,
        generators=generators, **settings,
    )  # fmt: skip
    rows = told["rows"]
    exact = "one_step_3", f"one_step_jacobi_{len(teacher.steps)}"
    for name in ("to_teacher", "to_teacher_pixel"):
        for row in ("teacher", *exact):
            assert rows[row][name] < 0.2 * rows["one_step"][name]
    for row in exact:
        assert rows[row]["nll"] == pytest.approx(rows["teacher"]["nll"], abs=0.1)
    assert rows["one_step_jacobi_1"]["to_teacher"] < rows["one_step"]["to_teacher"]


def test_a_tokenizer_alone(networks: tuple[VARTokenizer, VARTeacher]) -> None:
    told = evaluate_images(networks[0], [IMAGES], LABELS, **SETTINGS)
    assert set(told["rows"]) == {"reconstruction"} and "held_out_nll" not in told
    assert set(told["rows"]["reconstruction"]) == {"fd_pixel"}
