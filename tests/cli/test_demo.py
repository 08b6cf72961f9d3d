"""The demo on the bundled model: its picture, its tables, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dd2_fast
from dd2_fast.cli import main
from dd2_fast.cli.picture import Panel, draw_panels, tile

ROWS = ("real, tokenized", "teacher", "one step", "set prediction", "stage 1, one step")


@pytest.mark.slow
def test_demo_writes_the_picture_and_the_tables(tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "demo.png"
    assert main(["demo", "--out", str(out), "--samples", "500", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    picture = np.asarray(Image.open(out).convert("L"))
    assert picture.shape[1] > 3 * 10 * 8 * 6
    for images in (picture[80:480, 30:500], picture[-200:, 30:500]):
        assert images.min() < 30 and images.max() > 220
    speed, quality = text.split("wrote ")
    assert "speed-up" in speed and " ms" not in quality
    # The picture says what the table says, to a digit less, and holds it as text.
    said = Image.open(out).text["Description"].splitlines()
    for row, line in zip(("teacher", "one step"), said, strict=False):
        printed = float(re.search(rf"^{row} +\d+ +\d+ +([\d.]+)", speed, re.M)[1])
        written = float(re.search(r", ([\d.]+) ms for one image", line)[1])
        assert abs(written - printed) < 0.051
    assert len(said) == 6 and said[3].startswith("4 steps, ")
    for row in ROWS:
        values = next(line for line in quality.splitlines() if line.startswith(row + " "))
        accuracy, fd, fd_class, fd_pixel, nll = map(float, values[len(row) :].split())
        assert 0 <= accuracy <= 1 and min(fd, fd_class, fd_pixel, nll) > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "{tmp}/demo.jpg"], "--out: expected a name that ends in .png"),
        (["--out", "{tmp}/folder.png"], "is a folder"),
        (["--out", "{tmp}/file/demo.png"], "cannot write to the folder"),
        (["--samples", "3"], "--samples: expected an integer in 20..1000000, got 3"),
        (["--model", "nonesuch"], "model: expected a bundled name 'digits'"),
    ],
)
def test_refusals_come_before_any_work(tmp_path, capsys, monkeypatch, argv, message) -> None:
    def no_work(*arguments) -> None:
        raise AssertionError("worked before refusing")

    monkeypatch.setattr("dd2_fast.cli.demo._speed", no_work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert main(["demo", *(a.format(tmp=tmp_path) for a in argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dd2-fast: error: ") and error.count("\n") == 1
    assert message in error


def test_a_missing_scikit_learn_names_the_extra(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert main(["demo", "--out", str(tmp_path / "a.png")]) == 2
    assert "dd2-fast[demo]" in capsys.readouterr().err


def test_a_truncated_bundle_is_one_line(tmp_path, capsys) -> None:
    source = Path(dd2_fast.__file__).parent / "assets" / "digits"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "teacher.safetensors").write_bytes(whole[: len(whole) // 2])
    assert main(["demo", "--model", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert "teacher.safetensors" in error and "truncated" in error and error.count("\n") == 1


def test_tiles_lie_row_by_row() -> None:
    images = np.zeros((3, 1, 2, 3), np.uint8)
    images[0, 0, 1] = (255, 0, 0)
    images[2] = 7
    picture = np.asarray(tile(images, columns=2, scale=2, gap=1))
    assert picture.shape == (2 + 1 + 2, 4 + 1 + 4, 3)
    assert (picture[:2, 2:4] == (255, 0, 0)).all() and (picture[:2, :2] == 0).all()
    assert (picture[3:, :4] == 7).all() and (picture[3:, 5:] == 255).all()
    panels = draw_panels([Panel("a", "b", images)] * 2, columns=2, height=2)
    assert panels.width == 2 * 11 + 3 * 24


def test_readme_quotes_what_the_committed_picture_says() -> None:
    """Between the marks, word for word: picture and text are of one run."""
    package = Path(dd2_fast.__file__).parent
    picture, readme = package / "assets" / "demo.png", package.parent / "README.md"
    if not picture.exists() or not readme.exists():
        pytest.skip("no checkout")
    said = Image.open(picture).text["Description"].splitlines()
    for teacher, student, steps in ((0, 1, 16), (3, 4, 4)):
        assert re.fullmatch(rf"{steps} steps, [\d.]+ ms for one image", said[teacher])
        assert re.fullmatch(r"1 step, [\d.]+ ms for one image, [\d.]+x faster", said[student])
    marked = re.search(r"<!-- demo.png -->(.*?)<!-- /demo.png -->", readme.read_text(), re.S)
    if marked is None:
        pytest.skip("README quotes no number of the picture")
    quoted = " ".join(marked[1].split())
    assert all(said[i] in quoted for i in (0, 1, 3, 4))
