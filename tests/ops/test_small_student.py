"""A small student, its teacher's passes and its decoder in one call: the codes of its modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import runnable_backends
from pairwise import pairwise
from torch import Tensor

from dd2_fast.losses import TeacherScore
from dd2_fast.models import ARTeacher, LogitStudent, VQTokenizer
from dd2_fast.models.small import packed_decoder, packed_student, packed_teacher
from dd2_fast.ops import default_backend
from dd2_fast.ops.small_network import TeacherSizes
from dd2_fast.ops.small_student import small_student

BACKENDS = pytest.mark.parametrize("backend", runnable_backends(("cpu", "torch")))
# tokens, vocabulary, dim, width, heads, layers, decoder's width, each with what it covers
REGIMES = {
    "one_token": (1, 2, 1, 16, 1, 1, 16),
    "digits": (16, 64, 8, 64, 4, 3, 48),
    "ragged": (25, 37, 3, 48, 3, 2, 32),  # a second panel of tokens, a vocabulary of no panel
    "large_vocabulary": (9, 1000, 5, 32, 2, 1, 16),
}
CLASSES = 5


class Networks:
    """A student, a teacher and their tokenizer, of weights that tell tokens apart."""

    def __init__(self, regime: str) -> None:
        tokens, vocabulary, dim, width, heads, layers, channels = REGIMES[regime]
        with torch.random.fork_rng():
            torch.manual_seed(len(regime))
            self.tokenizer = VQTokenizer(
                image_size=2 * int(tokens**0.5), vocabulary=vocabulary, dimension=dim,
                width=channels,
            )  # fmt: skip
            self.tokenizer.codebook.normal_()
            self.teacher = ARTeacher(
                num_tokens=tokens, vocabulary=vocabulary, dimension=dim, num_classes=CLASSES,
                width=width, layers=layers, heads=heads, codebook=self.tokenizer.codebook,
            )  # fmt: skip
            self.student = LogitStudent.from_teacher(self.teacher, flow_steps=7, temperature=0.8)
            self.student.tokenizer = self.tokenizer
            for network in (self.teacher, self.student):
                for parameter in network.parameters():
                    torch.nn.init.normal_(parameter, std=0.2)
                network.eval().requires_grad_(False)

    def double(self) -> Networks:
        for network in (self.tokenizer, self.teacher, self.student):
            network.double()
        return self

    def call(self, noise: Tensor, labels: Tensor, backend: str, **changes: Any) -> Any:
        packed = packed_student(self.student), packed_teacher(self.teacher)
        decoder = packed_decoder(self.tokenizer)
        assert packed[0] is not None and packed[1] is not None and decoder is not None
        arguments: dict[str, Any] = {
            "codebook": self.tokenizer.codebook, "backend": backend, "flow_steps": 7,
            "student": packed[0].weights, "student_sizes": packed[0].sizes, "temperature": 0.8,
            "teacher": packed[1].weights, "teacher_sizes": packed[1].sizes,
            "decoder": decoder.weights, "decoder_width": decoder.sizes.decoder_width,
        }  # fmt: skip
        return small_student(noise, labels, **{**arguments, **changes})

    @torch.no_grad()
    def by_modules(
        self, noise: Tensor, labels: Tensor, passes: int, scale: float, top_k: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        score = TeacherScore(self.teacher, cfg=scale, top_k=top_k, top_p=top_p)
        with default_backend("torch"):
            tokens = self.student.tokens(noise, self.student(noise, labels, logits=True))
            for _ in range(passes):
                tokens = score(tokens, labels).flow(noise, 7)
            return tokens, self.tokenizer.decode(self.tokenizer.codebook[tokens])


def inputs(regime: str, count: int = 7) -> tuple[Tensor, Tensor]:
    tokens, _, dim, *_ = REGIMES[regime]
    rng = torch.Generator().manual_seed(4)
    return torch.randn(count, tokens, dim, generator=rng), torch.arange(count) % CLASSES


@pairwise(
    backend=runnable_backends(("cpu", "torch")),
    regime=list(REGIMES),
    passes=[0, 1, 3],
    scale=[1.0, 1.5],
    top_k=[0, 7],
    top_p=[1.0, 0.8],
)
def test_the_modules_own_codes(
    backend: str, regime: str, passes: int, scale: float, top_k: int, top_p: float
) -> None:
    """Those of float64 modules, but for flows that pass within rounding of two codes' boundary, of
    which there are none; pixels by some 40 roundings in each of 5 layers."""
    noise, labels = inputs(regime)
    found, images = Networks(regime).call(
        noise, labels, backend, passes=passes, guidance_scale=scale, top_k=top_k, top_p=top_p
    )
    exact = Networks(regime).double()
    wanted, pixels = exact.by_modules(noise.double(), labels, passes, scale, top_k, top_p)
    assert torch.equal(found, wanted) and len(found.unique()) > 1
    assert (images - pixels).abs().max() < 6e-6


@BACKENDS
def test_a_pass_from_given_tokens(backend: str) -> None:
    """As many as there are steps end in the same codes, wherever they start."""
    networks, (noise, labels) = Networks("ragged"), inputs("ragged")
    after, _ = networks.call(noise, labels, backend, passes=25, guidance_scale=1.5)
    for start in (torch.zeros_like(after), torch.arange(25).expand_as(after)):
        given = {"tokens": start, "student": None, "decoder": None, "guidance_scale": 1.5}
        found, images = networks.call(noise, labels, backend, passes=25, **given)
        assert torch.equal(found, after) and images.shape == (7, 3, 0, 0)
        one, _ = networks.call(noise, labels, backend, passes=1, **given)
        assert torch.equal(one[:, 0], after[:, 0]) and not torch.equal(one, after)
        none, _ = networks.call(noise, labels, backend, passes=0, **given)
        assert torch.equal(none, start)


@BACKENDS
def test_an_image_depends_on_no_batch(backend: str) -> None:
    networks, (noise, labels) = Networks("digits"), inputs("digits", 9)
    whole = networks.call(noise, labels, backend, passes=2)
    parts = networks.call(noise[5:8], labels[5:8], backend, passes=2)
    assert torch.equal(parts[0], whole[0][5:8])
    torch.testing.assert_close(parts[1], whole[1][5:8], atol=1e-6, rtol=0)
    empty = networks.call(noise[:0], labels[:0], backend, passes=2)
    assert empty[0].shape == (0, 16) and empty[1].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("backend", runnable_backends(("cpu",)))
def test_threads_change_nothing(backend: str) -> None:
    networks, (noise, labels) = Networks("ragged"), inputs("ragged", 11)
    threads = torch.get_num_threads()
    wanted = networks.call(noise, labels, backend, passes=1)
    torch.set_num_threads(3)
    try:
        found = networks.call(noise, labels, backend, passes=1)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, found, wanted))


@BACKENDS
@pytest.mark.parametrize("passes", [0, 2])
def test_what_is_not_finite_is_no_code(backend: str, passes: int) -> None:
    """A token whose noise is not is none, nor is any after it; passes leave such images."""
    networks, (noise, labels) = Networks("digits"), inputs("digits")
    noise[1, 3, 0] = torch.nan
    networks.student.backbone.class_embedding.weight[2] = torch.inf
    found, images = networks.call(noise, labels, backend, passes=passes)
    bad = torch.tensor([i == 1 or label == 2 for i, label in enumerate(labels.tolist())])
    assert (found[1, 3:] == -1).all()
    assert (found[labels == 2] == -1).all() and (found[~bad] >= 0).all()
    assert images[bad].isnan().any((1, 2, 3)).all() and images[~bad].isfinite().all()


@BACKENDS
def test_a_teacher_that_is_not_finite_gives_no_code(backend: str) -> None:
    networks, (noise, labels) = Networks("digits"), inputs("digits")
    networks.teacher.classifier.bias[5] = torch.nan
    found, images = networks.call(noise, labels, backend, passes=2)
    assert (found == -1).all() and images.isnan().all()


@BACKENDS
def test_opcheck(backend: str) -> None:
    networks, (noise, labels) = Networks("one_token"), inputs("one_token")
    student, teacher = packed_student(networks.student), packed_teacher(networks.teacher)
    decoder = packed_decoder(networks.tokenizer)
    assert student is not None and teacher is not None and decoder is not None
    torch.library.opcheck(
        torch.ops.dd2_fast.small_student.default,
        (noise, labels, None, student.weights, list(student.sizes), teacher.weights,
         list(teacher.sizes), networks.tokenizer.codebook, decoder.weights.detach(), 16, 1.0, 4, 1,
         1.5, 0, 1.0, backend),
    )  # fmt: skip


BAD = {
    "noise": ({"noise": torch.zeros(7, 65, 8)}, ValueError, "noise: .*64.*65"),
    "labels": ({"labels": torch.zeros(2).long()}, ValueError, r"labels: .*\[7\].*\[2\]"),
    "codebook": ({"codebook": torch.zeros(64, 7)}, ValueError, r"codebook: .*8\], got \[64, 7\]"),
    "dtype": ({"codebook": torch.zeros(64, 8).double()}, TypeError, "codebook: .*float64"),
    "tokens": ({"tokens": torch.zeros(7, 16).long()}, ValueError, "tokens: expected either"),
    "student": ({"student": torch.zeros(4)}, ValueError, r"student: .*got \[4\]"),
    "sizes": (
        {"teacher_sizes": TeacherSizes(6, 64, 3, 8)},
        ValueError,
        "teacher_sizes: .*64 for 8 heads",
    ),
    "no sizes": ({"student_sizes": None}, ValueError, "student_sizes: .*got None"),
    "passes": ({"passes": -1}, ValueError, "passes: expected at least 0, got -1"),
    "no teacher": ({"teacher": None, "passes": 1}, ValueError, "passes: .* without a teacher"),
    "flow_steps": ({"flow_steps": 0}, ValueError, "flow_steps: "),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature: expected a positive"),
    "decoder_width": ({"decoder_width": 40}, ValueError, "decoder_width: .*16.*40"),
    "decoder": ({"decoder": torch.zeros(4)}, ValueError, r"decoder: .*got \[4\]"),
    "top_p": ({"top_p": 0.0}, ValueError, "top_p: "),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    noise, labels = inputs("digits")
    call = {"noise": noise, "labels": labels, "backend": "torch", **change}
    with pytest.raises(error, match=message):
        Networks("digits").call(**call)
