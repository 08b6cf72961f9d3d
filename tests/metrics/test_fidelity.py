"""What reaches torch-fidelity, by a stand-in for it; the real one would download its network."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd2_fast.cli import main
from dd2_fast.metrics import fid

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Settings of every call; the stand-in's distance is that of the two means."""
    seen: list[dict] = []

    def mean(source) -> float:
        if isinstance(source, str):
            return float(np.mean([np.asarray(Image.open(f)) for f in Path(source).iterdir()]))
        assert source[0].dtype == torch.uint8 and source[0].shape == (3, 4, 5)
        return float(torch.stack([source[i] for i in range(len(source))]).double().mean())

    def calculate_metrics(*, input1, input2, **settings) -> dict[str, float]:
        seen.append(settings)
        return {"frechet_inception_distance": abs(mean(input1) - mean(input2))}

    library = types.ModuleType("torch_fidelity")
    library.calculate_metrics = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(path / f"{i}.png")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez(tmp_path / "reference.npz", IMAGES // 2)
    return tmp_path / "reference.npz"


def test_a_folder_and_an_archive_are_both_read(calls, folder: Path, archive: Path, capsys) -> None:
    assert fid(folder, folder)["frechet_inception_distance"] == 0
    wanted = abs(IMAGES.mean() - (IMAGES // 2).mean())
    found = fid(folder, str(archive), isc=True, batch_size=2)
    assert found["frechet_inception_distance"] == pytest.approx(wanted)
    assert calls[-1] == {
        "fid": True,
        "isc": True,
        "batch_size": 2,
        "cuda": torch.cuda.is_available(),
        "verbose": False,
    }
    assert main(["fid", str(archive), str(folder)]) == 0
    assert capsys.readouterr().out == f"frechet_inception_distance  {wanted:.4f}\n"


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch, folder: Path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r'pip install "dd2-fast\[fid\]"'):
        fid(folder, folder)
    assert main(["fid", str(folder), str(folder)]) == 2
    assert "needs torch-fidelity" in capsys.readouterr().err


def test_other_sources_are_named(calls, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reference: no file or folder at .*nowhere"):
        fid(folder, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected a folder or a \.npz file, got .*0\.png"):
        fid(folder / "0.png", folder)
    np.savez(tmp_path / "floats.npz", IMAGES / 255)
    with pytest.raises(ValueError, match=r"arr_0 of uint8 .* got float64 \[3, 4, 5, 3\]"):
        fid(folder, tmp_path / "floats.npz")
    np.savez(tmp_path / "named.npz", images=IMAGES)
    with pytest.raises(ValueError, match="images: expected an array arr_0"):
        fid(tmp_path / "named.npz", folder)
    assert calls == []
