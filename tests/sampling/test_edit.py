"""`Sampler.edit`: its arguments, draws against the sampler's own, and what real clothes become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models.checks import NotFiniteError
from dd2_fast.sampling import Sampler, resolve_path

LABELS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def bundle() -> Any:
    return load_bundle(resolve_path("fashion"))


@pytest.fixture(scope="module")
def images(bundle: Any) -> Tensor:
    return Sampler(bundle)(LABELS, seed=9)


def half() -> Tensor:
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[:, 16:] = True  # three of seven tokens
    return mask


def test_everything_masked_is_the_sampler_s_draw(bundle: Any, images: Tensor) -> None:
    """Whatever the teacher's steps; of none the codes nearest to what is generated."""
    mask = torch.ones(28, 28, dtype=torch.bool)
    sampler = Sampler(bundle, teacher_steps=3, cfg=1.0, top_k=100)
    expected = sampler(LABELS, seed=2)
    torch.testing.assert_close(
        sampler.edit(images, mask, LABELS, seed=2), expected, atol=1e-5, rtol=0
    )
    tokens = Sampler(bundle)(LABELS, seed=2, output="tokens")
    for steps in (0, 1):
        made = sampler.edit(images, mask, LABELS, seed=2, teacher_steps=steps, output="tokens")
        assert torch.equal(made, tokens)
    whole = sampler.edit(images, mask, LABELS, seed=2, teacher_steps=5, output="tokens")
    drawn = bundle.teacher.sample(torch.tensor(LABELS), seed=2, cfg=1.0, top_k=100)
    assert torch.equal(whole, drawn)


def test_the_batch_and_the_index_do_not_matter(bundle: Any, images: Tensor) -> None:
    expected = Sampler(bundle, teacher_steps=2).edit(images, half(), LABELS, seed=4)
    sampler = Sampler(bundle, teacher_steps=2, batch_size=2)
    torch.testing.assert_close(
        sampler.edit(images, half(), LABELS, seed=4), expected, atol=1e-5, rtol=0
    )
    part = sampler.edit(images[3:], half(), LABELS[3:], seed=4, start_index=3)
    torch.testing.assert_close(part, expected[3:], atol=1e-5, rtol=0)
    alone = sampler.edit(images[3:], half(), LABELS[3:], seed=[4, 4], indices=[3, 4])
    torch.testing.assert_close(alone, expected[3:], atol=1e-5, rtol=0)


def test_it_reads_and_gives_arrays_too(bundle: Any, images: Tensor) -> None:
    sampler = Sampler(bundle, teacher_steps=2)
    arrays = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    floats = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    expected = sampler.edit(floats, half(), LABELS)
    masks = half().expand(5, 1, 28, 28)
    found = sampler.edit(arrays, masks.numpy(), LABELS, output="np")
    assert found.dtype == np.uint8 and found.shape == (5, 28, 28, 1)
    assert np.abs(found / 255 - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-5
    kept = sampler.edit(arrays, half().numpy(), LABELS, output="np", keep_pixels=True)
    assert np.array_equal(kept[:, :, :16], arrays[:, :, :16])
    assert np.array_equal(kept[:, :, 16:], found[:, :, 16:])
    assert [p.size for p in sampler.edit(floats, half(), LABELS, output="pil")] == [(28, 28)] * 5
    assert sampler.edit(floats[:0], half(), [], output="np").shape == (0, 28, 28, 1)
    with torch.inference_mode():
        assert not sampler.edit(images, half(), LABELS).is_inference()


def test_digits_are_edited_without_a_teacher(bundle: Any) -> None:
    sampler = Sampler("digits")
    images = sampler(LABELS, seed=1)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    tokens = sampler.edit(images, mask, LABELS, seed=3, output="tokens")
    assert torch.equal(tokens[:, :8], sampler(LABELS, seed=3, output="tokens")[:, :8])
    known = sampler.tokenizer.encode(images)
    assert torch.equal(tokens[:, 8:], known[:, 8:])


def test_bfloat16_keeps_what_is_known(images: Tensor) -> None:
    sampler = Sampler("fashion", teacher_steps=2, dtype=torch.bfloat16)
    made = sampler.edit(images, half(), LABELS)
    through = sampler.tokenizer.decode(
        sampler.tokenizer.embed(sampler.tokenizer.encode(images.bfloat16()))
    )
    assert made.dtype == torch.float32
    torch.testing.assert_close(made[..., :12], through.float()[..., :12], atol=0.05, rtol=0)
    assert (made - through)[..., 16:].abs().max() > 0.1


def test_wrong_arguments_and_weights_are_named(bundle: Any, images: Tensor) -> None:
    sampler = Sampler(bundle)
    for wrong, error, message in (
        ({"labels": [1]}, ValueError, "labels: expected 5, one an image, got 1"),
        ({"labels": [10] * 5}, ValueError, "labels: expected values in 0..9, got 10"),
        ({"output": "latent"}, ValueError, "output: expected images .* got 'latent'"),
        ({"output": "tokens", "keep_pixels": True}, ValueError, "without keep_pixels"),
        ({"teacher_steps": 6}, ValueError, "teacher_steps: expected 0 to 5"),
        ({"seed": [1, 2]}, ValueError, "seed: expected one number, or 5"),
        ({"mask": half().float()}, TypeError, "mask: expected a bool torch.Tensor"),
        ({"images": images.numpy()}, TypeError, r"images: .* got an array of float32 \[5, 1"),
        ({"images": images.repeat(1, 3, 1, 1)}, ValueError, r"images: expected shape \['B', 1"),
    ):
        with pytest.raises(error, match=message):
            sampler.edit(**{"images": images, "mask": half(), "labels": LABELS, **wrong})
    broken = load_bundle(resolve_path("fashion"))
    broken.generator.head.output.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=r"generator: .* image 0 \(label 3\) and 4 more"):
        Sampler(broken).edit(images, half(), LABELS)


def test_pillow_images(bundle: Any, images: Tensor) -> None:
    """What `output="pil"` returns, and a mask that is white where to draw; one image alone too."""
    sampler = Sampler(bundle)
    pictures = sampler(LABELS, seed=9, output="pil")
    mask = Image.fromarray(half().numpy())
    arrays = np.stack([np.asarray(one) for one in pictures])[..., None]
    wanted = sampler.edit(arrays, half().numpy(), LABELS, seed=2)
    assert torch.equal(sampler.edit(pictures, mask, LABELS, seed=2), wanted)
    colour = [one.convert("RGB") for one in pictures]
    assert torch.equal(sampler.edit(colour, mask.convert("L"), LABELS, seed=2), wanted)
    torch.testing.assert_close(sampler.edit(pictures[0], mask, LABELS[0], seed=2), wanted[:1])
    with pytest.raises(ValueError, match=r"images: expected pictures of one size, got \[\(28, 28"):
        sampler.edit([pictures[0], pictures[1].resize((30, 30))], mask, LABELS[:2])
    for wrong, got in ((["boot.png"], "list"), (arrays / 255, r"an array of float64 \[5, 28")):
        with pytest.raises(TypeError, match=f"images: expected .* or Pillow images, got {got}"):
            sampler.edit(wrong, mask, LABELS)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Fashion-MNIST"
)
@pytest.mark.slow
def test_real_clothes_are_completed_without_an_edge(bundle: Any) -> None:
    """The right half of held-out ones, of their own class, by three of the teacher's steps.

    Of a plain draw of the class put there the step across the edge is three times as large; that of
    the tokenizer's reconstruction is about the edited one's. The classifier finds the class about
    as often as in it, and known pixels but for a token's width are the reconstruction's.
    """
    from dd2_fast.metrics.image_classifier import describe
    from dd2_fast.training.image_config import DataConfig
    from dd2_fast.training.samples.image_batches import ImageData

    config = DataConfig(size=28, channels=1, flip=False)
    data = ImageData.open("/usr/share/datasets/fashion-mnist", config)
    real, labels = data.load(data.some_held_out(400))
    sampler = Sampler(bundle, teacher_steps=4)
    tokenizer, mask = bundle.tokenizer, half()
    through = tokenizer.decode(tokenizer.embed(tokenizer.encode(real)))
    plain = sampler(labels, seed=1)
    pasted = through.where(~mask, plain)
    edited = sampler.edit(real, mask, labels, seed=1)

    def edge(images: Tensor) -> float:
        return float((images[..., 16] - images[..., 15]).abs().mean())

    def accuracy(images: Tensor) -> float:
        return float((describe(bundle.classifier, images)[1] == labels).double().mean())

    def error(images: Tensor) -> float:
        return float((images - real)[..., :12].square().mean())

    assert edge(edited) < edge(pasted) / 3 and edge(edited) < 1.5 * edge(through)
    assert accuracy(edited) > accuracy(through) - 0.05
    assert error(edited) == pytest.approx(error(through), rel=1e-4)
    assert error(through) < 0.25 * error(plain)
