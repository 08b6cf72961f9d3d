"""One job an output: who has it, and that every end of a process gives it back."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from children import holding
from forks import run_together
from torch import distributed

from dd2_fast.checkpoints import locks
from dd2_fast.checkpoints.locks import agreed, locked


@pytest.fixture(params=["folder", "file.npz", "new.png"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if request.param == "folder":
        path.mkdir()
    elif request.param == "file.npz":
        path.write_bytes(b"archive")
    return path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_second_job_hears_which_process_has_it(output: Path, tmp_path, monkeypatch) -> None:
    before = everything(tmp_path)
    monkeypatch.setattr("sys.argv", ["/bin/dd2-fast", "sample", "--out", "\x1b[31mred\n"])
    with holding(locked(output)) as child:
        link = tmp_path / "link"
        link.symlink_to(output)
        for name in (output, link):
            with pytest.raises(BlockingIOError) as caught, locked(name):
                pass
            message = caught.value.strerror
            assert f"found process {child} on " in message and "\n" not in message
            assert ": dd2-fast sample --out  [31mred; wait" in message
            assert caught.value.filename == str(output)
        link.unlink()
        with locked(tmp_path / "another"):
            pass
    # The child was killed.
    with locked(output):
        assert len(everything(tmp_path)) == len(before) + 1
    assert everything(tmp_path) == before


def test_threads_and_blocks_exclude_one_another(output: Path) -> None:
    with locked(output), pytest.raises(BlockingIOError), locked(output):
        pass
    seen: list[BaseException | None] = []

    def work() -> None:
        try:
            with locked(output):
                barrier.wait()
            seen.append(None)
        except BlockingIOError as error:
            seen.append(error)
            barrier.wait()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.count(None) == 1


def test_an_error_gives_it_back(output: Path, tmp_path) -> None:
    before = everything(tmp_path)
    with pytest.raises(ZeroDivisionError), locked(output):
        raise ZeroDivisionError
    assert everything(tmp_path) == before


def test_a_folder_that_is_deleted_meanwhile(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with locked(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        with locked(folder):
            pass
        with holding(locked(folder)):
            pass
    assert everything(tmp_path) == ["folder", "folder/.lock"]


@pytest.mark.parametrize("code", ["ENOTSUP", "ENOSYS", "ENOLCK"])
def test_where_there_are_no_locks_it_is_said(output: Path, tmp_path, monkeypatch, code) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    before = everything(tmp_path)
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.warns(RuntimeWarning, match="its file system has no locks"), locked(output):
        assert everything(tmp_path) == before
    assert everything(tmp_path) == before


def lock_both() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    with locked(Path("free")):
        print(f"{rank} has it, {agreed(os.getpid) == os.getpid()}")
        distributed.barrier()
        assert Path(".free.lock").exists()
        distributed.barrier()
    try:
        with locked(Path("taken")):
            pass
    except BlockingIOError as error:
        print(f"{rank} {error.strerror}")
    distributed.barrier()
    distributed.destroy_process_group()


def test_the_processes_of_a_group_share_it(tmp_path) -> None:
    """And all of them hear when another job has it."""
    with holding(locked(tmp_path / "taken")) as child:
        printed = "".join(run_together(lock_both, folder=tmp_path)).splitlines()
    assert {"0 has it, True", "1 has it, False"} <= set(printed)
    assert sum(f"found process {child} " in line for line in printed) == 2
