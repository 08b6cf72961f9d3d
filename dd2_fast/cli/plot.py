"""`dd2-fast plot`: the curves of a run, finished or not, as one picture."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .picture import check_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..training.watch import Line

# Panels in their order, by the part of a name before "/"; a plain name that is none is a loss.
PANELS = {
    "loss": "loss",
    "grad": "gradient norm",
    "lr": "learning rate",
    "gap": "FCS to GTS gap",
    "images_per_second": "images a second",
}
_COLUMNS, _PANEL_WIDTH, _PANEL_HEIGHT = 2, 7.0, 3.4
_SMOOTHED_OVER = 50  # a point's weight falls by e over this share of its stage's points
_LOG_FROM = 20.0  # ratio of the extremes from which an axis is logarithmic
_LABELLED_FROM = 0.04  # share of the width that a stage's name needs

# Of a panel, by name: one piece (x [n], y [n]) a stage.
Curves = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "plot",
        help="draw the curves of a training run",
        description="Draw what a run has logged so far: losses, gradient norms, learning rates, "
        "the gap between FCS and GTS and images a second, raw and smoothed, with the stages "
        "marked.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--out", type=Path, help="picture to write (default RUN/curves.png)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture and say where it is."""
    from ..checkpoints.files import write_atomic
    from ..checkpoints.locks import locked
    from ..training.watch import LOG, read_log

    log = arguments.folder / LOG
    if not log.is_file():
        raise FileNotFoundError(f"RUN: expected the folder of a training run, found no '{log}'")
    out = arguments.out or arguments.folder / "curves.png"
    check_png(out)
    lines = read_log(log)
    if not any(line.values for line in lines):
        raise ValueError(f"RUN: expected a log with values, '{log}' has none yet")
    picture = io.BytesIO()
    figure = draw(lines, arguments.folder.resolve().name)
    figure.savefig(picture, format="png", dpi=110)
    with locked(out):
        write_atomic(out, picture.getvalue())
    print(f"wrote {out}: {len(lines)} lines, up to step {lines[-1].step} of {lines[-1].stage}")
    return 0


def draw(lines: Sequence[Line], title: str) -> Figure:
    """Return a figure with a panel for each group of names that the lines have."""
    figure_class, canvas_class = _matplotlib()
    panels, stages = collect(lines)
    rows = -(-len(panels) // _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    figure = figure_class(
        figsize=(_PANEL_WIDTH * columns, _PANEL_HEIGHT * rows + 0.5), layout="constrained"
    )
    canvas_class(figure)  # savefig needs one; pyplot, which is global state, would make another
    figure.suptitle(title)
    for place, (group, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_panel(axes, group, curves, stages)
        axes.set_title(PANELS.get(group, group), loc="left", pad=14)
    return figure


def collect(lines: Sequence[Line]) -> tuple[dict[str, Curves], dict[str, tuple[int, int]]]:
    """Return the panels' curves, and where along the axis each stage begins and ends.

    Stages follow one another in the order of the log; a step of the second comes after all the
    steps of the first.
    """
    lengths: dict[str, int] = {}
    for line in lines:
        lengths[line.stage] = max(lengths.get(line.stage, 0), line.step)
    ends = np.cumsum(list(lengths.values())).tolist()
    stages = {s: (end - lengths[s], end) for s, end in zip(lengths, ends, strict=True)}
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.values.items():
            x = stages[line.stage][0] + line.step
            points.setdefault((name, line.stage), []).append((x, value))
    panels: dict[str, Curves] = {}
    for (name, _), piece in points.items():
        x, y = np.array(piece, dtype=np.float64).T
        panels.setdefault(group_of(name), {}).setdefault(name, []).append((x, y))
    order = [*PANELS, *(group for group in panels if group not in PANELS)]
    return {group: panels[group] for group in order if group in panels}, stages


def group_of(name: str) -> str:
    """Return the panel of a name."""
    group, slash, _ = name.partition("/")
    return group if slash or name in PANELS else "loss"


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the exponential average up to each value; one that is not finite adds nothing."""
    decay = np.exp(-1 / max(len(values) / _SMOOTHED_OVER, 1e-9))
    mean = weight = 0.0
    averages = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean = decay * mean + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        if weight > 0:
            averages[i] = mean / weight
    return averages


def _draw_panel(axes: Any, group: str, curves: Curves, stages: dict[str, tuple[int, int]]) -> None:
    for i, (name, pieces) in enumerate(curves.items()):
        for k, (x, y) in enumerate(pieces):
            label = name.partition("/")[2] or name
            axes.plot(x, y, color=f"C{i % 10}", alpha=0.3, linewidth=0.8, marker=_marker(x))
            axes.plot(x, smooth(y), color=f"C{i % 10}", label=label if k == 0 else None)
    values = np.concatenate([y for pieces in curves.values() for _, y in pieces])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > _LOG_FROM * values.min():
        axes.set_yscale("log")
    whole = max(end for _, end in stages.values())
    for stage, (start, end) in stages.items():
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        if end - start >= _LABELLED_FROM * whole:
            place = {"transform": axes.get_xaxis_transform(), "va": "bottom", "clip_on": False}
            axes.text(start, 1.01, stage, fontsize=7, color="0.4", **place)
    axes.set_xlim(0, max(whole, 1))
    axes.set_xlabel("steps of all stages")
    if list(curves) != [group]:  # else the title says it
        axes.legend(fontsize=8, loc="best")


def _marker(x: np.ndarray) -> str | None:
    """A line of a single point would not be seen."""
    return "." if len(x) == 1 else None


def _matplotlib() -> tuple[Any, Any]:
    """Return the classes of a figure and of the canvas that draws it without a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture is drawn by matplotlib, which is not installed: "
            "pip install 'dd2-fast[train]'"
        ) from error
    return Figure, FigureCanvasAgg
