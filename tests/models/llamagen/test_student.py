"""DD1's students: what each step reads and keeps, sampling end to end, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import llamagen_models as parity
from parity.llamagen_models import SIZES, relative

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.models.llamagen import DD1LlamaGenStudent, LlamaGenTokenizer


@pytest.fixture
def student() -> DD1LlamaGenStudent:
    return parity.make_student(codebook=False).requires_grad_(False)


@pytest.fixture
def sampler_model(student) -> DD1LlamaGenStudent:
    student.tokenizer = parity.make_tokenizer().requires_grad_(False)
    return student


def resplit(student: DD1LlamaGenStudent, split: int, second: int | None) -> DD1LlamaGenStudent:
    other = DD1LlamaGenStudent(
        **SIZES, split=split, second_step=second, codebook=torch.randn(64, 8)
    )
    other.load_state_dict(student.state_dict())
    return other.requires_grad_(False)


@pytest.mark.parametrize(("split", "second"), [(0, 0), (6, 3), (6, 10), (16, 16), (6, None)])
def test_second_step_keeps_the_first_tokens_and_reads_them_as_done(student, split, second):
    model = resplit(student, split, second)
    start = split if second is None else second
    noise, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    once, twice = model(noise, labels), model(noise, labels, steps=2)
    assert torch.equal(twice[:, :start], once[:, :start])
    nearest = torch.cdist(twice.double(), model.codebook.double()).amin(-1)
    assert (nearest[:, :split] < 1e-6).all() and (nearest[:, split:] > 1e-3).all()
    changed = noise.clone()
    changed[:, :start] += 1
    model_once = model(changed, labels)
    kept = torch.cat([model_once[:, :start], noise[:, start:]], dim=1)
    again = model._pass(kept, labels, start)
    assert torch.equal(model(changed, labels, steps=2)[:, start:], again)


def test_a_token_reads_its_own_noise_and_that_before_it(student):
    model = resplit(student, 0, 0).double()
    noise = torch.randn(1, 16, 8, dtype=torch.float64).requires_grad_()
    x = model(noise, torch.tensor([1]))
    for i in (0, 5, 15):
        (gradient,) = torch.autograd.grad(x[0, i].sum(), noise, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).tolist() == [j <= i for j in range(16)]


def test_sampling_end_to_end(sampler_model):
    labels = [0, 9, 4, 4, 1]
    images = dd2_fast.sample(sampler_model, labels, seed=2)
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
    torch.testing.assert_close(dd2_fast.sample(sampler_model, labels, seed=2, batch_size=2), images)
    assert not torch.equal(images[2], images[3]), "one label, two images"
    tokens = dd2_fast.sample(sampler_model, labels, seed=2, output="tokens")
    latent = dd2_fast.sample(sampler_model, labels, seed=2, output="latent")
    codebook = sampler_model.codebook
    assert torch.equal(tokens, torch.cdist(latent.double(), codebook.double()).argmin(-1))
    teacher = parity.make_teacher(sampler_model.tokenizer).requires_grad_(False)
    sampler_model.teacher = teacher
    refined = dd2_fast.sample(sampler_model, labels, seed=2, teacher_steps=4, output="tokens")
    assert torch.equal(refined[:, :13], tokens[:, :13])
    assert not torch.equal(refined[:, 13:], tokens[:, 13:])


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.slow
def test_a_step_and_the_decoder_are_one_graph(sampler_model, steps: int):
    def images(noise, labels):
        return sampler_model.tokenizer.decode(sampler_model(noise, labels, steps))

    noise, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    compiled = torch.compile(images, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(noise, labels), images(noise, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(sampler_model, dtype):
    noise, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    model = resplit(sampler_model, 0, 0)
    want = model(noise, labels)
    half = copy.deepcopy(model).to(dtype)
    got = half(noise, labels)
    assert got.dtype == half.codebook.dtype == torch.float32
    assert relative(got, want) < {torch.bfloat16: 3e-2, torch.float16: 3e-3}[dtype]
    images = dd2_fast.sample(sampler_model.to(dtype), [1, 2])
    assert images.isfinite().all()


def test_round_trip_of_our_own_files(tmp_path, sampler_model):
    teacher = parity.make_teacher(sampler_model.tokenizer)
    noise, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    for name, model in (("s", sampler_model), ("t", teacher), ("v", sampler_model.tokenizer)):
        checkpoints.save(tmp_path / f"{name}.safetensors", model)
    again = checkpoints.load(tmp_path / "s.safetensors")
    tokenizer = checkpoints.load(tmp_path / "v.safetensors")
    assert isinstance(tokenizer, LlamaGenTokenizer) and again.config == sampler_model.config
    again.tokenizer = tokenizer
    assert torch.equal(again(noise, labels, 2), sampler_model(noise, labels, 2))
    tokens = torch.randint(64, (2, 16))
    loaded = checkpoints.load(tmp_path / "t.safetensors")
    assert torch.equal(loaded.logits(tokens, labels), teacher.logits(tokens, labels))


def test_attached_tokenizer_is_no_submodule(student):
    names = set(student.state_dict())
    with pytest.raises(ValueError, match="codebook: DD1LlamaGenStudent has none; attach"):
        student(torch.randn(1, 16, 8), torch.tensor([0]))
    student.tokenizer = parity.make_tokenizer()
    assert set(student.state_dict()) == names and student.teacher is None
    student.double()
    assert student.tokenizer.post_quant_conv.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noise": torch.randn(2, 15, 8)}, ValueError, r"noise: expected shape \['B', 16, 8\]"),
        ({"noise": torch.zeros(2, 16, 8).long()}, TypeError, "noise: expected a floating dtype"),
        ({"labels": torch.tensor([0, 11])}, ValueError, "labels: expected values in 0..10"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels: expected shape \[2\], got \[1\]"),
        ({"steps": 3}, ValueError, "steps: expected 1 or 2, got 3"),
        ({"steps": True}, ValueError, "steps: expected 1 or 2, got True"),
        ({"steps": "1"}, ValueError, "steps: expected 1 or 2, got '1'"),
    ],
)
def test_bad_input(sampler_model, change: dict, error, message: str):
    arguments = {"noise": torch.randn(2, 16, 8), "labels": torch.tensor([0, 1])} | change
    with pytest.raises(error, match=message):
        sampler_model(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": 17}, "split: expected 0 to 16 tokens, got 17"),
        ({"second_step": -1}, "second_step: expected 0 to 16 tokens, got -1"),
    ],
)
def test_bad_sizes(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DD1LlamaGenStudent(**{**SIZES, "split": 6, **change})
