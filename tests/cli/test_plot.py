"""`dd2-fast plot`: what is on the picture of a run's curves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from optional import require
from PIL import Image
from processes import run_python

from dd2_fast.cli import main
from dd2_fast.cli.plot import collect, draw, group_of, smooth
from dd2_fast.training.watch import Line, RunLog, read_log

PANELS = ["loss", "gradient norm", "learning rate", "FCS to GTS gap", "images a second", "memory"]


def values(step: int) -> dict[str, float]:
    return {
        "memory/peak": 3.0,
        "images_per_second": 100.0 + step,
        "fcs": 1.0 / step,
        "csd": -float(step),
        "grad/generator": 1.0 / step,
        "grad/guidance": 2.0 if step != 3 else float("nan"),
        "lr/generator": 1e-4,
        "gap": 0.1 * step,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run in its second stage, whose last line a kill has cut."""
    folder = tmp_path / "a run"
    with RunLog(folder, tensorboard=False) as log:
        for step in range(1, 41):
            log.scalars("stage1", step, {"gts": 2.0 / step, "lr/guidance": 1e-3})
        for step in range(2, 62, 2):
            log.scalars("distillation", step, values(step))
    with open(folder / "log.jsonl", "ab") as file:
        file.write(b'{"stage": "dist')
    return folder


def test_the_command_writes_a_picture(folder, capsys) -> None:
    require("matplotlib")
    assert main(["plot", str(folder)]) == 0
    out = folder / "curves.png"
    expected = f"wrote {out}: 70 lines, up to step 60 of distillation\n"
    assert capsys.readouterr().out == expected
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1300
    assert 0.5 < (pixels == 255).all(-1).mean() < 0.99, "mostly paper, not only"
    other = folder / "other.PNG"
    assert main(["plot", str(folder), "--out", str(other)]) == 0
    assert np.array_equal(np.asarray(Image.open(other).convert("RGB")), pixels)


def test_what_is_on_the_picture(folder) -> None:
    require("matplotlib")
    figure = draw(read_log(folder / "log.jsonl"), "a run")
    assert figure.get_suptitle() == "a run"
    axes = {one.get_title(loc="left"): one for one in figure.axes}
    assert list(axes) == PANELS
    texts = [text.get_text() for text in axes["loss"].get_legend().get_texts()]
    assert texts == ["gts", "fcs", "csd"]
    texts = [text.get_text() for text in axes["gradient norm"].get_legend().get_texts()]
    assert texts == ["generator", "guidance"]
    scales = [axes[name].get_yscale() for name in PANELS]
    assert scales == ["linear", "log", "linear", "log", "linear", "linear"]
    raw, smoothed = axes["images a second"].lines[:2]
    steps = np.arange(2, 62, 2)
    assert raw.get_xdata().tolist() == (40 + steps).tolist()
    assert raw.get_ydata().tolist() == (100.0 + steps).tolist()
    assert smoothed.get_ydata().tolist() == smooth(100.0 + steps).tolist()
    for one in axes.values():
        marks = [line.get_xdata()[0] for line in one.lines if line.get_linestyle() == ":"]
        assert marks == [0, 40] and one.get_xlim() == (0, 100)
        assert [text.get_text() for text in one.texts] == ["stage1", "distillation"]


@pytest.mark.slow
def test_no_global_state_of_matplotlib_is_touched(folder) -> None:
    require("matplotlib")
    code = (
        "import sys, matplotlib; from dd2_fast.cli import main\n"
        "def state():  # to read the backend would choose one, and import pyplot\n"
        "    return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = state()\n"
        f"assert main(['plot', {str(folder)!r}]) == 0\n"
        "assert state() == before and 'matplotlib.pyplot' not in sys.modules\n"
    )
    run_python("-c", code, folder=folder.parent)


def test_stages_follow_one_another() -> None:
    lines = [
        Line("a", 10, 0.0, {"fcs": 1.0}),
        Line("b", 1, 0.0, {"fcs": 2.0, "x/y": 5.0}),
        Line("b", 4, 0.0, {"fcs": 3.0}),
        Line("c", 2, 0.0, {"fcs": 4.0}),
    ]
    panels, stages = collect(lines)
    assert stages == {"a": (0, 10), "b": (10, 14), "c": (14, 16)}
    assert list(panels) == ["loss", "x"]
    pieces = [(x.tolist(), y.tolist()) for x, y in panels["loss"]["fcs"]]
    assert pieces == [([10], [1]), ([11, 14], [2, 3]), ([16], [4])]


def test_groups() -> None:
    names = ["fcs", "gap", "grad/a", "lr/a/b", "images_per_second", "loss/gts", "memory/peak"]
    groups = ["loss", "gap", "grad", "lr", "images_per_second", "loss", "memory"]
    assert [group_of(name) for name in names] == groups


def test_smoothing_is_the_weighted_mean_of_what_came_before() -> None:
    y = np.random.default_rng(0).normal(size=100)
    y[[0, 40]] = np.nan
    finite = y[np.isfinite(y)]
    means = []
    for i in range(1, len(finite) + 1):
        weights = np.exp(-1 / 2) ** np.arange(i)[::-1]
        means.append((weights * finite[:i]).sum() / weights.sum())
    expected = [np.nan, *means[:39], means[38], *means[39:]]
    np.testing.assert_allclose(smooth(y), expected, rtol=1e-12)
    assert smooth(np.array([3.0])).tolist() == [3.0]


def test_without_matplotlib(folder, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["plot", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dd2-fast: error: the picture is drawn by matplotlib, which is not")
    assert "pip install 'dd2-fast[train]'" in error and error.count("\n") == 1
    assert not (folder / "curves.png").exists()


def test_bad_arguments_are_one_line(folder, tmp_path, capsys) -> None:
    empty = tmp_path / "empty"
    RunLog(empty, tensorboard=False).close()
    for argv, message in (
        ([str(tmp_path / "absent")], "RUN: expected the folder of a training run, found no"),
        ([str(empty)], "RUN: expected a log with values"),
        ([str(folder), "--out", "curves.jpg"], "--out: expected a name that ends in .png"),
    ):
        assert main(["plot", *argv]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("dd2-fast: error: ")
        assert error.count("\n") == 1
