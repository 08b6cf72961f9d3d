"""Large jobs: resumed, distributed and archived, always the sampler's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from forks import command, run_together
from PIL import Image

from dd2_fast.cli import main
from dd2_fast.sampling import NpzFile, PngFolder, Sampler, balanced_labels, run_job

LABELS = balanced_labels(23, 10)


@pytest.fixture
def sampler(generator) -> Sampler:
    return Sampler(generator, batch_size=4)


@pytest.fixture
def expected(generator) -> np.ndarray:
    return Sampler(generator)(LABELS, seed=5, start_index=2, output="np")


def read_folder(folder: Path) -> np.ndarray:
    assert {p.name for p in folder.iterdir() if p.suffix != ".png"} == {".job.json"}
    names = sorted(p.name for p in folder.glob("*.png"))
    assert names == [f"{2 + i:06d}_{y}.png" for i, y in enumerate(LABELS)]
    return np.stack([np.asarray(Image.open(folder / name)) for name in names])


def read_archive(path: Path) -> np.ndarray:
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with np.load(path) as archive:
        assert archive.files == ["arr_0", "arr_1"] and archive["arr_1"].tolist() == LABELS
        assert archive["arr_0"].dtype == np.uint8
        return archive["arr_0"]


SINKS = {
    "folder": (lambda path: PngFolder(path / "images"), lambda path: read_folder(path / "images")),
    "archive": (lambda path: NpzFile(path / "a.npz"), lambda path: read_archive(path / "a.npz")),
}
SINK = pytest.mark.parametrize("name", SINKS)


def assert_same(images: np.ndarray, expected: np.ndarray) -> None:
    """Batches of other sizes may round an 8-bit value to the other side."""
    assert images.shape == expected.shape
    assert np.abs(images.astype(int) - expected).max() <= 1


@SINK
def test_a_job_is_the_samplers_images(name, sampler, expected, tmp_path) -> None:
    make, read = SINKS[name]
    run_job(sampler, LABELS, make(tmp_path), seed=5, start_index=2)
    assert_same(read(tmp_path), expected)


@SINK
@pytest.mark.parametrize("chunks_before_the_kill", [0, 3, 5])
def test_a_killed_job_goes_on(
    name, chunks_before_the_kill, sampler, generator, expected, tmp_path, monkeypatch
) -> None:
    """The second run has another batch size, and draws nothing twice."""
    make, read = SINKS[name]
    drawn: list[int] = []
    sink = make(tmp_path)
    write = sink.write

    def killed(indices, labels, images):
        if len(drawn) == chunks_before_the_kill:
            (sink.folder / ".half.png.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        drawn.extend([indices.start])
        write(indices, labels, images)

    monkeypatch.setattr(sink, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(sampler, LABELS, sink, seed=5, start_index=2)
    again = make(tmp_path)
    write_again = again.write

    def counted(indices, labels, images):
        drawn.append(indices.start)
        write_again(indices, labels, images)

    monkeypatch.setattr(again, "write", counted)
    run_job(Sampler(generator, batch_size=7), LABELS, again, seed=5, start_index=2)
    assert drawn == [2 + first for first in range(0, 23, 4)]
    assert_same(read(tmp_path), expected)


def test_a_lost_image_is_drawn_anew(sampler, expected, tmp_path) -> None:
    run_job(sampler, LABELS, PngFolder(tmp_path), seed=5, start_index=2)
    (tmp_path / "000007_5.png").unlink()
    run_job(sampler, LABELS, PngFolder(tmp_path), seed=5, start_index=2)
    assert_same(read_folder(tmp_path), expected)


def test_another_job_in_the_same_place_is_refused(sampler, tmp_path, monkeypatch) -> None:
    sink = PngFolder(tmp_path)
    monkeypatch.setattr(sink, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_job(sampler, LABELS, sink, seed=5, settings={"model": "a"})
    with pytest.raises(ValueError, match=r"another job, with other model \(.*, seed"):
        run_job(sampler, LABELS, PngFolder(tmp_path), seed=6, settings={"model": "b"})


@SINK
def test_a_job_may_be_extended(name, sampler, generator, expected, tmp_path, monkeypatch) -> None:
    """An unfinished one too, whose last batch was a part."""
    make, read = SINKS[name]
    sink = make(tmp_path)
    monkeypatch.setattr(sink, "finish", lambda labels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_job(sampler, LABELS[:10], sink, seed=5, start_index=2)
    with pytest.raises(ValueError, match="another job, with other labels"):
        run_job(sampler, [*LABELS[:9], 1, 1], make(tmp_path), seed=5, start_index=2)
    run_job(Sampler(generator, batch_size=7), LABELS, make(tmp_path), seed=5, start_index=2)
    assert_same(read(tmp_path), expected)


def test_arguments_are_checked_before_anything_is_written(sampler, tmp_path) -> None:
    with pytest.raises(ValueError, match="labels: expected values in 0..9, got 10"):
        run_job(sampler, [0, 10], PngFolder(tmp_path))
    with pytest.raises(ValueError, match="seed: expected an integer of 64 bits"):
        run_job(sampler, [0], PngFolder(tmp_path), seed=2**64)
    with pytest.raises(ValueError, match="start_index: expected at least 0, got -1"):
        run_job(sampler, [0], PngFolder(tmp_path), start_index=-1)
    assert not any(tmp_path.iterdir())
    run_job(sampler, np.array([0]), PngFolder(tmp_path), seed=np.int64(1))
    assert (tmp_path / "000000_0.png").is_file()


def test_balanced_labels() -> None:
    assert balanced_labels(5, 3) == [0, 1, 2, 0, 1]
    shuffled = balanced_labels(1000, 10, shuffled_by=1)
    assert np.bincount(shuffled).tolist() == [100] * 10
    assert shuffled != balanced_labels(1000, 10) and shuffled != sorted(shuffled)
    assert shuffled == balanced_labels(1000, 10, shuffled_by=1)


def test_archive_of_the_command_is_shuffled_by_the_seed(tmp_path, capsys) -> None:
    out = tmp_path / "all.npz"
    assert main(["sample", "--num", "30", "--seed", "3", "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == f"wrote 30 images to {out}\n"
    labels = balanced_labels(30, 10, shuffled_by=3)
    with np.load(out) as archive:
        assert archive["arr_1"].tolist() == labels
        assert_same(archive["arr_0"], Sampler("digits")(labels, seed=3, output="np"))


def test_two_processes_share_a_job(tmp_path) -> None:
    """As torchrun starts them: disjoint indices, one result."""
    out = tmp_path / "a.npz"
    argv = ["sample", "--num", "23", "--batch-size", "4", "--out", str(out), "--quiet"]
    assert run_together(command, argv, folder=tmp_path) == [f"wrote 23 images to {out}\n", ""]
    labels = balanced_labels(23, 10, shuffled_by=0)
    with np.load(out) as archive:
        assert archive["arr_1"].tolist() == labels
        assert_same(archive["arr_0"], Sampler("digits")(labels, output="np"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_two_processes_make_one_picture(tmp_path) -> None:
    out = tmp_path / "a.png"
    argv = ["sample", "--num", "3", "--out", str(out), "--quiet"]
    assert run_together(command, argv, folder=tmp_path) == [f"wrote 3 images to {out}\n", ""]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert Image.open(out).size == (3 * 8 + 2 * 3, 8)
