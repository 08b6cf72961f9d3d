"""Small sets of images in every form that the recipe for images reads."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def shapes(count: int, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coloured squares, upright and lying bars, uint8 ``[N, size, size, 3]``, with their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = np.zeros((count, size, size, 3), np.uint8)
    long, short = size // 2, max(size // 6, 1)
    for image, label in zip(images, labels, strict=True):
        height, width = ((long, long), (long, short), (short, long))[label]
        top, left = rng.integers(0, size - long, 2)
        image[top : top + height, left : left + width] = rng.integers(120, 256, 3)
    return images, labels


def write_npz(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.savez_compressed(path, images=images, labels=labels)
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    """An IDX file as MNIST's, written from the definition of the format."""
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        one = folder / f"class{label}"
        one.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(one / f"{i:05d}.png")
    return folder


def write_bad_files(folder: Path, size: int = 16) -> dict[str, str]:
    """Files that are not as they should be in ``folder``, and the kind of each."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    good = Image.fromarray(pixels)
    good.save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "nothing.png").write_bytes(b"")
    good.resize((3, size)).save(folder / "narrow.png")
    good.resize((size * 12, size * 12)).save(folder / "large.png")
    good.convert("CMYK").save(folder / "press.jpg")
    good.quantize(16).save(folder / "palette.png")
    deep = rng.integers(0, 65536, (size, size), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    good.save(folder / "moving.gif", save_all=True, append_images=[good.rotate(90)])
    (folder / "whole.png").unlink()
    return {
        "cut.png": "broken",
        "text.jpg": "broken",
        "nothing.png": "empty",
        "narrow.png": "tiny",
        "large.png": "huge",
        "press.jpg": "CMYK",
        "palette.png": "palette",
        "deep.png": "16-bit",
        "moving.gif": "animated",
    }
