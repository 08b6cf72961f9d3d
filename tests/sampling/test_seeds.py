"""A seed for every image: each is that of a call of its own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from models.test_dd2_families import TEACHERS, tiny_generator
from PIL import Image
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.sampling import Sampler, resolve_path, sample

LABELS = [3, 1, 4, 1, 5, 9, 2]
SEEDS = [7, 7, -1, 2**63 - 1, -(2**63), 0, 2**40]


def model(name: str) -> Any:
    if name == "digits":
        return load_bundle(resolve_path("digits"))
    generator = tiny_generator(name)
    generator.teacher = TEACHERS[name]()
    return generator


def alone(sampler: Sampler, output: str, **settings: Any) -> list[Tensor]:
    return [
        sampler([label], seed=seed, output=output, **settings)[0]
        for label, seed in zip(LABELS, SEEDS, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "teacher_steps"), [("digits", 0), ("digits", 3), ("var", 3), ("llamagen", 0)]
)
def test_each_is_that_of_a_call_of_its_own(name: str, teacher_steps: int) -> None:
    """Bit for bit where a kernel draws an image by itself; matrices of other heights round
    differently."""
    sampler = Sampler(model(name), teacher_steps=teacher_steps, batch_size=3)
    for output in ("latent", "pt")[teacher_steps > 0 :]:
        found = sampler(LABELS, seed=SEEDS, output=output)
        wanted = torch.stack(alone(sampler, output))
        if name == "digits" and not teacher_steps:
            assert torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    tokens = sampler(LABELS, seed=SEEDS, output="tokens")
    assert torch.equal(tokens, torch.stack(alone(sampler, "tokens")))
    assert not torch.equal(tokens[1], sampler([1], seed=8, output="tokens")[0])


def test_indices_and_kinds_of_list() -> None:
    sampler = Sampler("digits")
    wanted = sampler(LABELS, seed=SEEDS)
    assert torch.equal(sampler(LABELS, seed=tuple(SEEDS)), wanted)
    assert torch.equal(sampler(LABELS, seed=np.array(SEEDS)), wanted)
    assert torch.equal(sampler(LABELS, seed=torch.tensor(SEEDS)), wanted)
    assert torch.equal(sample("digits", LABELS, seed=SEEDS), wanted)
    assert torch.equal(sampler(LABELS, seed=torch.tensor(7)), sampler(LABELS, seed=7))
    later = sampler(LABELS, seed=SEEDS, start_index=2**63 - 1)
    assert torch.equal(later, torch.stack(alone(sampler, "pt", start_index=2**63 - 1)))
    places = [5, 0, 1, 5, 2, 2**40, 3]
    found = sampler(LABELS, seed=SEEDS, indices=places)
    for image, label, seed, place in zip(found, LABELS, SEEDS, places, strict=True):
        assert torch.equal(image, sampler([label], seed=seed, indices=[place])[0])
    assert sampler([], seed=[]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        ([1], ValueError, "seed: expected one number, or 2, one a label, got a list of 1"),
        ([1, 2**63], ValueError, "seed: expected an integer of 64 bits, got 9223372036854775808"),
        ([1, 0.5], TypeError, "seed: expected an integer, got 0.5"),
        ([1, True], TypeError, "seed: expected an integer, got True"),
        ([[1], [2]], TypeError, r"seed: expected an integer, got \[1\]"),
        ("12", TypeError, "seed: expected an integer, got '12'"),
        (torch.tensor([1.0, 2.0]), TypeError, "seed: expected an integer, got 1.0"),
    ],
)
def test_bad_seeds_are_named(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample("digits", [1, 2], seed=seed)


def test_a_spoiled_image_is_named_by_its_seed() -> None:
    bundle = model("digits")
    with torch.no_grad():
        bundle.generator.backbone.class_embedding.weight[4] = torch.nan
    for size in (1, 8):
        with pytest.raises(FloatingPointError, match=r"image 0 of seed -1 \(label 4\)"):
            Sampler(bundle, batch_size=size)(LABELS, seed=SEEDS)


@pytest.mark.parametrize("grey", [False, True])
def test_encoded_images(grey: bool, generator: Any) -> None:
    """Files of the format asked for: lossless, or JPEG within what its quality allows."""
    sampler = Sampler("fashion" if grey else generator, batch_size=3)
    pixels = sampler(LABELS, seed=SEEDS, output="np")
    for output in ("png", "jpeg", "webp"):
        files = sampler(LABELS, seed=SEEDS, output=output)
        assert len(files) == len(LABELS) and all(type(file) is bytes for file in files)
        for file, wanted in zip(files, pixels, strict=True):
            picture = Image.open(io.BytesIO(file))
            assert picture.format == output.upper()
            assert picture.mode == ("L" if grey and output != "webp" else "RGB")
            found = np.asarray(picture).reshape(*wanted.shape[:2], -1).astype(float)
            # Half a step of every frequency's quantization at quality 95, and rounding.
            limit = 8 if output == "jpeg" else 0
            assert np.abs(found - wanted).mean() <= limit
        assert sampler([], output=output) == []


def test_webp_that_pillow_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(RuntimeError, match="output: 'webp' needs a Pillow built with WebP"):
        sample("digits", 1, output="webp")


def test_warming_up_draws_every_size_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sampler = Sampler("digits", batch_size=6)
    monkeypatch.setattr(Sampler, "forward", lambda self, labels: sizes.append(len(labels)))
    for asked, drawn in (([1, 3, 6], [6, 3, 1]), (2, [2]), (None, [6])):
        sampler.warm_up(asked)
        assert sizes == drawn, "the largest first, whose memory serves the others"
        sizes.clear()
    sampler.compile()
    sampler.warm_up()
    assert sizes == [6, 4, 2, 1]
    for wrong in (0, 7, [1, 7]):
        with pytest.raises(ValueError, match=r"batch_sizes: expected 1 to 6, .* got [07]$"):
            sampler.warm_up(wrong)
    with pytest.raises(TypeError, match="batch_sizes: expected an integer, got 1.5"):
        sampler.warm_up([1.5])


@pytest.mark.slow
def test_warming_up_compiles_every_size_that_is_asked_for(generator: Any) -> None:
    sizes: list[int] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        sizes.append(next(len(value) for value in inputs if getattr(value, "ndim", 0) == 3))
        return graph.forward

    sampler = Sampler(generator, batch_size=6)
    wanted = sampler(LABELS, seed=SEEDS)
    sampler.compile(backend=backend)
    sampler.warm_up([1, 3, 6])
    assert set(sizes) == {1, 4, 6}
    count = len(sizes)
    torch.testing.assert_close(sampler(LABELS, seed=SEEDS), wanted, atol=1e-5, rtol=0)
    sampler(LABELS[:4])
    assert len(sizes) == count, "padded or not, a size compiles once"
    sampler.warm_up()
    assert set(sizes) == {1, 2, 4, 6}


def test_warming_up_packs_what_a_kernel_reads() -> None:
    sampler = Sampler("digits", batch_size=4)
    sampler.warm_up(2)
    assert sampler._at_once is not None and sampler._at_once._draws
