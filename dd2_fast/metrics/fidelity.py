"""The field's Fréchet Inception distance, by torch-fidelity, which an extra brings."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoints.arrays import ArchivedArray

_IMAGES = "png,jpg,jpeg"  # what torch-fidelity reads of a folder


class _Archive(Dataset):
    """The images of an archive `arr_0` uint8 [N, H, W, 3], one after the other as [3, H, W]."""

    def __init__(self, name: str, path: Path, max_bytes: int | None) -> None:
        try:
            self.images = ArchivedArray(path, max_bytes=max_bytes)
            if self.images.dtype != np.uint8 or self.images.shape[3:] != (3,):
                raise ValueError(
                    f"expected arr_0 of uint8 [N, H, W, 3] in {path}, "
                    f"got {self.images.dtype} {list(self.images.shape)}"
                )
            if 0 in self.images.shape:
                raise ValueError(f"expected images in {path}, got {list(self.images.shape)}")
            self.images.check()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images.read(index, index + 1)[0]
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def fid(
    images: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Return torch-fidelity's metrics of images against a reference: `frechet_inception_distance`.

    Its Inception network is a port of the original FID's, whose weights it downloads at the first
    use; published numbers of VAR and LlamaGen come from ADM's evaluator. 50,000 images are
    customary.

    Args:
        images, reference: a folder of images (`dd2-fast sample --out DIR`), an archive of uint8
            images `arr_0` [N, H, W, 3] (`--out FILE.npz`, ADM's reference batches), which is read
            in parts.
        max_bytes: what an archive may hold once unpacked; None: 1 GiB or 100 times its own size,
            whichever is more.
        settings: of `torch_fidelity.calculate_metrics`, as `isc=True`, `cuda=False`,
            `batch_size=64`.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError, ValueError: a path that does not exist, or holds something else, nothing
            or a damaged archive.
    """
    inputs = {
        "input1": _source("images", images, max_bytes, settings),
        "input2": _source("reference", reference, max_bytes, settings),
    }
    try:
        library = importlib.import_module("torch_fidelity")
    except ImportError as error:
        raise ImportError(
            f'fid: needs torch-fidelity; pip install "dd2-fast[fid]" brings it ({error})'
        ) from error
    defaults = {"fid": True, "cuda": torch.cuda.is_available(), "verbose": False}
    return dict(library.calculate_metrics(**inputs, **{**defaults, **settings}))


def _source(
    name: str, path: str | os.PathLike[str], max_bytes: int | None, settings: dict[str, Any]
) -> str | _Archive:
    """What torch-fidelity reads images from: a folder's path, or a dataset."""
    where = Path(path)
    if not where.exists():
        raise FileNotFoundError(f"{name}: no file or folder at {os.fspath(path)!r}")
    if where.is_dir():
        endings = str(settings.get("samples_find_ext", _IMAGES)).split(",")
        files = where.rglob("*") if settings.get("samples_find_deep") else where.iterdir()
        if not any(file.suffix.lower().lstrip(".") in endings for file in files):
            raise ValueError(
                f"{name}: expected a folder with images ({', '.join(endings)}), "
                f"found none in {os.fspath(path)!r}"
            )
        return str(where)
    if where.suffix.lower() != ".npz":
        raise ValueError(f"{name}: expected a folder or a .npz file, got {os.fspath(path)!r}")
    return _Archive(name, where, max_bytes)
