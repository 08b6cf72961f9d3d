"""The field's distances between two sets of images, in one pass over each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.arrays import ArchivedArray, array_names
from ..progress import progress_bar
from .frechet import gaussian_distance
from .inception import Extractor, Inception
from .inception_score import inception_score
from .kernel_distance import kernel_distance
from .moments import Moments
from .precision_recall import precision_recall

METRICS = ("fid", "sfid", "is", "kid", "pr")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SPLIT = 5000  # rows of a split of the inception score, as in ADM's evaluator
_SUBSET = 1000  # images of a subset of KID
_STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}

Gaussian = tuple[Tensor, Tensor]  # mean and covariance


def fid(
    images: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    max_bytes: int | None = None,
    extractor: Extractor | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Return the distances of images to a reference, under torch-fidelity's names where it has one.

    * fid: `frechet_inception_distance`, of the 2048 pooled features;
    * sfid: `spatial_frechet_inception_distance`, of ADM's 2023 spatial ones (arXiv 2103.03841);
    * is: `inception_score_mean`, `inception_score_std` of the images, over splits of 5000 in order;
    * kid: `kernel_inception_distance_mean`, `kernel_inception_distance_std`, by 100 subsets of
      1000, and both sets must have as many;
    * pr: `precision`, `recall`, three neighbours, of the pooled features.

    The formulas are those of ADM's evaluator, which published numbers of VAR and LlamaGen are by
    (KID's are torch-fidelity's); the network is torch-fidelity's port of the original FID's. 50,000
    images are customary.

    Args:
        images, reference: a folder of images (`dd2-fast sample --out DIR`); an archive of uint8
            images `arr_0` [N, H, W, 3] (`--out FILE.npz`), which is read in parts; statistics,
            `mu` and `sigma`, with `mu_s` and `sigma_s` for sFID. ADM's reference batches have
            both: FID and sFID are then by their statistics, the rest by their images.
        metrics: of `METRICS`; None: all that the two sets have what it takes for.
        weights: local file of the Inception network; None: the one torch-fidelity has downloaded.
        download: fetch it where it is not there; otherwise nothing is.
        device: None: CUDA where there is one. batch_size: images a pass.
        max_bytes: what an archive may hold once unpacked; None: 1 GiB or 100 times its own size,
            whichever is more.
        extractor: another network, from uint8 images [B, 3, H, W] to `Features`.
        progress: show a bar.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError, ValueError: a path or weights that do not exist, or hold something else,
            nothing or a damaged archive; a metric that the sets lack something for.
    """
    wanted = METRICS if metrics is None else tuple(metrics)
    for metric in wanted:
        if metric not in METRICS:
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {metric!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    sets = _Set("images", images, max_bytes), _Set("reference", reference, max_bytes)
    kept = []
    for metric in wanted:
        missing = next(filter(None, (one.lacks(metric) for one in sets)), None)
        if missing is None:
            kept.append(metric)
        elif metrics is not None:
            raise ValueError(missing)
    if not kept:
        raise ValueError(
            "metrics: expected images, or statistics of the same features on both sides, got "
            f"{images} with {sets[0].holds()} and {reference} with {sets[1].holds()}"
        )
    network: Extractor | None = extractor
    for one in sets:
        if one.needs_features(kept):
            if network is None:
                network = Inception(weights, download=download, device=device)
            one.look(network, kept, batch_size, progress)
    return _distances(*sets, kept)


def _distances(made: _Set, real: _Set, metrics: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric, layer, name in (
        ("fid", "pool", "frechet_inception_distance"),
        ("sfid", "spatial", "spatial_frechet_inception_distance"),
    ):
        if metric in metrics:
            found[name] = gaussian_distance(*_alike(made.gaussian(layer), real.gaussian(layer)))
    if "is" in metrics:
        probabilities = torch.cat(made.logits).double().softmax(-1)
        mean, deviation = inception_score(probabilities, split_size=_SPLIT)
        found["inception_score_mean"], found["inception_score_std"] = mean, deviation
    if "kid" in metrics or "pr" in metrics:
        a, b = torch.cat(made.features), torch.cat(real.features)
        if "kid" in metrics:
            mean, deviation = kernel_distance(a, b, subset_size=_SUBSET)
            found["kernel_inception_distance_mean"] = mean
            found["kernel_inception_distance_std"] = deviation
        if "pr" in metrics:
            found["precision"], found["recall"] = precision_recall(b, a, exact=False)
    return found


def _alike(a: Gaussian, b: Gaussian) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if a[0].shape != b[0].shape:
        raise ValueError(
            f"reference: expected statistics of {len(a[0])} features as of the images, "
            f"got {len(b[0])}"
        )
    return *a, *b


@dataclass
class _Set:
    """One of the two sides: where it is, and what has been seen of it."""

    name: str
    path: str | os.PathLike[str]
    max_bytes: int | None
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        where = Path(self.path)
        if not where.exists():
            raise FileNotFoundError(f"{self.name}: no file or folder at {os.fspath(where)!r}")
        self.files: list[Path] = []
        self.archive: ArchivedArray | None = None
        self.given: dict[str, Gaussian] = {}
        self.seen = {layer: Moments() for layer in _STATISTICS}
        if where.is_dir():
            self.files = sorted(f for f in where.iterdir() if f.suffix.lower() in _ENDINGS)
            if not self.files:
                raise ValueError(
                    f"{self.name}: expected a folder with images ({', '.join(_ENDINGS)}), found "
                    f"none in {os.fspath(where)!r}"
                )
        elif where.suffix.lower() == ".npz":
            try:
                self._open(where)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
        else:
            raise ValueError(
                f"{self.name}: expected a folder or a .npz file, got {os.fspath(where)!r}"
            )

    def _open(self, path: Path) -> None:
        names = array_names(path)
        for layer, (mean, covariance) in _STATISTICS.items():
            if mean in names or covariance in names:
                self.given[layer] = self._statistics(path, mean, covariance)
        if "arr_0" in names or not self.given:
            self.archive = ArchivedArray(path, max_bytes=self.max_bytes)
            if self.archive.dtype != np.uint8 or self.archive.shape[3:] != (3,):
                raise ValueError(
                    f"expected arr_0 of uint8 [N, H, W, 3] in {path}, "
                    f"got {self.archive.dtype} {list(self.archive.shape)}"
                )
            if 0 in self.archive.shape:
                raise ValueError(f"expected images in {path}, got {list(self.archive.shape)}")
            self.archive.check()

    def _statistics(self, path: Path, *names: str) -> Gaussian:
        found = []
        for name in names:
            array = ArchivedArray(path, name, max_bytes=self.max_bytes)
            if array.dtype.kind != "f" or not len(array):
                raise ValueError(f"expected floats {name} in {path}, got {array.dtype}")
            array.check()
            found.append(torch.from_numpy(array.read(0, len(array)).astype(np.float64)))
        mean, covariance = found
        size = len(mean)
        if mean.ndim != 1 or list(covariance.shape) != [size, size]:
            raise ValueError(
                f"expected {names[0]} [D] and {names[1]} [D, D] in {path}, "
                f"got {list(mean.shape)} and {list(covariance.shape)}"
            )
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"expected finite {names[0]} and {names[1]} in {path}, got a NaN")
        return mean, covariance

    def __len__(self) -> int:
        return len(self.files) if self.archive is None else len(self.archive)

    def holds(self) -> str:
        """What is there, in words."""
        arrays = [name for layer in self.given for name in _STATISTICS[layer]]
        return ", ".join([*([f"{len(self)} images"] if len(self) else []), *arrays])

    def lacks(self, metric: str) -> str | None:
        """What an error says where a metric needs what is not there."""
        layer = {"fid": "pool", "sfid": "spatial"}.get(metric)
        if layer is not None:
            if layer in self.given or len(self) > 1:
                return None
            wanted = f"two images or {' and '.join(_STATISTICS[layer])}"
        elif metric == "is":
            if self.name == "reference" or len(self):
                return None
            wanted = "images"
        else:
            least = _SUBSET if metric == "kid" else 4
            if len(self) >= least:
                return None
            wanted = f"at least {least} images"
        return f"{self.name}: expected {wanted} for {metric}, got {self.holds()} in {self.path}"

    def needs_features(self, metrics: Sequence[str]) -> bool:
        """Whether images have to be looked at."""
        return bool(self._layers(metrics)) or self._rows(metrics) or self._scored(metrics)

    def _layers(self, metrics: Sequence[str]) -> list[str]:
        of = {"fid": "pool", "sfid": "spatial"}
        return [of[m] for m in metrics if m in of and of[m] not in self.given]

    def _rows(self, metrics: Sequence[str]) -> bool:
        return "kid" in metrics or "pr" in metrics

    def _scored(self, metrics: Sequence[str]) -> bool:
        return "is" in metrics and self.name == "images"

    def look(
        self, network: Extractor, metrics: Sequence[str], batch_size: int, progress: bool
    ) -> None:
        """Go through the images once and keep of them what the metrics take."""
        layers, rows, scored = self._layers(metrics), self._rows(metrics), self._scored(metrics)
        with progress_bar(len(self), show=progress) as bar:
            for batch in self._batches(batch_size):
                found = network(batch)
                for layer in layers:
                    self.seen[layer].add(getattr(found, layer))
                if rows:
                    self.features.append(found.pool)
                if scored:
                    self.logits.append(found.logits.cpu())
                bar.update(len(batch))

    def gaussian(self, layer: str) -> Gaussian:
        if layer in self.given:
            return self.given[layer]
        moments = self.seen[layer]
        return moments.mean.cpu(), moments.covariance.cpu()

    def _batches(self, size: int) -> Iterator[Tensor]:
        """Images of one size, [B, 3, H, W], in order."""
        if self.archive is not None:
            for first in range(0, len(self), size):
                part = self.archive.read(first, min(first + size, len(self)))
                yield torch.from_numpy(part).permute(0, 3, 1, 2).contiguous()
            return
        held: list[Tensor] = []
        for path in self.files:
            image = _read(self.name, path)
            if held and (len(held) == size or held[0].shape != image.shape):
                yield torch.stack(held)
                held = []
            held.append(image)
        yield torch.stack(held)


def _read(name: str, path: Path) -> Tensor:
    """An image as uint8 [3, H, W]; grey ones are repeated."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            array = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: expected an image in {path}, got {error}") from error
    return torch.from_numpy(array).permute(2, 0, 1)
