"""The Inception network of the field's distances, by torch-fidelity, which an extra brings."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SPATIAL = 7  # channels of mixed_6/conv that ADM's evaluator takes


class Features(NamedTuple):
    """What is kept of B images: ``pool [B, 2048]``; ``spatial [B, 2023]``, the first 7 channels of
    the 17 x 17 map ``mixed_6/conv``, which torch-fidelity's table of converted weights calls
    ``Mixed_6d.branch1x1``; ``logits [B, 1008]``, without a bias, of the inception score.
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


Extractor = Callable[[Tensor], Features]  # of uint8 images [B, 3, H, W]


class Inception:
    """Features of uint8 images ``[B, 3, H, W]`` by the original FID's network, which resizes them.

    Args:
        weights: torch-fidelity's file of them, as a local path; None: the one it has downloaded.
        download: fetch it where it is not there.
        device: None: CUDA where there is one.

    Raises:
        ImportError: torch-fidelity is not installed. FileNotFoundError: there are no weights.
        ValueError: the file holds something else.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        download: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        name = "torch_fidelity.feature_extractor_inceptionv3"
        try:
            library = importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'fid: needs torch-fidelity; pip install "dd2-fast[fid]" brings it ({error})'
            ) from error
        path = _weights(weights, library.URL_INCEPTION_V3, download)
        if path is not None:
            _check(path)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        try:
            self.network = library.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=None if path is None else str(path),
            )
        except RuntimeError as error:  # tensors of other names or shapes
            first = str(error).splitlines()[0]
            raise ValueError(
                f"weights: expected the Inception network's, got {path}: {first}"
            ) from error
        self.network.to(self.device)
        self._maps: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._maps.append(output[:, :_SPATIAL])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        self._maps.clear()
        pool, logits = self.network(images.to(self.device))
        spatial = self._maps.pop().permute(0, 2, 3, 1).flatten(1)  # as TensorFlow lays them out
        return Features(pool, spatial, logits)


def _weights(given: str | os.PathLike[str] | None, url: str, download: bool) -> Path | None:
    """The file; None: to be downloaded."""
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"weights: no file at {os.fspath(given)!r}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not download:
        raise FileNotFoundError(
            "weights: expected the Inception network's file, and nothing is fetched unasked: "
            f"name it (--weights), or let it be downloaded (--download), from {url}"
        )
    return None


def _check(path: Path) -> None:
    """ValueError unless the file holds tensors alone: torch-fidelity would run what it says."""
    try:
        held = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights: expected a file of tensors alone, got {path}: {first}"
        ) from error
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(f"weights: expected a file of tensors by names, got {path}")
