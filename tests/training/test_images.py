"""A user's images: every form of file, what is wrong with them, and batches of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.image_files import shapes, write_bad_files, write_folder, write_idx, write_npz

from dd2_fast.training.image_config import DataConfig
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.samples.image_batches import ImageData, cut, split
from dd2_fast.training.samples.images import FolderImages, open_images, survey

PLAIN = DataConfig(size=16, flip=False)
COUNT = 30


@pytest.fixture(params=["folder", "npz", "idx", "idx.gz"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A path, and the images and labels in its order."""
    images, labels = shapes(COUNT)
    if request.param == "folder":
        order = np.argsort(labels, kind="stable")  # a class after the other
        return write_folder(tmp_path / "set", images, labels), images[order], labels[order]
    if request.param == "npz":
        return write_npz(tmp_path / "set.npz", images, labels), images, labels
    ending = request.param.removeprefix("idx")
    grey = images[..., 0]
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", labels)
    path = write_idx(tmp_path / f"train-images-idx3-ubyte{ending}", grey)
    return path, grey, labels


def test_every_form_has_the_same_images(
    written: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    path, images, labels = written
    found = open_images(path)
    assert len(found) == COUNT and found.labels.tolist() == labels.tolist()
    for copy in (found, pickle.loads(pickle.dumps(found))):  # as a worker gets it
        for i in (COUNT - 1, 0, 17):  # in no order
            assert np.array_equal(np.asarray(copy.read(i)), images[i])


def test_idx_folder_says_what_is_held_out(tmp_path: Path) -> None:
    images, labels = shapes(COUNT)
    for name, part in (("train", slice(0, 20)), ("t10k", slice(20, None))):
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels[part])
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images[part, ..., 0])
    data = ImageData.open(str(tmp_path), DataConfig(size=16, channels=1, held_out=0.9))
    assert data.train.tolist() == list(range(20))
    assert data.held_out.tolist() == list(range(20, COUNT))
    read, _ = data.load(data.held_out)
    assert np.array_equal((read[:, 0] * 255).round().numpy(), images[20:, ..., 0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "no", FileNotFoundError, "data: no file or folder at"),
        (lambda p: p, ValueError, "data: expected one subfolder a class"),
        (lambda p: write_npz(p / "a.npz", np.zeros((3, 4), np.uint8), np.zeros(3)), ValueError,
         r"expected images uint8 \[N, H, W\]"),
        (lambda p: write_npz(p / "a.npz", np.zeros((3, 4, 4), np.float32), np.zeros(3)),
         ValueError, "got float32"),
        (lambda p: write_npz(p / "a.npz", np.zeros((3, 4, 4), np.uint8), np.zeros(3)), ValueError,
         r"expected labels of integers \[N\]"),
        (lambda p: write_npz(p / "a.npz", np.zeros((3, 4, 4), np.uint8), np.zeros(2, int)),
         ValueError, "expected one label an image .* got 2 of 3"),
        (lambda p: write_npz(p / "a.npz", np.zeros((2, 4, 4), np.uint8), np.array([0, -1])),
         ValueError, "expected labels of at least 0"),
        (lambda p: write_idx(p / "x-images-idx3-ubyte", np.zeros((3, 4, 4))), FileNotFoundError,
         "expected labels beside"),
        (lambda p: write_idx(p / "x-images-idx3-ubyte.gz", np.zeros(3)), ValueError,
         "expected an IDX file of uint8 with 3 or 4 axes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path: Path, make, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_images(make(tmp_path))


def test_idx_that_ends_early(tmp_path: Path) -> None:
    images, labels = shapes(COUNT)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    path = write_idx(tmp_path / "train-images-idx3-ubyte", images[..., 0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="it ends early"):
        open_images(tmp_path)


def test_files_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    images, labels = shapes(12)
    write_folder(tmp_path, images, labels)
    kinds = write_bad_files(tmp_path / "class0")
    found = open_images(tmp_path)
    limits = dict(smallest=8, largest=100 * 100)
    result = survey(found, on_error="skip", **limits)
    assert {Path(p.name).name: p.kind for p in result.problems} == kinds
    assert len(result.kept) == 12
    assert all(found.files[i].name not in kinds for i in result.kept)
    for kind in set(kinds.values()):
        assert f"{kind}: {list(kinds.values()).count(kind)}: " in result.summary()
    with pytest.raises(ValueError, match="got 9 of 21") as refused:
        survey(found, on_error="refuse", **limits)
    assert all(name in str(refused.value) for name in kinds)


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are decoded again only where one has changed, or other sizes are asked for."""
    write_folder(tmp_path / "set", *shapes(12))
    write_bad_files(tmp_path / "set" / "class0")
    settings = dict(smallest=8, largest=10**4, on_error="skip", known=tmp_path / "known.json")
    first = survey(open_images(tmp_path / "set"), **settings)
    looked: list[int] = []
    own = FolderImages.check
    monkeypatch.setattr(
        FolderImages, "check", lambda self, i, *a: looked.append(i) or own(self, i, *a)
    )
    again = survey(open_images(tmp_path / "set"), **settings)
    assert not looked and again.problems == first.problems
    assert np.array_equal(again.kept, first.kept)
    survey(open_images(tmp_path / "set"), **{**settings, "smallest": 9})
    assert len(looked) == 21
    (tmp_path / "set" / "class1" / "00001.png").write_bytes(b"no image")
    changed = survey(open_images(tmp_path / "set"), **{**settings, "smallest": 9})
    assert len(changed.problems) == len(first.problems) + 1
    (tmp_path / "known.json").write_text("{")
    assert len(survey(open_images(tmp_path / "set"), **settings).problems) == 10


def test_a_class_whose_images_are_all_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, *shapes(6))
    for path in (tmp_path / "class1").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="an image of every class, got none of class1"):
        ImageData.open(str(tmp_path), PLAIN)


def test_what_is_held_out_is_a_function_of_seed_and_number() -> None:
    held = split(10000, 0.1, 3)
    assert abs(held.mean() - 0.1) < 4 * (0.09 / 10000) ** 0.5
    assert np.array_equal(split(20000, 0.1, 3)[:10000], held)  # more images change nothing
    agree = (split(10000, 0.1, 4) == held).mean()
    assert agree < 0.85
    with pytest.raises(ValueError, match=r"held_out: expected a share in \[0, 1\), got 1"):
        DataConfig(held_out=1.0)


def _data(tmp_path: Path, **settings: object) -> ImageData:
    images, labels = shapes(COUNT)
    path = write_npz(tmp_path / "set.npz", images, labels)
    return ImageData.open(str(path), DataConfig(**{"size": 16, **settings}))  # type: ignore[arg-type]


def test_some_of_what_is_held_out_is_of_every_class(tmp_path: Path) -> None:
    images, labels = shapes(200)
    write_folder(tmp_path, images, labels)  # in the order of the classes
    data = ImageData.open(str(tmp_path), DataConfig(size=16, held_out=0.5))
    some = data.some_held_out(30)
    assert len(some) == 30 and set(some) <= set(data.held_out)
    assert np.bincount(data.images.labels[some]).min() > 4
    assert data.some_held_out(10**6).tolist() == data.held_out.tolist()


def test_epochs_take_every_training_image_once(tmp_path: Path) -> None:
    data = _data(tmp_path)
    count, size = len(data.train), 7
    batches = data.batches(size, seed=1)
    numbers = np.concatenate([batches.numbers(step) for step in range(-(-3 * count // size))])
    epochs = [numbers[i * count : (i + 1) * count] for i in range(3)]
    assert all(sorted(epoch) == data.train.tolist() for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert not set(numbers) & set(data.held_out.tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path, workers: int) -> None:
    """In order, from the middle on, by workers, in two processes' shares: the same images."""
    data = _data(tmp_path, crop="random", flip=True)
    whole, part = data.batches(8, seed=1), torch.arange(8)
    expected = [whole.take(step, part) for step in range(4)]
    other = _data(tmp_path, crop="random", flip=True, workers=workers).batches(8, seed=1)
    state = torch.get_rng_state()
    for step in (2, 3, 1):
        images, labels = other.take(step, part)
        assert torch.equal(images, expected[step][0]) and torch.equal(labels, expected[step][1])
    assert torch.equal(torch.get_rng_state(), state)
    second = Parallel()
    second.rank, second.count = 1, 2
    (own,) = second.parts(8)
    images, labels = data.batches(8, 1, second).take(2, own)
    assert torch.equal(images, expected[2][0][4:]) and torch.equal(labels, expected[2][1][4:])
    assert not torch.equal(data.batches(8, seed=2).take(0, part)[0], expected[0][0])


def test_cuts() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle is white
    config = DataConfig(size=10)
    assert (cut(wide, config) == 255).all()
    left = cut(wide, config, where=(0.0, 0.5))
    assert (left == 0).all()
    padded = cut(wide, DataConfig(size=30, crop="pad"))
    assert (padded[:, :10] == 0).all() and (padded[:, 20:] == 0).all()
    assert np.array_equal(padded[:, 10:20], wide.transpose(2, 0, 1))
    assert cut(wide, DataConfig(size=10, crop="squeeze")).shape == (3, 10, 10)
    half = np.zeros((10, 10), np.uint8)
    half[:, :5] = 200
    grey = DataConfig(size=10, channels=1)
    assert np.array_equal(cut(half, grey)[0], half)
    assert np.array_equal(cut(half, grey, mirrored=True)[0], half[:, ::-1])
    assert np.array_equal(cut(half, config), np.stack([half] * 3))
    colours = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(cut(colours, grey)[0] - luma).max() <= 1
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    assert (cut(clear, config) == 255).all()
