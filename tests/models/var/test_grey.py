"""VAR's tokenizer of grey images: one channel all the way, in files, students and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd2_fast import checkpoints
from dd2_fast.models import DD2Generator, VARTeacher, VARTokenizer
from dd2_fast.models.var.codec import Decoder, Encoder
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.sinks import png
from dd2_fast.training.watch import image_grid

SIZES = dict(patch_nums=(1, 2, 4), vocabulary=16, dimension=4)


@pytest.fixture
def tokenizer() -> VARTokenizer:
    return VARTokenizer(
        **SIZES, channels=6, multipliers=(1, 2), blocks=1, groups=3, image_channels=1
    ).eval()


def test_there_and_back(tokenizer: VARTokenizer) -> None:
    images = torch.rand(3, 1, 8, 8)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 21)
    decoded = tokenizer.decode(tokenizer.embed(tokens))
    assert decoded.shape == images.shape and 0 <= decoded.min() <= decoded.max() <= 1
    with pytest.raises(ValueError, match=r"images: expected shape \['B', 1, 8, 8\]"):
        tokenizer.encode(torch.rand(3, 3, 8, 8))


def test_a_grey_tokenizer_is_a_coloured_one_of_equal_channels(tokenizer: VARTokenizer) -> None:
    """A coloured tokenizer whose first layer averages and whose last repeats does the same."""
    state = tokenizer.state_dict()
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].repeat(1, 3, 1, 1) / 3
    for name in ("weight", "bias"):
        last = state[f"decoder.conv_out.{name}"]
        state[f"decoder.conv_out.{name}"] = torch.cat([last] * 3)
    coloured = VARTokenizer(**{**tokenizer.config, "image_channels": 3}).eval()
    coloured.load_state_dict(state)
    images = torch.rand(2, 1, 8, 8)
    tokens = tokenizer.encode(images)
    assert torch.equal(coloured.encode(images.expand(-1, 3, -1, -1)), tokens)
    decoded = coloured.decode(coloured.embed(tokens))
    grey = tokenizer.decode(tokenizer.embed(tokens))
    torch.testing.assert_close(decoded, grey.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_groups_of_every_norm(groups: int) -> None:
    for half in (Encoder(6, (1, 2), 1, 4, groups=groups), Decoder(6, (1, 2), 1, 4, groups=groups)):
        norms = [m for m in half.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert len(norms) > 8 and {norm.num_groups for norm in norms} == {groups}


def test_files_keep_it(tokenizer: VARTokenizer, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "t.safetensors", tokenizer)
    images = torch.rand(2, 1, 8, 8)
    loaded = checkpoints.load(tmp_path / "t.safetensors")
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    wide = VARTokenizer(**SIZES, channels=32, multipliers=(1, 2), image_channels=1).eval()
    released = checkpoints.load(dict(wide.state_dict()), patch_nums=(1, 2, 4))  # by shapes alone
    assert released.image_channels == 1
    assert torch.equal(released.encode(images), wide.encode(images))


@pytest.mark.parametrize("teacher_steps", [0, 3])
def test_sampling(tokenizer: VARTokenizer, tmp_path: Path, teacher_steps: int) -> None:
    teacher = VARTeacher(**SIZES, num_classes=2, width=16, layers=1, heads=2).eval()
    teacher.tokenizer = tokenizer
    generator = DD2Generator.from_teacher(teacher, head_width=8, head_depth=1).eval()
    generator.teacher = teacher
    sampler = Sampler(generator, teacher_steps=teacher_steps)
    images = sampler([0, 1, 1])
    assert images.shape == (3, 1, 8, 8)
    arrays = sampler([0, 1, 1], output="np")
    assert arrays.shape == (3, 8, 8, 1) and arrays.dtype == np.uint8
    expected = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(arrays, expected)
    pictures = sampler([0, 1, 1], output="pil")
    assert [p.mode for p in pictures] == ["L"] * 3
    assert np.array_equal(np.asarray(pictures[2]), arrays[2, ..., 0])
    path = tmp_path / "one.png"
    path.write_bytes(png(arrays[1], "1"))
    with Image.open(path) as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), arrays[1, ..., 0])
    grid = image_grid(images, columns=3, gap=0)
    assert np.array_equal(grid[:, 8:16], np.repeat(arrays[1], 3, axis=-1))
