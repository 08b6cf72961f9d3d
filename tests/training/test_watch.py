"""The log of a run: flushed, repaired after a kill, rewound to a resumed position; pictures."""

from __future__ import annotations

import errno
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from optional import require
from PIL import Image

from dd2_fast.training.watch import RunLog, image_grid, read_log

STAGES = {"stage1": 6, "stage2": 8}


def train(log: RunLog, done: list[str], stage: str | None, step: int, stop=("", 0)) -> None:
    """Log two of three steps of every stage from a position on, as a run would."""
    for name, steps in STAGES.items():
        for i in range(step if name == stage else 0, steps):
            if name not in done and i % 3 < 2:
                log.scalars(name, i + 1, {"fcs": i / 7, "lr/all": torch.tensor(0.5**i)})
            if (name, i + 1) == stop:
                return


def without_time(folder: Path) -> list[dict]:
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path) -> None:
    before = time.time()
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        log.scalars("stage1", 3, {"gts": torch.tensor(0.25), "gap": 2, "bad": math.inf})
        (line,) = (json.loads(t) for t in (tmp_path / "run/log.jsonl").read_text().splitlines())
    assert before - 1 < line.pop("time") < time.time() + 1
    values = {"gts": 0.25, "gap": 2.0, "bad": None}
    assert line == {"stage": "stage1", "step": 3, "values": values}
    (read,) = read_log(tmp_path / "run/log.jsonl")
    assert read.stage == "stage1" and read.step == 3
    assert read.values["gap"] == 2.0 and math.isnan(read.values["bad"])
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(
    ("killed", "done", "stage", "step"),
    [
        (("stage1", 5), [], "stage1", 4),
        (("stage1", 5), [], None, 0),
        (("stage2", 7), [], "stage1", 2),
        (("stage2", 7), ["stage1"], None, 0),
        (("stage2", 7), ["stage1"], "stage2", 0),
        (("stage2", 7), ["stage1"], "stage2", 5),
        (("stage2", 8), ["stage1", "stage2"], None, 0),
    ],
)
def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path, killed, done, stage, step) -> None:
    with RunLog(tmp_path / "whole", tensorboard=False) as log:
        train(log, [], None, 0)
    with RunLog(tmp_path / "killed", tensorboard=False) as log:
        train(log, [], None, 0, stop=killed)
    with open(tmp_path / "killed/log.jsonl", "ab") as file:
        file.write(b'{"stage": "stage2", "st')
    with RunLog(tmp_path / "killed", tensorboard=False) as log:
        log.rewind(done, stage, step)
        train(log, done, stage, step)
    assert without_time(tmp_path / "killed") == without_time(tmp_path / "whole")


def test_a_log_cut_anywhere_is_read_and_gone_on_with(tmp_path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        train(log, [], None, 0, stop=("stage1", 2))
    path = tmp_path / "log.jsonl"
    data, lines = path.read_bytes(), read_log(path)
    assert len(lines) == 2
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        assert read_log(path) == lines[:whole]
        with RunLog(tmp_path, tensorboard=False) as log:
            log.scalars("stage1", 9, {})
        assert [line.step for line in read_log(path)] == [1, 2][:whole] + [9]


def test_a_damaged_line_is_named(tmp_path) -> None:
    for text in ('{"stage": 1', "[]", '{"stage": "a", "step": 1, "time": 0, "values": {"x": "y"}}'):
        (tmp_path / "log.jsonl").write_text(f"{text}\n{{}}\n")
        with pytest.raises(ValueError, match=r"log.jsonl, line 1: expected a line of a run's log"):
            read_log(tmp_path / "log.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_an_error_with_the_file_and_the_reason(tmp_path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    log._file.close()
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (closed by close)
    with pytest.raises(OSError, match="cannot write: No space left") as raised:
        log.scalars("stage1", 1, {"fcs": 1.0})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "log.jsonl")
    log.close()


def test_only_an_enabled_log_writes(tmp_path) -> None:
    with RunLog(tmp_path / "run", tensorboard=True, enabled=False) as log:
        train(log, [], None, 0)
        log.images("ema", 1, np.zeros((2, 2, 3), np.uint8))
        log.rewind([], None, 0)
    assert not (tmp_path / "run").exists()


def test_pictures(tmp_path) -> None:
    pixels = torch.randint(256, (5, 7, 3), dtype=torch.uint8)
    with RunLog(tmp_path, tensorboard=False) as log:
        log.images("ema", 12, pixels)
        log.images("ema", 3000, pixels.numpy() // 2)
        for wrong, message in (
            (pixels.float(), "grid: expected dtype uint8, got float32"),
            (pixels[..., :2], r"grid: expected shape \['H', 'W', 3\], got \[5, 7, 2\]"),
        ):
            with pytest.raises((TypeError, ValueError), match=message):
                log.images("ema", 1, wrong)
        with pytest.raises(ValueError, match="name: expected letters.*got '../ema'"):
            log.images("../ema", 1, pixels)
    files = sorted((tmp_path / "samples").iterdir())
    assert [f.name for f in files] == ["ema-0000012.png", "ema-0003000.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), pixels.numpy())


def test_image_grid() -> None:
    images = torch.rand(5, 3, 4, 6) * 1.2 - 0.1
    grid = image_grid(images, columns=3, gap=2)
    assert grid.shape == (4 + 2 + 4, 6 + 2 + 6 + 2 + 6, 3) and grid.dtype == np.uint8
    for i in range(5):
        cell = grid[6 * (i // 3) :, 8 * (i % 3) :][:4, :6].astype(float)
        wanted = images[i].permute(1, 2, 0).clamp(0, 1).numpy() * 255
        assert np.abs(cell - wanted).max() <= 0.5001
    assert (grid[4:6] == 255).all() and (grid[6:, 16:] == 255).all()
    assert image_grid(images, columns=9).shape == (4, 5 * 7 - 1, 3)
    with pytest.raises(ValueError, match=r"images: expected .* got \[3, 4, 6\] in 2"):
        image_grid(images[0], columns=2)


def test_without_tensorboard(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with RunLog(tmp_path) as log:
        log.scalars("stage1", 1, {"fcs": 1.0})
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    with pytest.raises(ImportError, match=r"not installed: pip install 'dd2-fast\[train\]'"):
        RunLog(tmp_path, tensorboard=True)


def test_tensorboard_shows_each_step_once_after_a_resumption(tmp_path) -> None:
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.full((4, 6, 3), 200, np.uint8)
    with RunLog(tmp_path, tensorboard=True) as log:
        train(log, [], None, 0, stop=("stage2", 7))
    with RunLog(tmp_path) as log:
        log.rewind(["stage1"], "stage2", 3)
        train(log, ["stage1"], "stage2", 3)
        log.images("ema", 5, pixels)
    logged = {name: [i + 1 for i in range(steps) if i % 3 < 2] for name, steps in STAGES.items()}
    for stage, steps in logged.items():
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        assert events.Tags()["scalars"] == ["fcs", "lr/all"]
        assert [e.step for e in events.Scalars("fcs")] == steps
        assert [e.value for e in events.Scalars("lr/all")] == [0.5 ** (i - 1) for i in steps]
    events = EventAccumulator(str(tmp_path / "tensorboard/samples.ema")).Reload()
    (image,) = events.Images("ema")
    assert (image.step, image.width, image.height) == (5, 6, 4)
