"""What a run tells while it trains: values as JSON lines and TensorBoard events, pictures."""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.files import check_writable, remove_leftovers, write_atomic

LOG = "log.jsonl"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
_LAST_STEP = 1 << 53  # beyond it floats, which a plot has, are not exact
_NO_LINE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Line:
    """One line of a log: values at a stage's step, at a time (seconds since 1970)."""

    stage: str
    step: int
    time: float
    values: dict[str, float]


class RunLog:
    """Writes ``folder/log.jsonl``, PNG files in ``folder/samples`` and TensorBoard's events.

    A line of the log is ``{"stage", "step", "time", "values": {name: number or null}}``, null for a
    NaN or infinity, and is flushed at once. ``step`` counts the stage's finished steps, as
    ``RunState.step`` does. A log that a kill left with half a line is repaired. TensorBoard shows
    each stage as a run, ``folder/tensorboard/STAGE``.

    Names choose the panel in ``dd2-fast plot``: ``grad/generator`` is in ``grad`` (gradient norms),
    ``lr/generator`` in ``lr``, ``gap`` and ``images_per_second`` in their own, a plain name as
    ``fcs`` in the losses.

    Args:
        folder: the run's. tensorboard: whether to write events; None: if it is installed.
        enabled: False for all but the first process: nothing is written.

    Raises:
        ImportError: ``tensorboard`` is True and it is not installed.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, tensorboard: bool | None = None, *, enabled: bool = True
    ) -> None:
        self.folder, self.enabled = Path(folder), enabled
        self._events: Any = _summary_writer(tensorboard) if enabled else None
        self._writers: dict[str, Any] = {}
        self._file: IO[bytes] | None = None
        if enabled:
            check_writable(self.folder)
            remove_leftovers(self.folder / SAMPLES)
            _cut_half_line(self.folder / LOG)
            self._file = self._open()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, stage: str, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Log ``values`` after ``step`` steps of ``stage``.

        Raises:
            OSError: the line cannot be written, as in a folder that is gone; the message has the
                file and the reason.
        """
        if not self.enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        line = {"stage": stage, "step": step, "time": round(time.time(), 3), "values": finite}
        self._append(json.dumps(line, allow_nan=False))
        if self._events is not None:
            writer = self._writer(stage, step)
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

    def images(self, name: str, step: int, grid: np.ndarray | Tensor) -> None:
        """Keep a picture, uint8 ``[H, W, 3]``, as ``samples/NAME-STEP.png`` and as an event.

        Raises:
            ValueError: another shape, or a name that is no file name. TypeError: another dtype.
        """
        if not self.enabled:
            return
        pixels = grid.cpu().numpy() if isinstance(grid, Tensor) else grid
        if pixels.dtype != np.uint8:
            raise TypeError(f"grid: expected dtype uint8, got {pixels.dtype}")
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"grid: expected shape ['H', 'W', 3], got {list(pixels.shape)}")
        if not _NAME.fullmatch(name):
            raise ValueError(f"name: expected letters, digits, '_', '-' and '.', got {name!r}")
        from PIL import Image

        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        (self.folder / SAMPLES).mkdir(exist_ok=True)
        write_atomic(self.folder / SAMPLES / f"{name}-{step:07d}.png", data.getvalue())
        if self._events is not None:
            writer = self._writer(f"{SAMPLES}.{name}", step)
            writer.add_image(name, pixels, step, dataformats="HWC")

    def rewind(self, stage_done: Collection[str], stage: str | None, step: int) -> None:
        """Drop what a resumed run will log again: all that is after its position.

        Args:
            stage_done: the stages behind it. stage: the one in progress, None between two.
            step: its finished steps.
        """
        if self._file is None:
            return
        self._file.close()
        path = self.folder / LOG
        texts = path.read_bytes().splitlines(keepends=True)
        kept = b"".join(
            text
            for text, line in zip(texts, read_log(path), strict=True)
            if line.stage in stage_done or (line.stage == stage and line.step <= step)
        )
        write_atomic(path, kept)
        self._file = self._open()

    def close(self) -> None:
        """Write out what TensorBoard still holds and close the files; may be called again."""
        if self._file is not None:
            self._file.close()
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _open(self) -> IO[bytes]:
        # Without a buffer, which would try a line that a full disk refused once more.
        return open(self.folder / LOG, "ab", buffering=0)

    def _append(self, text: str) -> None:
        assert self._file is not None
        data = memoryview(text.encode() + b"\n")
        try:
            if not os.fstat(self._file.fileno()).st_nlink:  # deleted: what is written is lost
                self._file.close()
                self._file = self._open()
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            path = str(self.folder / LOG)
            raise type(error)(error.errno, f"cannot write: {error.strerror}", path) from error

    def _writer(self, run: str, step: int) -> Any:
        """The events of a run; those from its first step on that a killed process left go."""
        if run not in self._writers:
            folder = self.folder / TENSORBOARD / run
            self._writers[run] = self._events(str(folder), purge_step=step)
        return self._writers[run]


def read_log(path: Path) -> list[Line]:
    """The lines of a log; a half line at its end, left by a kill, is passed over.

    Raises:
        FileNotFoundError: no such file. ValueError: a line before the last is damaged.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            break
        try:
            line = json.loads(text)
            values = {k: math.nan if v is None else float(v) for k, v in line["values"].items()}
            stage, step = line["stage"], int(line["step"])
            if not isinstance(stage, str) or not 0 <= step <= _LAST_STEP:
                raise ValueError(f"stage {stage!r}, step {step}")
            lines.append(Line(stage, step, float(line["time"]), values))
        except _NO_LINE as error:
            raise ValueError(f"{path}, line {number}: expected a line of a run's log") from error
    return lines


def image_grid(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Images ``[B, c, H, W]`` in [0, 1], c 3 or 1, row by row as one uint8 ``[H', W', 3]``, white
    between."""
    if columns < 1 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images: expected shape ['B', 3 or 1, 'H', 'W'] in at least 1 column, "
            f"got {list(images.shape)} in {columns}"
        )
    images = images.expand(-1, 3, -1, -1)
    count, _, height, width = images.shape
    rows, columns = -(-count // columns), min(columns, count)
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _cut_half_line(path: Path) -> None:
    """Cut what follows the last line break, which a kill left."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            write_atomic(path, data[:whole])


def _summary_writer(wanted: bool | None) -> Any:
    """TensorBoard's writer class, or None where it is not wanted or not there."""
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if wanted is None:
            return None
        raise ImportError(
            "tensorboard=True needs TensorBoard, which is not installed: "
            "pip install 'dd2-fast[train]'"
        ) from error
    return SummaryWriter
