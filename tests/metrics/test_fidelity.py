"""What reaches torch-fidelity, by a stand-in for it; the real one would download its network."""

from __future__ import annotations

import io
import sys
import types
import zipfile
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


def test_broken_empty_and_huge_references_are_one_line(
    calls, folder: Path, archive: Path, tmp_path: Path, capsys
) -> None:
    whole, empty = archive.read_bytes(), tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    np.savez_compressed(tmp_path / "none.npz", IMAGES[:0])
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "nothing.npz").write_bytes(b"")
    flipped = bytearray(whole)
    flipped[200] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w", zipfile.ZIP_DEFLATED) as lie:
        data = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 333, 3)}
        np.lib.format.write_array_header_1_0(data, shape)
        lie.writestr("arr_0.npy", data.getvalue() + bytes(180_000))
    for name in ("empty", "none.npz", "cut.npz", "nothing.npz", "flipped.npz", "lie.npz"):
        assert main(["fid", str(folder), str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("dd2-fast: error: reference: expected ") and error.count("\n") == 1
        assert str(tmp_path / name) in error
    argv = ["fid", str(archive), str(folder), "--max-bytes"]
    assert main([*argv, "100"]) == 2
    assert "images: expected at most 100 bytes once unpacked (max_bytes), got " in (
        capsys.readouterr().err
    )
    assert calls == [] and main([*argv, "1000"]) == 0
