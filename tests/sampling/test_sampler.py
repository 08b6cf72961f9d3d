"""The sampler: invariance, outputs, traces left behind, and refused arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dd2_fast
from dd2_fast.checkpoints import load_bundle
from dd2_fast.sampling import Sampler, bundled_names, sample
from dd2_fast.sampling.noise import image_noise

LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def test_images_are_the_generator_decoded(generator) -> None:
    noise = image_noise(8, torch.arange(len(LABELS)), (16, 4))
    x = generator(noise, torch.tensor(LABELS))
    torch.testing.assert_close(sample(generator, LABELS, seed=8, output="latent"), x)
    images = generator.tokenizer.decode(x)
    torch.testing.assert_close(sample(generator, LABELS, seed=8), images, atol=1e-5, rtol=0)
    distance = torch.cdist(x, generator.tokenizer.codebook.expand(len(x), -1, -1))
    assert torch.equal(sample(generator, LABELS, seed=8, output="tokens"), distance.argmin(-1))


@pytest.mark.parametrize("teacher_steps", [0, 6, 17])
@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_batch_size_changes_nothing(generator, batch_size: int, teacher_steps: int) -> None:
    options = {"seed": 2, "teacher_steps": teacher_steps}
    whole = sample(generator, LABELS, output="tokens", **options)
    parts = sample(generator, LABELS, output="tokens", batch_size=batch_size, **options)
    assert torch.equal(parts, whole)
    images = sample(generator, LABELS, batch_size=batch_size, **options)
    torch.testing.assert_close(images, sample(generator, LABELS, **options), atol=1e-5, rtol=0)


def test_a_job_can_be_split_and_reordered(generator) -> None:
    sampler = Sampler(generator, teacher_steps=4)
    whole = sampler(LABELS, seed=1, output="tokens")
    tail = sampler(LABELS[6:], seed=1, start_index=6, output="tokens")
    assert torch.equal(tail, whole[6:])
    order = [10, 0, 7]
    labels = [LABELS[i] for i in order]
    assert torch.equal(sampler(labels, seed=1, indices=order, output="tokens"), whole[order])
    assert not torch.equal(sampler(LABELS, seed=2, output="tokens"), whole)


def test_refined_tokens_are_those_of_the_refined_embeddings(generator) -> None:
    options = {"seed": 2, "teacher_steps": 6}
    latents = sample(generator, LABELS, output="latent", **options)
    codes = generator.tokenizer.codebook[sample(generator, LABELS, output="tokens", **options)]
    assert torch.equal(latents, codes)


def test_labels_may_be_an_int_a_list_or_a_tensor(generator) -> None:
    one = sample(generator, 7)
    assert one.shape == (1, 3, 8, 8)
    assert torch.equal(one, sample(generator, [7]))
    assert torch.equal(one, sample(generator, torch.tensor([7])))
    assert torch.equal(one, sample(generator, np.arange(7, 8).tolist()))
    for kind in (np.int64, np.int32, np.uint8):
        assert torch.equal(one, sample(generator, np.array([7], kind), seed=np.int64(0)))
        assert torch.equal(one, sample(generator, kind(7)))
        assert torch.equal(one, sample(generator, [kind(7)]))
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert torch.equal(one, sample(generator, torch.tensor([7], dtype=dtype)))
    assert torch.equal(one, sample(generator, torch.tensor(7)))


@pytest.mark.parametrize("output", ["pt", "np", "latent", "tokens"])
def test_no_labels_give_an_empty_result(generator, output: str) -> None:
    full, empty = sample(generator, [0], output=output), sample(generator, [], output=output)
    assert tuple(empty.shape) == (0, *full.shape[1:]) and empty.dtype == full.dtype
    assert sample(generator, [], output="pil") == []
    assert len(sample(generator, [], output=output, teacher_steps=3)) == 0


def test_outputs_agree(generator) -> None:
    images = sample(generator, LABELS)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    array = sample(generator, LABELS, output="np")
    assert array.shape == (11, 8, 8, 3) and array.dtype == np.uint8
    assert np.abs(array / 255 - images.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(array, sample(generator, LABELS, output="np", batch_size=4))
    pictures = sample(generator, LABELS, output="pil")
    assert all(np.array_equal(np.asarray(p), a) for p, a in zip(pictures, array, strict=True))
    assert pictures[0].mode == "RGB"


def test_nothing_global_changes(generator) -> None:
    generator.train()
    generator.head.eval()
    state, noise = torch.get_rng_state(), torch.zeros(1, 16, 4, requires_grad=True)
    images = sample(generator, LABELS)
    assert generator.training and generator.backbone.training and not generator.head.training
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert not images.requires_grad
    images.add_(noise.sum())
    assert images.requires_grad, "results must be ordinary tensors"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": [0, 10]}, ValueError, r"labels: expected values in 0\.\.9, got 10"),
        ({"labels": -1}, ValueError, r"labels: expected values in 0\.\.9, got -1"),
        ({"labels": 1.0}, TypeError, "labels: expected an int, a list .* got float"),
        ({"labels": [True]}, TypeError, "labels: expected an integer, got True"),
        ({"labels": "3"}, TypeError, "labels: expected an int, a list .* got str"),
        ({"labels": torch.tensor([1.0])}, TypeError, "labels: expected an int64 .*float32"),
        ({"labels": torch.tensor([True])}, TypeError, "labels: expected an int64 .*torch.bool"),
        ({"labels": torch.tensor([1]).to("meta")}, TypeError, "labels: expected .* on meta"),
        ({"labels": 2**70}, ValueError, r"labels: expected values in 0\.\.9, got 1180591"),
        ({"labels": [0, -(2**70)]}, ValueError, r"labels: expected values in 0\.\.9, got -118"),
        ({"labels": torch.tensor([[1]])}, TypeError, r"int64 tensor of shape \[B\].*\[1, 1\]"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"labels": np.array([1.0])}, TypeError, "labels: expected an array of integers .*float64"),
        ({"labels": np.zeros((1, 1), int)}, TypeError, r"integers of shape \[B\].*\[1, 1\]"),
        ({"labels": np.float32(1)}, TypeError, "labels: expected an int, .* got float32"),
        ({"labels": np.array([10])}, ValueError, r"labels: expected values in 0\.\.9, got 10"),
        (
            {"seed": 2**63},
            ValueError,
            "seed: expected an integer of 64 bits, got 9223372036854775808",
        ),
        ({"seed": -(2**63) - 1}, ValueError, "seed: expected an integer of 64 bits"),
        ({"output": "gif"}, ValueError, "output: expected one of 'pt', 'np'.*got 'gif'"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5"),
        ({"teacher_steps": 18}, ValueError, r"teacher_steps: expected 0 to 17 .*got 18"),
        ({"model": "nonesuch"}, ValueError, "a bundled name 'digits', 'fashion' or a path"),
        ({"model": "./none/such"}, FileNotFoundError, "no file or folder at .*'digits'"),
        ({"model": 3}, TypeError, "model: expected a bundled name, .* got int"),
    ],
)
def test_bad_arguments_are_named(generator, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        sample(**({"model": generator, "labels": 0} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"teacher_steps": 2, "top_k": -3}, ValueError, "top_k: expected 0 .* got -3"),
        ({"teacher_steps": 2, "top_k": 1.5}, TypeError, "top_k: expected an integer, got 1.5"),
        ({"teacher_steps": 2, "top_p": 1.5}, ValueError, r"top_p: .* in \(0, 1\], got 1.5"),
        ({"teacher_steps": 2, "cfg": float("inf")}, ValueError, "cfg: expected a finite number"),
        ({"teacher_steps": 2, "cfg": "2"}, TypeError, "cfg: expected a number, got str"),
        ({"top_k": -3}, ValueError, "top_k: expected 0 .* got -3"),
        ({"cfg": 1.5, "top_p": 0.9}, ValueError, "^cfg, top_p: .*teacher_steps of at least 2"),
        ({"teacher_steps": 1, "top_k": 5}, ValueError, "^top_k: .*got teacher_steps=1"),
        ({"dtype": "bfloat16"}, TypeError, "dtype: expected a floating .*got 'bfloat16'"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected a floating .*got torch.int8"),
        ({"device": "gpu"}, RuntimeError, "device: expected a torch device, got 'gpu'"),
    ],
)
def test_bad_settings_are_named_at_construction(generator, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        Sampler(generator, **arguments)
    Sampler(generator, cfg=None, top_k=0, top_p=1.0)


def test_a_device_that_is_not_there_says_why(generator, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in ((None, "this build of torch is for the CPU alone"), ("13.0", "no GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(RuntimeError, match=f"^device: .*'cuda:1': .*{reason}"):
            Sampler(generator, device="cuda:1")


def test_a_teacher_without_steps_is_named_where_they_are_wanted(generator) -> None:
    generator.teacher = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="teacher: .*Linear lacks guidance_scale, generate, steps$"):
        Sampler(generator, teacher_steps=2)
    assert sample(generator, 1).shape == (1, 3, 8, 8)


def test_bad_indices_are_named(generator) -> None:
    sampler = Sampler(generator)
    with pytest.raises(ValueError, match=r"indices: expected 2, one a label, got \[1\]"):
        sampler([0, 1], indices=[0])
    with pytest.raises(ValueError, match="indices: expected either indices or start_index"):
        sampler([0], indices=[0], start_index=1)
    with pytest.raises(ValueError, match="start_index: expected at least 0, got -1"):
        sampler([0], start_index=-1)
    with pytest.raises(TypeError, match="indices: expected an int64 tensor, got torch.int32"):
        sampler([0], indices=torch.tensor([0], dtype=torch.int32))


def test_a_model_without_parts_says_which(generator) -> None:
    with pytest.raises(TypeError, match="got a teacher, ARTeacher.*dd2-fast train distils it"):
        Sampler(generator.teacher)
    generator.teacher = None
    assert sample(generator, 1).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="teacher_steps: 3 needs a model with a teacher"):
        sample(generator, 1, teacher_steps=3)
    generator.tokenizer = None
    with pytest.raises(TypeError, match="expected a one-step generator with a tokenizer"):
        sample(generator, 1)


def test_the_bundled_name_its_folder_and_its_parts_are_one_model() -> None:
    folder = Path(dd2_fast.__file__).parent / "assets" / "digits"
    assert "digits" in bundled_names()
    images = sample("digits", LABELS, seed=3)
    assert torch.equal(images, sample(folder, LABELS, seed=3))
    assert torch.equal(images, sample(str(folder), LABELS, seed=3))
    bundle = load_bundle(folder)
    assert torch.equal(images, sample(bundle, LABELS, seed=3))
    recognised = bundle.classifier(sample("digits", list(range(10)) * 20)).argmax(1)
    assert (recognised == torch.arange(10).repeat(20)).double().mean() > 0.9
