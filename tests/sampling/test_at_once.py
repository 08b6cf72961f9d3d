"""The sampler draws small generators by one call of a kernel: the modules' own images."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import ARTeacher, DD2Generator, LogitStudent
from dd2_fast.models.causal.tokenizer import VQTokenizer
from dd2_fast.ops import available_backends, default_backend
from dd2_fast.sampling import Sampler, at_once, resolve_path

LABELS = [3, 1, 4, 1, 5, 9, 2]
pytestmark = pytest.mark.skipif(
    available_backends("cpu")["cpu"] is not None, reason="no compiled kernels"
)


@pytest.fixture
def digits() -> Any:
    return load_bundle(resolve_path("digits"))


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a module was called")

    monkeypatch.setattr(DD2Generator, "forward", refuse)
    monkeypatch.setattr(LogitStudent, "forward", refuse)
    monkeypatch.setattr(ARTeacher, "logits", refuse)
    monkeypatch.setattr(VQTokenizer, "_decoded", refuse)


@pytest.fixture
def student(digits: Any) -> LogitStudent:
    """Some way off its teacher, whose tokens a pass therefore changes."""
    student = LogitStudent.from_teacher(digits.teacher)
    student.teacher, student.tokenizer = digits.teacher, digits.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in student.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.03)
    return student.eval()


def by_modules(sampler: Sampler, *arguments: Any, **settings: Any) -> Any:
    with default_backend("torch"):
        return sampler(*arguments, **settings)


def tensor(result: Any) -> Tensor:
    return torch.stack([torch.as_tensor(each) for each in result]).double()


@pytest.mark.parametrize("teacher_steps", [0, 6])
@pytest.mark.parametrize("output", ["pt", "np", "latent", "tokens"])
def test_the_modules_own_images(digits: Any, output: str, teacher_steps: int) -> None:
    sampler = Sampler(digits, teacher_steps=teacher_steps, batch_size=3)
    for start in (0, 17):
        settings: dict[str, Any] = {"seed": 5, "start_index": start, "output": output}
        found = sampler(LABELS, **settings)
        wanted = by_modules(sampler, LABELS, **settings)
        assert type(found) is type(wanted) and found.dtype == wanted.dtype
        # The last digit of a token may move a pixel by one level of 255.
        allowed = {"np": 1.0, "tokens": 0.0}.get(output, 1e-5)
        assert (tensor(found) - tensor(wanted)).abs().max() <= allowed


def test_errors_stay_in_a_counted_budget(digits: Any) -> None:
    """Against float64: some 40 roundings a layer in 20 layers, of values up to 4."""
    sampler = Sampler(digits)
    exact = copy.deepcopy(sampler).double()
    with default_backend("torch"):
        latents, images = (exact(LABELS * 20, output=o) for o in ("latent", "pt"))
    assert (sampler(LABELS * 20, output="latent") - latents).abs().max() < 2e-5
    assert (sampler(LABELS * 20) - images).abs().max() < 6e-6


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_module_is_called(digits: Any, no_modules: None, batch_size: int | None) -> None:
    sampler = Sampler(digits, batch_size=batch_size)
    for output in ("pt", "np", "pil", "latent"):
        assert len(sampler(LABELS, output=output)) == len(LABELS)
    assert len(sampler([])) == 0 and sampler([]).shape == (0, 3, 8, 8)
    assert len(Sampler(digits, teacher_steps=3)(LABELS)) == len(LABELS)


def test_changed_weights_are_seen(digits: Any) -> None:
    sampler = Sampler(digits)
    before = sampler(LABELS)
    for network in (digits.generator.head, digits.tokenizer.decoder):
        with torch.no_grad():
            last = list(network.parameters())[-1]
            last += 0.25
        after = sampler(LABELS)
        assert not torch.equal(after, before)
        assert (after - by_modules(sampler, LABELS)).abs().max() < 1e-5
        before = after


def test_converted_networks_take_the_modules(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    for dtype, error in ((torch.float64, 1e-5), (torch.bfloat16, 0.5)):
        sampler.to(dtype)
        assert (sampler(LABELS) - wanted).abs().max() < error
    sampler.generator.float()
    sampler.tokenizer.float()


def test_results_are_ordinary_tensors_under_any_mode(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    with torch.inference_mode():
        found = sampler(LABELS)
    assert not found.is_inference() and torch.equal(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampler(LABELS), wanted)
    assert torch.equal(sampler(LABELS, progress=True), wanted)
    labels = torch.tensor(LABELS).repeat_interleave(2)[::2]
    assert torch.equal(sampler(labels), wanted)


def test_copies_of_a_sampler_have_their_own(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    for again in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        with torch.no_grad():
            again.generator.head.output.bias += 1
        assert not torch.equal(again(LABELS), wanted)
    assert torch.equal(sampler(LABELS), wanted)


def test_what_it_covers(digits: Any) -> None:
    """A subclass, or a network with a forward or decode of its own, is called itself."""

    class Other(DD2Generator):
        pass

    indices, labels = torch.arange(2), torch.tensor([1, 2])

    def drawn(generator: Any, tokenizer: Any) -> Tensor | None:
        return at_once.AtOnce(generator, tokenizer).draw(0, indices, labels, images=True)

    assert drawn(digits.generator, digits.tokenizer) is not None
    other = Other(**digits.generator.config)
    assert drawn(other, digits.tokenizer) is None
    with default_backend("torch"):
        assert drawn(digits.generator, digits.tokenizer) is None
    digits.tokenizer.decode = lambda embeddings: embeddings
    assert drawn(digits.generator, digits.tokenizer) is None


PASSES = {
    "alone": {},
    "pass": {"jacobi": 1},
    "guided": {"jacobi": 3, "cfg": 2.0},
    "filtered": {"jacobi": 2, "top_k": 9, "top_p": 0.9},
}


@pairwise(passes=list(PASSES), output=["pt", "np", "latent", "tokens"], temperature=[1.0, 0.8])
def test_a_students_own_images(
    student: LogitStudent, output: str, passes: str, temperature: float
) -> None:
    sampler = Sampler(student.at_temperature(temperature), batch_size=3, **PASSES[passes])
    for seed in (5, [5, 6, 7, 8, 9, 5, 5]):
        settings: dict[str, Any] = {"seed": seed, "start_index": 17, "output": output}
        found = sampler(LABELS, **settings)
        wanted = by_modules(sampler, LABELS, **settings)
        assert type(found) is type(wanted) and found.dtype == wanted.dtype
        allowed = {"np": 1.0, "tokens": 0.0}.get(output, 1e-5)
        assert (tensor(found) - tensor(wanted)).abs().max() <= allowed


@pytest.mark.parametrize("passes", PASSES)
def test_a_students_images_against_float64(student: LogitStudent, passes: str) -> None:
    """The same codes; the decoder makes pixels of them by some 40 roundings in each of 5 layers."""
    sampler = Sampler(student, **PASSES[passes])
    exact = copy.deepcopy(sampler).double()
    exact.generator.tokenizer = exact.tokenizer
    labels = LABELS * 2
    with default_backend("torch"):
        tokens, images = (exact(labels, output=o) for o in ("tokens", "pt"))
    assert torch.equal(sampler(labels, output="tokens"), tokens) and len(tokens.unique()) > 9
    assert (sampler(labels) - images).abs().max() < 6e-6


def test_a_student_is_one_call(student: LogitStudent, no_modules: None) -> None:
    for passes in PASSES.values():
        sampler = Sampler(student, batch_size=2, **passes)
        for output in ("pt", "np", "latent", "tokens"):
            assert len(sampler(LABELS, output=output)) == len(LABELS)
    assert len(Sampler(student, teacher_steps=3)(LABELS)) == len(LABELS)


@pytest.mark.parametrize("output", ["pt", "np", "latent", "tokens"])
@pytest.mark.parametrize("passes", list(PASSES)[1:])
def test_passes_after_a_generator(
    digits: Any, monkeypatch: pytest.MonkeyPatch, output: str, passes: str
) -> None:
    sampler = Sampler(digits, batch_size=4, **PASSES[passes])
    for seed in (5, [5, 6, 7, 8, 9, 5, 5]):
        wanted = tensor(by_modules(sampler, LABELS, output=output, seed=seed))
        with monkeypatch.context() as patched:
            for kind, name in ((DD2Generator, "forward"), (ARTeacher, "logits")):
                patched.setattr(kind, name, lambda *arguments: pytest.fail("a module was called"))
            found = tensor(sampler(LABELS, output=output, seed=seed))
        allowed = {"np": 1.0, "tokens": 0.0}.get(output, 1e-5)
        assert (found - wanted).abs().max() <= allowed
    digits.teacher.backbone.register_forward_hook(lambda *arguments: None)
    assert (tensor(sampler(LABELS, output=output, seed=seed)) - wanted).abs().max() <= allowed


def test_a_students_changes_are_seen(student: LogitStudent) -> None:
    sampler = Sampler(student, jacobi=1)
    changes = [
        lambda: student.head.bias.data.add_(torch.linspace(1, 4, 64)),
        lambda: student.teacher.classifier.bias.data.add_(torch.linspace(3, 0, 64)),
        lambda: student.tokenizer.decoder[-1].bias.data.add_(0.5),
        lambda: setattr(student, "temperature", 0.3),
        lambda: setattr(student, "flow_steps", 2),
        lambda: student.tokenizer.codebook.mul_(1.5),
    ]
    before = sampler(LABELS)
    seen = 0
    for change in changes:
        change()
        after = sampler(LABELS)
        assert (after - by_modules(sampler, LABELS)).abs().max() < 1e-5
        seen += not torch.equal(after, before)
        before = after
    assert seen >= 4  # a pass may end in the same codes


def test_what_of_a_student_is_not_covered(student: LogitStudent) -> None:
    """Codes of the teacher's other than the tokenizer's, a hook, a classifier without a bias: the
    modules' own images."""
    settings = {"passes": 1, "cfg": None, "top_k": 0, "top_p": 1.0}
    indices, labels = torch.arange(2), torch.tensor([1, 2])

    def drawn(model: LogitStudent) -> Tensor | None:
        made = at_once.at_once(model, model.tokenizer, model.teacher, **settings)
        return made.finished(0, indices, labels, "pt")

    assert drawn(student) is not None
    student.teacher.codebook.add_(1)
    assert drawn(student) is None
    student.teacher.codebook.sub_(1)
    handle = student.backbone.register_forward_hook(lambda *arguments: None)
    assert drawn(student) is None
    handle.remove()
    plain = LogitStudent(**{**student.config, "bias": False})
    plain.teacher, plain.tokenizer = student.teacher, student.tokenizer
    assert drawn(plain.eval()) is None
    assert len(Sampler(plain, jacobi=1)(LABELS)) == len(LABELS)


@pytest.mark.parametrize("passes", [0, 1])
def test_a_students_faults_are_told(student: LogitStudent, passes: int) -> None:
    sampler = Sampler(student, jacobi=passes)
    student.backbone.class_embedding.weight.data[4] = torch.nan
    for output in ("pt", "tokens", "latent"):
        with pytest.raises(FloatingPointError, match=r"image 2 .*label 4"):
            sampler(LABELS, output=output)
