"""The plots of the results page: how near the limits, and how time grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Operators, in the order of their colours.
_COLOURS = {"conditional_score": "C0", "csd_loss": "C1", "nearest_code": "C2",
            "linear_conditional_score": "C3"}  # fmt: skip
_PLAIN = ("eager", "reference")


@dataclass(frozen=True)
class Plot:
    """``select`` says which rows it has something to show of; ``paint`` draws them."""

    title: str
    select: Callable[[list[Row]], list[Row]]
    paint: Callable[[Figure, list[Row]], None]
    size: tuple[float, float]


def draw(plot: Plot, rows: list[Row], path: Path) -> None:
    """Write the picture of ``rows``; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=plot.size, layout="constrained")
    plot.paint(figure, plot.select(rows))
    # Without dates and versions, so that the same numbers are the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _counted(rows: list[Row]) -> list[Row]:
    """Operators with counted bytes and FLOPs: plain code and the fastest of ours, of each group."""
    shown: dict[tuple[str, bool], Row] = {}
    for row in rows:
        if row.words[0] not in _COLOURS or not _has_limits(row):
            continue
        key = (row.group, row.variant in _PLAIN)
        if row.variant in ("compile", "torch", "cdist", "sklearn", "head_then_score"):
            continue
        if key not in shown or row.median < shown[key].median:
            shown[key] = row
    return list(shown.values())


def _has_limits(row: Row) -> bool:
    names = ("bytes", "flops", "copy_bandwidth", "matrix_rate")
    return all(row.extra.get(name) for name in names)


def _roofline(figure: Figure, rows: list[Row]) -> None:
    axes = figure.add_subplot()
    intensities = [row.extra["flops"] / row.extra["bytes"] for row in rows]
    bandwidth = max(row.extra["copy_bandwidth"] for row in rows)
    rate = max(row.extra["matrix_rate"] for row in rows)
    ends = [min(intensities) / 2, max(*intensities, rate / bandwidth) * 2]
    corner = rate / bandwidth
    xs = sorted([*ends, corner])
    limit = [min(bandwidth * x, rate) / 1e9 for x in xs]
    axes.plot(xs, limit, color="0.4", lw=1, label="highest rates seen")
    for plain, marker in ((False, "o"), (True, "x")):
        for bench, colour in _COLOURS.items():
            own = [
                (x, row)
                for x, row in zip(intensities, rows, strict=True)
                if row.words[0] == bench and (row.variant in _PLAIN) == plain
            ]
            if own:
                axes.plot(
                    [x for x, _ in own],
                    [row.extra["flops"] / row.median / 1e9 for _, row in own],
                    marker, color=colour, label=f"{bench}, {'eager' if plain else 'fused'}",
                )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="counted FLOP a byte", ylabel="GFLOP/s")
    axes.set_title("Work done against the highest rates seen", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _scaled(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.extra.get("scaling")]


def _scaling(figure: Figure, rows: list[Row]) -> None:
    panels: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        scaling: dict[str, Any] = row.extra["scaling"]
        panel = panels.setdefault((scaling["of"], scaling["axis"]), {})
        panel.setdefault(row.variant, []).append(row)
    for i, ((of, axis), lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), i)
        for variant, own in lines.items():
            own = sorted(own, key=lambda row: row.extra["scaling"]["value"])
            axes.errorbar(
                [row.extra["scaling"]["value"] for row in own],
                [row.median * 1e3 for row in own],
                yerr=[row.iqr * 1e3 / 2 for row in own],
                marker="o", ms=4, capsize=2,
                color="0.5" if variant in _PLAIN else "C0", label=variant,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms")
        axes.set_title(of, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


PLOTS = {
    "roofline": Plot("Roofline", _counted, _roofline, (6.0, 4.2)),
    "scaling": Plot("Scaling", _scaled, _scaling, (10.0, 3.2)),
}
