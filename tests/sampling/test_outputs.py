"""What a job finds where its images go: finished, damaged, lost, another's, held by another."""

from __future__ import annotations

import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from children import holding
from PIL import Image

from dd2_fast.checkpoints.locks import locked
from dd2_fast.sampling import NpzFile, PngFolder, Sampler, balanced_labels, run_job
from dd2_fast.sampling.sinks import Sink

LABELS = balanced_labels(10, 10)


@pytest.fixture
def sampler(generator) -> Sampler:
    return Sampler(generator, batch_size=4)


@pytest.fixture
def expected(sampler) -> np.ndarray:
    return sampler(LABELS, seed=5, output="np")


def make(name: str, folder: Path) -> Sink:
    return NpzFile(folder / "a.npz") if name == "archive" else PngFolder(folder / "images")


SINK = pytest.mark.parametrize("name", ["folder", "archive"])


def draw(sampler: Sampler, sink: Sink, labels: list[int] = LABELS, **settings) -> list[int]:
    """Run the job and return the first index of every chunk that was drawn."""
    drawn, write = [], sink.write

    def counted(indices, labels, images):
        drawn.append(indices.start)
        write(indices, labels, images)

    sink.write = counted
    run_job(sampler, labels, sink, seed=5, settings=settings)
    return drawn


def stop(sampler: Sampler, sink: Sink, labels: list[int] = LABELS) -> None:
    """Draw everything, but stop as a kill would before the result is made."""

    def killed(labels: list[int]) -> None:
        raise KeyboardInterrupt

    sink.finish = killed
    with pytest.raises(KeyboardInterrupt):
        draw(sampler, sink, labels)


def images(name: str, folder: Path) -> np.ndarray:
    if name == "archive":
        with np.load(folder / "a.npz") as archive:
            return archive["arr_0"]
    files = sorted((folder / "images").glob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Batches of other sizes may round an 8-bit value to the other side."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@SINK
def test_two_jobs_at_once(name, sampler, expected, tmp_path) -> None:
    sink = make(name, tmp_path)
    with (
        holding(locked(sink.output)) as child,
        pytest.raises(BlockingIOError, match=f"process {child}"),
    ):
        draw(sampler, make(name, tmp_path))
    assert draw(sampler, make(name, tmp_path)) == [0, 4, 8]
    assert_same(images(name, tmp_path), expected)


def test_a_finished_archive_is_kept(sampler, tmp_path) -> None:
    path = tmp_path / "a.npz"
    draw(sampler, NpzFile(path), model="a")
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    assert draw(sampler, NpzFile(path), model="a") == []
    assert path.stat().st_mtime_ns == when
    for labels, settings, message in (
        (LABELS, {"model": "b"}, r"a.npz holds another job, with other model \(there a, now b\);"),
        (LABELS[:4], {"model": "a"}, r"labels \(there of 10 images, now of 4 images\);"),
        (LABELS[::-1], {"model": "a"}, r"labels \(of 10 images\);"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(sampler, NpzFile(path), labels, **settings)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_same_job_makes_the_same_bytes(sampler, generator, tmp_path, monkeypatch) -> None:
    """On another day, in other chunks, after a kill."""
    draw(sampler, NpzFile(tmp_path / "a.npz"))
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    stop(sampler, NpzFile(tmp_path / "b.npz"))
    draw(Sampler(generator, batch_size=7), NpzFile(tmp_path / "b.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_finished_archive_may_be_extended(sampler, expected, tmp_path) -> None:
    draw(sampler, NpzFile(tmp_path / "a.npz"), LABELS[:6])
    assert draw(sampler, NpzFile(tmp_path / "a.npz")) == [4, 8], "a whole chunk is taken over"
    assert_same(images("archive", tmp_path), expected)
    draw(sampler, NpzFile(tmp_path / "b.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_kill_after_the_archive_is_made(sampler, tmp_path) -> None:
    """Its parts, some of them, are still there."""
    stop(sampler, NpzFile(tmp_path / "a.npz"))
    shutil.copytree(tmp_path / "a.npz.parts", tmp_path / "kept")
    draw(sampler, NpzFile(tmp_path / "a.npz"))
    (tmp_path / "kept").rename(tmp_path / "a.npz.parts")
    (tmp_path / "a.npz.parts" / "000000004.npy").unlink()
    assert draw(sampler, NpzFile(tmp_path / "a.npz")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_archive_of_others_is_refused(sampler, tmp_path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, np.zeros((10, 16, 16, 3), np.uint8), np.zeros(10, np.int64))
    draw(sampler, NpzFile(tmp_path / "own.npz"))
    own = (tmp_path / "own.npz").read_bytes()
    for content in (path.read_bytes(), b"", b"text", own[:-1], own[: len(own) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz: expected no file there, or an archive of"):
            draw(sampler, NpzFile(path))
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="expected a file to write"):
        NpzFile(path)


def test_an_archive_damaged_anywhere_is_drawn_anew_or_refused(sampler, expected, tmp_path) -> None:
    path = tmp_path / "a.npz"
    draw(sampler, NpzFile(path))
    whole = path.read_bytes()
    healed = 0
    for position in range(0, len(whole), 37):
        path.write_bytes(whole)
        flip(path, position)
        try:
            drawn = draw(sampler, NpzFile(path))
        except ValueError as error:
            assert str(error).startswith(("out: ", f"{path}: "))
            continue
        assert path.read_bytes() == whole or not drawn, position
        with np.load(path) as archive:
            assert archive["arr_1"].tolist() == LABELS, position
            assert_same(archive["arr_0"], expected)
        healed += drawn == [0, 4, 8]
    assert healed > 20, "most of it is images"


DAMAGES = [(n, d) for n in ("folder", "archive") for d in ("flip", "cut", "empty", "text")]


@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, ("archive", "shape")])
def test_damaged_parts_are_drawn_anew(name, damage, sampler, expected, tmp_path) -> None:
    stop(sampler, make(name, tmp_path))
    folder = make(name, tmp_path).folder
    part = sorted(folder.glob("0*"))[-1]
    if damage == "flip":
        flip(part, part.stat().st_size // 2)
    elif damage == "shape":
        np.save(part, np.zeros((2, 8, 8, 3), np.uint8))
    else:
        content = {"cut": part.read_bytes()[:-5], "empty": b"", "text": b"text"}[damage]
        part.write_bytes(content)
    assert draw(sampler, make(name, tmp_path)) == [8]
    assert_same(images(name, tmp_path), expected)


def test_any_byte_of_a_png_is_checked(sampler, expected, tmp_path) -> None:
    """But for what no reader looks at, after the image's end."""
    draw(sampler, PngFolder(tmp_path / "images"), LABELS[:1])
    path = tmp_path / "images" / "000000_0.png"
    whole = path.read_bytes()
    for position in range(len(whole) - 12):
        path.write_bytes(whole)
        flip(path, position)
        assert draw(sampler, PngFolder(tmp_path / "images"), LABELS[:1]) == [0], position
        assert path.read_bytes() == whole


@SINK
@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "5", '{"labels": 3}', "[" * 100_000),
        '{"labels": [0], "seed": 5, "start_index": 0}',
        '{"labels": [0], "seed": 5, "start_index": 0, "chunk": 0}',
        '{"labels": ["0"], "seed": 5, "start_index": 0, "chunk": 4}',
        '{"labels": [0], "seed": 5, "start_index": null, "chunk": 4}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_named(name, content, sampler, tmp_path) -> None:
    stop(sampler, make(name, tmp_path))
    record = make(name, tmp_path).folder / ".job.json"
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"\.job\.json: expected the record of a job, got a dam"):
        draw(sampler, make(name, tmp_path))


@SINK
def test_parts_of_no_known_job(name, sampler, tmp_path) -> None:
    stop(sampler, make(name, tmp_path))
    (make(name, tmp_path).folder / ".job.json").unlink()
    with pytest.raises(ValueError, match="holds images of no known job; give another place"):
        draw(sampler, make(name, tmp_path))


@SINK
@pytest.mark.parametrize("what", ["folder", "made anew", "images", "one", "record"])
def test_what_is_deleted_during_the_job_is_missed(
    name, what, sampler, expected, tmp_path, monkeypatch
) -> None:
    sink = make(name, tmp_path)
    write = sink.write

    def deleting(indices, labels, images):
        write(indices, labels, images)
        if indices.start < 4 or (what in ("one", "images") and indices.start < 8):
            return
        if what in ("folder", "made anew"):
            shutil.rmtree(sink.folder, ignore_errors=True)
            if what == "made anew":
                sink.folder.mkdir()
        elif what == "record":
            (sink.folder / ".job.json").unlink(missing_ok=True)
        else:
            for part in sorted(sink.folder.glob(sink.parts))[: 1 if what == "one" else None]:
                part.unlink()

    monkeypatch.setattr(sink, "write", deleting)
    with pytest.raises(OSError, match=r"gone|No such file"):
        run_job(sampler, LABELS, sink, seed=5)
    assert not (tmp_path / "a.npz").exists()
    if what == "record":
        shutil.rmtree(sink.folder)
    draw(sampler, make(name, tmp_path))
    assert_same(images(name, tmp_path), expected)


@pytest.mark.parametrize("size", [1500, 10 * 8 * 8 * 3 + 250])
def test_a_full_disk_when_the_archive_is_made_keeps_the_parts(
    size, sampler, expected, tmp_path
) -> None:
    """Whether the images do not fit, or what closes the archive; a limit on the size of files is
    a full disk to whoever writes."""
    stop(sampler, NpzFile(tmp_path / "a.npz"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write: File too large: .*a\.npz'"):
            draw(sampler, NpzFile(tmp_path / "a.npz"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz.parts"]
    assert draw(sampler, NpzFile(tmp_path / "a.npz")) == []
    assert_same(images("archive", tmp_path), expected)


@SINK
def test_foreign_files_stay(name, sampler, expected, tmp_path) -> None:
    sink = make(name, tmp_path)
    sink.folder.mkdir(exist_ok=True)
    for foreign in ("notes ü.txt", ".note.tmp", "0.jpg"):
        (sink.folder / foreign).write_text("mine")
    draw(sampler, sink)
    assert_same(images(name, tmp_path), expected)
    kept = {"notes ü.txt", ".note.tmp", "0.jpg"}
    assert kept <= {path.name for path in sink.folder.iterdir()}
    assert draw(sampler, make(name, tmp_path)) == []


def test_a_linked_archive_is_written_through(sampler, expected, tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.npz").symlink_to(tmp_path / "disk" / "real.npz")
    stop(sampler, NpzFile(tmp_path / "a.npz"))
    assert draw(sampler, NpzFile(tmp_path / "a.npz")) == []
    assert (tmp_path / "a.npz").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.npz"]
    assert_same(images("archive", tmp_path), expected)


@SINK
def test_the_last_index_of_64_bits(name, sampler, tmp_path) -> None:
    last = (1 << 63) - 4
    with pytest.raises(ValueError, match=f"start_index: expected at most {last} for 4 images"):
        run_job(sampler, LABELS[:4], make(name, tmp_path), start_index=last + 1)
    run_job(sampler, LABELS[:4], make(name, tmp_path), start_index=last)
    assert len(images(name, tmp_path)) == 4


def test_an_archive_of_nothing(sampler, tmp_path) -> None:
    with pytest.raises(ValueError, match="labels: expected at least 1 for an archive, got none"):
        draw(sampler, NpzFile(tmp_path / "a.npz"), [])


def test_settings_are_compared_as_json(sampler, tmp_path) -> None:
    settings = {"pair": (1, 2), "name": os.fsdecode(b"\xff"), "by number": {1: None}}
    for name in ("folder", "archive"):
        assert draw(sampler, make(name, tmp_path), **settings)
        assert draw(sampler, make(name, tmp_path), **settings) == []


def test_a_record_too_long_for_an_archive(sampler, tmp_path) -> None:
    with pytest.raises(ValueError, match="settings: expected at most 65535 bytes, got "):
        draw(sampler, NpzFile(tmp_path / "a.npz"), config="x" * 70_000)


def test_the_record_of_an_archive_is_its_comment(sampler, tmp_path) -> None:
    draw(sampler, NpzFile(tmp_path / "a.npz"), model="a")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        record = json.loads(archive.comment)
    weights = record.pop("weights")
    assert record == {"model": "a", "seed": 5, "start_index": 0}
    assert len(weights) == 16 and int(weights, 16) >= 0
