"""Batches of a user's images: which, how they are cut, and who decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...ops.philox import image_uniform
from ..image_config import DataConfig
from ..parallel import Parallel
from .images import Images, Survey, open_images, survey

_SPLIT, _CUT = 5, 6  # streams of random numbers
_EPOCHS = 0x9E3779B1


class ImageData:
    """A user's images, those that are trained on and those that are held out.

    Args:
        images: the source. config: what becomes of them. found: which are used; None: all.

    Raises:
        ValueError: nothing to train on, or nothing held out.
    """

    def __init__(self, images: Images, config: DataConfig, found: Survey | None = None) -> None:
        self.images, self.config = images, config
        self.problems = [] if found is None else found.problems
        kept = np.arange(len(images)) if found is None else found.kept
        if images.held_out is not None:
            held = images.held_out[kept]
        else:
            held = split(len(images), config.held_out, config.split_seed)[kept]
        self.train, self.held_out = kept[~held], kept[held]
        for name, there in (("train on", self.train), ("hold out", self.held_out)):
            if not len(there):
                raise ValueError(
                    f"data: expected images to {name}, got none of {len(kept)} "
                    f"(data.held_out={config.held_out})"
                )
        self.num_classes = len(images.classes)

    @classmethod
    def open(
        cls,
        path: str,
        config: DataConfig,
        parallel: Parallel | None = None,
        known: Path | None = None,
    ) -> ImageData:
        """Open a path and look at every image once, on the first process for all; ``known`` is a
        file that keeps what was found.

        Raises what :func:`.images.open_images` and :func:`.images.survey` raise.
        """
        images = open_images(path)
        parallel = parallel or Parallel()
        found: Any = None
        if parallel.rank == 0:
            found = survey(
                images,
                smallest=config.smallest or -(-config.size // 2),
                largest=config.largest,
                on_error=config.on_error,
                workers=config.workers,
                known=known,
            )
        return cls(images, config, parallel.first(found))

    def report(self) -> dict[str, Any]:
        """What a run's report says of its data."""
        return {
            "train": len(self.train),
            "held_out": len(self.held_out),
            "classes": list(self.images.classes),
            "left_out": [vars(problem) for problem in self.problems],
        }

    def some_held_out(self, count: int) -> np.ndarray:
        """Numbers of at most ``count`` held-out images, always the same random ones."""
        held: np.ndarray = self.held_out
        if count >= len(held):
            return held
        return np.sort(np.random.default_rng(0).permutation(held)[:count])

    def labels(self, numbers: np.ndarray) -> Tensor:
        """int64 ``[B]`` of images by their numbers."""
        return torch.from_numpy(self.images.labels[numbers].astype(np.int64))

    def load(self, numbers: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Images by their numbers as float32 ``[B, c, size, size]`` in [0, 1], cut from their
        middle, and their labels."""
        arrays = [cut(self.images.read(int(i)), self.config) for i in numbers]
        return floats(torch.from_numpy(np.stack(arrays))), self.labels(np.asarray(numbers))

    def batches(self, size: int, seed: int, parallel: Parallel | None = None) -> ImageBatches:
        """Batches of the images to train on, a function of ``seed`` and the step."""
        return ImageBatches(self, size, seed, parallel or Parallel())


def split(count: int, held_out: float, seed: int) -> np.ndarray:
    """bool ``[N]``, which images are held out: a function of (seed, number) each."""
    uniform = image_uniform(seed, torch.arange(count), 1, stream=_SPLIT)[:, 0]
    return (uniform < held_out).numpy()


class ImageBatches:
    """Batches of training images, of which this process decodes its share.

    Every image comes once an epoch, in an order of the epoch's own. The batch of a step, and how
    each of its images is cut and mirrored, is a function of (seed, step) alone, so a resumed run
    and one on other numbers of processes see the same. Batches in order are decoded ahead.

    Args:
        data: the images. size: of a batch, all processes together. seed: of the order.
        parallel: the processes.
    """

    def __init__(self, data: ImageData, size: int, seed: int, parallel: Parallel) -> None:
        self.data, self.size, self.seed, self.parallel = data, size, seed, parallel
        parts = parallel.parts(size)
        self._first = int(parts[0][0])
        self._share = sum(len(part) for part in parts)
        self._order: tuple[int, np.ndarray] | None = None
        self._ahead: Iterator[Tensor] | None = None
        self._next = -1
        self._here: tuple[int, Tensor, Tensor] | None = None

    def numbers(self, step: int) -> np.ndarray:
        """The numbers of the whole batch of a step."""
        places = range(step * self.size, (step + 1) * self.size)
        return np.array([self._number(place) for place in places])

    def take(self, step: int, part: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``part`` of the batch of a step, float32 ``[m, c, size, size]`` in [0, 1], and
        their labels, on this process's device."""
        if self._here is None or self._here[0] != step:
            share = slice(self._first, self._first + self._share)
            labels = self.data.labels(self.numbers(step)[share])
            self._here = step, self._decoded(step), labels
        _, images, labels = self._here
        rows, device = part - self._first, self.parallel.device
        return floats(images[rows].to(device)), labels[rows].to(device)

    def _decoded(self, step: int) -> Tensor:
        if self._ahead is None or step != self._next:
            loader = DataLoader(
                _Decoder(self, step),
                batch_size=self._share,
                num_workers=self.data.config.workers,
                generator=torch.Generator(),  # not the global one
                collate_fn=_stacked,
            )
            self._ahead = iter(loader)
        self._next = step + 1
        return next(self._ahead)

    def _number(self, place: int) -> int:
        """The number of the image at a place of the endless row of epochs."""
        epoch, row = divmod(place, len(self.data.train))
        if self._order is None or self._order[0] != epoch:
            seed = (self.seed * _EPOCHS + epoch) % (1 << 63)
            order = torch.randperm(
                len(self.data.train), generator=torch.Generator().manual_seed(seed)
            )
            self._order = epoch, self.data.train[order.numpy()]
        return int(self._order[1][row])

    def one(self, step: int, place: int) -> np.ndarray:
        """uint8 ``[c, size, size]``: the image at a place of the batch of a step."""
        place, config = step * self.size + place, self.data.config
        image = self.data.images.read(self._number(place))
        if not config.flip and config.crop != "random":
            return cut(image, config)
        random = image_uniform(self.seed, torch.tensor([place]), 3, stream=_CUT)[0].tolist()
        where = (random[1], random[2]) if config.crop == "random" else (0.5, 0.5)
        return cut(image, config, where, config.flip and random[0] < 0.5)


class _Decoder(Dataset):
    """The images of this process from a step on, one after the other, without an end."""

    def __init__(self, batches: ImageBatches, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return self.batches._share << 32

    def __getitem__(self, index: int) -> np.ndarray:
        batches = self.batches
        step, row = divmod(index, batches._share)
        return batches.one(self.first + step, batches._first + row)


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def floats(images: Tensor) -> Tensor:
    """float32 in [0, 1] of uint8 images."""
    return images.float() / 255


def cut(
    image: Any,
    config: DataConfig,
    where: tuple[float, float] = (0.5, 0.5),
    mirrored: bool = False,
) -> np.ndarray:
    """uint8 ``[c, size, size]`` of an image, a Pillow image or an array.

    Grey of colours is Pillow's luma; what is see-through lies on white.

    Args:
        where: of the square that is cut out, 0 to 1 along each axis that has room.
    """
    from PIL import Image

    size = config.size
    if isinstance(image, np.ndarray):
        plane = image[..., None] if image.ndim == 2 else image
        if plane.shape == (size, size, config.channels):
            return _channels_first(plane, mirrored)
        image = Image.fromarray(plane[..., 0] if plane.shape[2] == 1 else plane)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if config.channels == 1 else "RGB")
    width, height = image.size
    if config.crop == "squeeze":
        image = _resized(image, size, size)
    elif config.crop == "pad":
        factor = min(1.0, size / max(width, height))
        image = _resized(image, max(1, round(width * factor)), max(1, round(height * factor)))
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    else:
        factor = size / min(width, height)
        image = _resized(image, max(size, round(width * factor)), max(size, round(height * factor)))
        left = int(where[0] * (image.width - size + 1))
        top = int(where[1] * (image.height - size + 1))
        image = image.crop((left, top, left + size, top + size))
    plane = np.asarray(image)
    return _channels_first(plane[..., None] if plane.ndim == 2 else plane, mirrored)


def _resized(image: Any, width: int, height: int) -> Any:
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _channels_first(plane: np.ndarray, mirrored: bool) -> np.ndarray:
    plane = plane[:, ::-1] if mirrored else plane
    return np.ascontiguousarray(plane.transpose(2, 0, 1))
