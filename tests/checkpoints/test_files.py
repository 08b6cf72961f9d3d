"""Atomic writes on the file systems that there are, what kills leave, links and modes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from children import holding

from dd2_fast import checkpoints
from dd2_fast.checkpoints import files, locks
from dd2_fast.checkpoints.files import check_file, remove_leftovers, replacing, write_atomic
from dd2_fast.models import TableTeacher


@pytest.fixture
def model() -> TableTeacher:
    return TableTeacher(num_tokens=2, vocabulary=3, dimension=1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_the_mode(tmp_path, model, umask: int) -> None:
    """Of safetensors, too, which sets 0600."""
    before = os.umask(umask)
    try:
        checkpoints.save(tmp_path / "a.safetensors", model)
        write_atomic(tmp_path / "b", b"")
    finally:
        os.umask(before)
    for name in ("a.safetensors", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(tmp_path, model, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "model.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(Path("real") / target.name)
    if exists:
        target.write_bytes(b"before")
    checkpoints.save(link, model)
    assert link.is_symlink() and not target.is_symlink()
    assert checkpoints.read_header(target)["kind"] == "table_teacher"
    assert names(tmp_path / "real") == [target.name] and len(names(tmp_path)) == 2


@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES"])
def test_what_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch, code) -> None:
    def refuse(handle: int) -> None:
        raise OSError(getattr(errno, code), "not here")

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content" and names(tmp_path) == ["a"]


def test_a_sync_that_fails_is_an_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="cannot write: Input/output error.*a'"):
        write_atomic(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"before" and names(tmp_path) == ["a"]


def save_beside(path: Path) -> replacing:
    """A save in progress, whose writer has made a temporary file of its own."""

    @files.contextmanager
    def saving():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            temporary.with_name(".tmpAbCdEf").write_bytes(b"half")
            yield

    return saving()


def test_what_a_killed_save_left_goes_at_the_next(tmp_path, model) -> None:
    path = tmp_path / "model.safetensors"
    with holding(save_beside(path)), holding(save_beside(tmp_path / "other")):
        (tmp_path / ".model.safetensors.7.tmp").write_bytes(b"by an older version")
        (tmp_path / ".model.safetensors.note.tmp").write_bytes(b"somebody's own")
        living = [name for name in names(tmp_path) if "-" in name]
        assert len(living) == 2
        checkpoints.save(path, model)
        assert [n for n in names(tmp_path) if "-" in n] == living, "a living process is writing"
        assert ".model.safetensors.7.tmp" not in names(tmp_path)
    checkpoints.save(path, model)
    other, *rest = names(tmp_path)
    assert other == ".model.safetensors.note.tmp" or other.startswith(".other.")
    assert len(rest) == 2 and path.name in rest
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".model.safetensors.note.tmp", path.name]


def test_an_empty_leftover_and_one_on_a_file_system_without_locks(tmp_path, monkeypatch) -> None:
    (tmp_path / ".a.3-beef.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert not names(tmp_path)

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    with holding(save_beside(tmp_path / "a")):
        pass
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    write_atomic(tmp_path / "b", b"")
    remove_leftovers(tmp_path)
    assert left.exists(), "another machine may be writing it"
    for path in (left, *left.iterdir()):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("name", ["ä ß 'q' *?[", "x" * 250, "图" * 80, os.fsdecode(b"\xff\xfe")])
def test_names(tmp_path, name: str) -> None:
    path = tmp_path / name
    with holding(save_beside(path)), locks.locked(path):
        write_atomic(path, b"content")
        assert len(names(tmp_path)) == 3
        with locks.locked(tmp_path / f"{name[:-1]}y"):
            pass
    with locks.locked(path):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == [name] and path.read_bytes() == b"content"


def test_places_where_no_file_can_be(tmp_path) -> None:
    with pytest.raises(IsADirectoryError, match="expected a file to write, found a folder"):
        check_file(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="cannot write to the folder"):
        check_file(tmp_path / "file" / "a")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_atomic(tmp_path / "loop" / "a", b"")
    (tmp_path / "link").symlink_to("new/folder")
    check_file(tmp_path / "link" / "a")
    assert (tmp_path / "link").is_symlink()
    check_file(tmp_path / "new" / "a")
    assert names(tmp_path / "new") == ["folder"] and not any((tmp_path / "link").iterdir())


def test_a_model_in_place_of_its_source(tmp_path, model) -> None:
    """The source's tensors are pages of the file that is replaced."""
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model)
    for _ in range(2):
        checkpoints.save(path, checkpoints.load(path))
    assert torch.equal(checkpoints.load(path).table, model.table)
