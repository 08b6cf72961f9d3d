"""Grids of small images with captions, as one picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_PAPER, _INK, _GREY = (255, 255, 255), (24, 24, 27), (113, 113, 122)
_MARGIN, _TITLE, _SUBTITLE = 24, 20, 15


@dataclass(frozen=True)
class Panel:
    """One grid: images uint8 [B, H, W, 3 or 1], row by row, under a title and a line below it."""

    title: str
    subtitle: str
    images: np.ndarray


def tile(images: np.ndarray, *, columns: int, scale: int, gap: int = 3) -> Any:
    """Return a Pillow image of images [B, H, W, 3 or 1], each pixel enlarged scale times."""
    from PIL import Image

    count, height, width, channels = images.shape
    images = np.repeat(images, 3 // channels, axis=-1)
    rows = -(-count // columns)
    height, width = height * scale, width * scale
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    canvas = Image.new("RGB", size, _PAPER)
    for i, array in enumerate(images):
        cell = Image.fromarray(array, "RGB").resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(cell, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return canvas


def draw_panels(panels: list[Panel], *, columns: int, height: int) -> Any:
    """Return a Pillow image of the panels side by side, each image ``height`` pixels high, if its
    pixels fill them evenly."""
    from PIL import Image, ImageDraw, ImageFont

    scales = [max(1, height // panel.images.shape[1]) for panel in panels]
    grids = [
        tile(panel.images, columns=columns, scale=scale)
        for panel, scale in zip(panels, scales, strict=True)
    ]
    title, subtitle = ImageFont.load_default(_TITLE), ImageFont.load_default(_SUBTITLE)
    top = _MARGIN + _TITLE + _SUBTITLE + 22
    width = sum(grid.width for grid in grids) + (len(grids) + 1) * _MARGIN
    canvas = Image.new("RGB", (width, top + max(g.height for g in grids) + _MARGIN), _PAPER)
    pen, left = ImageDraw.Draw(canvas), _MARGIN
    for panel, grid in zip(panels, grids, strict=True):
        pen.text((left, _MARGIN - 6), panel.title, fill=_INK, font=title)
        pen.text((left, _MARGIN + _TITLE + 2), panel.subtitle, fill=_GREY, font=subtitle)
        canvas.paste(grid, (left, top))
        left += grid.width + _MARGIN
    return canvas


def stack(pictures: list[Any]) -> Any:
    """Return a Pillow image of Pillow images, one below the other."""
    from PIL import Image

    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    canvas, top = Image.new("RGB", size, _PAPER), 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def text_chunk(text: str) -> Any:
    """Return what a PNG keeps beside its pixels: what is written in the picture, as text, so that
    who quotes it can be held to it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("Description", text)
    return info


def check_png(path: Path, option: str = "--out") -> None:
    """Raise ValueError or OSError, before any work, unless a PNG can be written at path."""
    from ..checkpoints.files import check_file

    if path.suffix.lower() != ".png":
        raise ValueError(f"{option}: expected a name that ends in .png, got '{path}'")
    if path.is_dir():
        raise IsADirectoryError(f"{option}: expected a file, and '{path}' is a folder")
    check_file(path)


def write_png(path: Path, picture: Any, **settings: Any) -> None:
    """Write a Pillow image as a whole file or not at all; ``settings`` as of Pillow's save."""
    from ..checkpoints.files import write_atomic

    data = io.BytesIO()
    picture.save(data, format="PNG", **settings)
    write_atomic(path, data.getvalue())
