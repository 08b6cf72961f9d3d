"""All steps of a small teacher in one call: the codes that its own steps draw."""

from __future__ import annotations

import pytest
import torch
from ops.cases import runnable_backends
from pairwise import pairwise
from torch import Tensor

from dd2_fast.models import ARTeacher
from dd2_fast.models.sampling import draw_tokens, step_seed
from dd2_fast.models.small import packed_teacher
from dd2_fast.ops import available_backends, default_backend
from dd2_fast.ops.small_network import TeacherSizes
from dd2_fast.ops.small_teacher import small_teacher

BACKENDS = pytest.mark.parametrize("backend", runnable_backends(("cpu", "torch")))
# tokens, vocabulary, dim, width, heads, layers, each with what it covers
REGIMES = {
    "one_token": (1, 2, 1, 16, 1, 1),
    "digits": (16, 64, 8, 64, 4, 3),
    "ragged": (19, 37, 3, 48, 3, 2),  # a second panel of tokens, a vocabulary of no panel
    "large_vocabulary": (5, 1000, 5, 32, 2, 1),  # several blocks of a draw
}
CLASSES = 5


def make(regime: str) -> ARTeacher:
    tokens, vocabulary, dim, width, heads, layers = REGIMES[regime]
    with torch.random.fork_rng():
        torch.manual_seed(len(regime))
        teacher = ARTeacher(
            num_tokens=tokens, vocabulary=vocabulary, dimension=dim, num_classes=CLASSES,
            width=width, layers=layers, heads=heads, codebook=torch.randn(vocabulary, dim),
        )  # fmt: skip
        for parameter in teacher.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return teacher.eval()


def call(teacher: ARTeacher, labels: Tensor, backend: str, seed: int = 3, **settings) -> Tensor:
    packed, tokens = packed_teacher(teacher), teacher.num_tokens
    assert packed is not None
    prefix = settings.pop("prefix", None)
    start = labels.new_full((len(labels), tokens), -5)
    first = 0 if prefix is None else prefix.shape[1]
    if prefix is not None:
        start[:, :first] = prefix
    index = settings.pop("index", torch.arange(len(labels)))
    seeds = settings.pop("seeds", torch.tensor([step_seed(seed, i) for i in range(tokens)]))
    return small_teacher(
        start, labels, index, seeds, packed.weights, teacher.codebook, packed.sizes,
        prefix=first, backend=backend, **settings,
    )  # fmt: skip


def by_steps(teacher: ARTeacher, labels: Tensor, seed: int = 3, **settings) -> Tensor:
    """The teacher's own steps, module by module."""
    scale = settings.pop("guidance_scale", 1.0)
    with default_backend("torch"):
        return draw_tokens(teacher, labels, cfg=scale, seed=seed, **settings)


@pairwise(
    backend=runnable_backends(("cpu", "torch")),
    regime=list(REGIMES),
    scale=[1.0, 1.5],
    top_k=[0, 7],
    top_p=[1.0, 0.8],
)
def test_the_teachers_own_codes(
    backend: str, regime: str, scale: float, top_k: int, top_p: float
) -> None:
    """All but draws that fall within rounding of two codes' boundary, of which there are none."""
    teacher = make(regime)
    labels = torch.arange(20) % CLASSES
    settings = {"guidance_scale": scale, "top_k": top_k, "top_p": top_p}
    found = call(teacher, labels, backend, **settings)
    assert torch.equal(found, by_steps(teacher, labels, **settings))
    assert len(found.unique()) > 1


@BACKENDS
def test_prefix_index_and_batches(backend: str) -> None:
    teacher, labels = make("ragged"), torch.tensor([1, 0, 4, 4, 2, 3, 1, 0, 2])
    index = torch.tensor([7, 2, 2**35, 0, 1, 9, 4, 6, 3])
    prefix = torch.arange(9 * 4).view(9, 4) % 37
    settings = {"index": index, "prefix": prefix, "guidance_scale": 1.3}
    found = call(teacher, labels, backend, **settings)
    assert torch.equal(found[:, :4], prefix)
    assert torch.equal(found, by_steps(teacher, labels, **settings))
    part = {**settings, "index": index[5:7], "prefix": prefix[5:7]}
    assert torch.equal(call(teacher, labels[5:7], backend, **part), found[5:7])
    whole = torch.cat([prefix, found[:, 4:]], 1)
    assert torch.equal(call(teacher, labels, backend, prefix=whole, index=index), whole)
    assert call(teacher, labels[:0], backend).shape == (0, 19)


@BACKENDS
def test_images_with_seeds_of_their_own(backend: str) -> None:
    teacher, labels = make("ragged"), torch.tensor([1, 0, 4, 4, 2, 3, 1, 0, 2])
    own = [5, 5, -1, 2**63 - 1, -(2**63), 0, 1, 2**40, 2]
    seeds = torch.stack([step_seed(torch.tensor(own), i) for i in range(19)], 1)
    found = call(teacher, labels, backend, seeds=seeds, guidance_scale=1.3)
    for i, seed in enumerate(own):
        alone = {"index": torch.tensor([i]), "guidance_scale": 1.3}
        assert torch.equal(call(teacher, labels[i : i + 1], backend, seed, **alone)[0], found[i])


@pytest.mark.parametrize("backend", runnable_backends(("cpu",)))
def test_threads_change_nothing(backend: str) -> None:
    teacher, threads = make("ragged"), torch.get_num_threads()
    labels = torch.arange(17) % CLASSES
    wanted = call(teacher, labels, backend, guidance_scale=2.0)
    torch.set_num_threads(3)
    try:
        assert torch.equal(call(teacher, labels, backend, guidance_scale=2.0), wanted)
    finally:
        torch.set_num_threads(threads)


@BACKENDS
def test_codes_end_where_logits_are_not_finite(backend: str) -> None:
    teacher = make("digits")
    with torch.no_grad():
        teacher.backbone.class_embedding.weight[2] = torch.nan
        teacher.backbone.positions[3] = torch.inf
    found = call(teacher, torch.tensor([0, 2, 1]), backend)
    assert (found[::2, :3] >= 0).all() and (found[::2, 3:] == -1).all() and (found[1] == -1).all()


@pytest.mark.skipif(available_backends("cpu")["cpu"] is not None, reason="no compiled kernels")
def test_a_draw_of_the_teacher_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """And names the image, the label and the token where it fails."""
    monkeypatch.setattr(ARTeacher, "generate", lambda *a, **k: pytest.fail("step by step"))
    teacher = make("digits")
    teacher.sample(torch.tensor([1, 2]), cfg=2.0)
    with torch.no_grad():
        teacher.backbone.positions[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"token 3 of image 0 \(label 1\)"):
        teacher.sample(torch.tensor([1, 2]))


@BACKENDS
def test_opcheck(backend: str) -> None:
    teacher = make("one_token")
    packed = packed_teacher(teacher)
    assert packed is not None
    torch.library.opcheck(
        torch.ops.dd2_fast.small_teacher.default,
        (torch.zeros(2, 1).long(), torch.zeros(2).long(), torch.arange(2), torch.zeros(1).long(),
         packed.weights.detach(), teacher.codebook, list(packed.sizes), 0, 1.5, 0, 1.0, backend),
    )  # fmt: skip


BAD = {
    "tokens": ({"tokens": torch.zeros(3, 65).long()}, ValueError, "tokens: .*64.*65"),
    "index": ({"index": torch.zeros(2).long()}, ValueError, r"index: .*\[3\].*\[2\]"),
    "seeds": ({"seeds": torch.zeros(1).long()}, ValueError, r"seeds: .*\[16\].*\[1\]"),
    "weights": ({"weights": torch.zeros(4)}, ValueError, r"weights: .*got \[4\]"),
    "codebook": ({"codebook": torch.zeros(64, 8).double()}, TypeError, "codebook: .*float64"),
    "sizes": ({"sizes": TeacherSizes(6, 64, 3, 8)}, ValueError, "sizes: .*64 for 8 heads"),
    "prefix": ({"prefix": 17}, ValueError, "prefix: expected 0..16, got 17"),
    "top_p": ({"top_p": 0.0}, ValueError, "top_p: "),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    teacher = make("digits")
    packed = packed_teacher(teacher)
    assert packed is not None
    call = {
        "tokens": torch.zeros(3, 16).long(), "labels": torch.zeros(3).long(),
        "index": torch.arange(3), "seeds": torch.zeros(16).long(), "weights": packed.weights,
        "codebook": teacher.codebook, "sizes": packed.sizes,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        small_teacher(**{**call, **change})
