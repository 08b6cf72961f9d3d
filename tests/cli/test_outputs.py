"""What the commands leave and say where streams are closed, disks full and jobs run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from children import holding
from PIL import Image
from processes import environment

from dd2_fast import checkpoints
from dd2_fast.checkpoints.locks import locked
from dd2_fast.cli import main
from dd2_fast.models import TableTeacher
from dd2_fast.sampling import Sampler

SAMPLE = ["sample", "--num", "12", "--batch-size", "5"]


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in which $DD2 is the command line."""
    values = {"DD2": f"{sys.executable} -m dd2_fast", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(**values),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&- 2>&- <&-", 0),
        ("> >(exec true)", 141),
        (">/dev/full", 2),
        *(
            pytest.param(redirection, 0, marks=pytest.mark.long)
            for redirection in ("2>&-", "2> >(exec true)", "2>/dev/full")
        ),
    ],
)
@pytest.mark.slow
def test_the_work_is_done_whatever_the_streams_are(tmp_path, redirection, code) -> None:
    """A stream is closed, or nobody reads it, or its disk is full."""
    script = f"sleep 0.2; $DD2 {' '.join(SAMPLE)} --out a.npz {redirection}"
    done = shell(script, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if code == 2:
        assert done.stderr.endswith("No space left on device\n")
    with np.load(tmp_path / "a.npz") as archive:
        assert len(archive["arr_0"]) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


OUTPUTS = {
    "images": [*SAMPLE, "--out", "images", "--quiet"],
    "a.npz": [*SAMPLE, "--out", "a.npz", "--quiet"],
    "a.png": [*SAMPLE, "--out", "a.png", "--quiet"],
    "run": ["train", "toy", "--out", "run", "--quiet"],
    "data": ["make-data", "random-var", "--out", "data", "--num", "4", "--quiet"],
    "b.safetensors": ["convert", "a.safetensors", "b.safetensors"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_second_job_is_told_of_the_first(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.save("a.safetensors", TableTeacher(num_tokens=2, vocabulary=3, dimension=1))
    if "." not in name:
        (tmp_path / name).mkdir()
    with holding(locked(Path(name))) as child:
        before = sorted(path.name for path in tmp_path.rglob("*"))
        assert main(OUTPUTS[name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dd2-fast: error: {tmp_path / name}: expected no other job there")
        assert f"found process {child} on " in error and error.count("\n") == 1
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_two_jobs_on_one_archive_leave_one(tmp_path) -> None:
    """Started together; the loser says so, and the archive is whole whoever that is."""
    command = f"$DD2 {' '.join(SAMPLE)} --num 400 --out a.npz --quiet"
    done = shell(f"{command} & {command}; code=$?; wait $!; echo $? $code", tmp_path)
    codes = done.stdout.splitlines()[-1].split()
    assert sorted(codes) in (["0", "0"], ["0", "2"]), done.stderr
    assert done.stderr.count("expected no other job there") == codes.count("2")
    with np.load(tmp_path / "a.npz") as archive:
        assert len(archive["arr_0"]) == 400
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_killed_save_leaves_nothing_after_the_next(tmp_path) -> None:
    """Killed by SIGKILL while safetensors writes."""
    teacher = TableTeacher(num_tokens=2, vocabulary=3, dimension=1)
    write = safetensors.torch.save_file

    def killed(tensors, path, metadata) -> None:
        write(tensors, path, metadata)
        path.with_name(".tmpAbCdEf").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        safetensors.torch.save_file = killed
        try:
            checkpoints.save(tmp_path / "a.safetensors", teacher)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) >= 1 and "a.safetensors" not in left
    checkpoints.save(tmp_path / "a.safetensors", teacher)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_a_folder_deleted_during_a_job_is_an_error(tmp_path) -> None:
    argv = [*SAMPLE, "--num", "100000", "--out", "images", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dd2_fast", *argv],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "images"
    for _ in range(600):
        if folder.is_dir() and len(list(folder.glob("*.png"))) > 20:
            break
        time.sleep(0.1)
    folder.rename(tmp_path / "gone")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.count("\n") == 1 and "No such file or directory" in error and "images" in error


def test_odd_names(tmp_path, capsys) -> None:
    for name in ("a b/ü 图.npz", os.fsdecode(b"\xff.npz"), "ü '\"\n images"):
        assert main([*SAMPLE, "--out", str(tmp_path / name), "--quiet"]) == 0
        assert (tmp_path / name).exists()
    assert "wrote 12 images to" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npz", ".png"])
def test_a_picture_or_archive_where_a_folder_is(tmp_path, capsys, suffix) -> None:
    out = tmp_path / f"a{suffix}"
    out.mkdir()
    assert main([*SAMPLE, "--out", str(out), "--quiet"]) == 2
    assert str(out) in capsys.readouterr().err and not any(out.iterdir())
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    assert main([*SAMPLE, "--out", str(file), "--quiet"]) == 2
    assert f"{file}: cannot write to the folder: File exists" in capsys.readouterr().err
    assert main([*SAMPLE, "--out", str(file / f"a{suffix}"), "--quiet"]) == 2
    assert f"{file}: cannot write to the folder: File exists" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"


def test_a_picture_is_whole_or_as_it_was(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "real.png").write_bytes(b"before")
    (tmp_path / "a.png").symlink_to("real.png")
    argv = [*SAMPLE, "--out", str(tmp_path / "a.png"), "--quiet"]

    def fail(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert main(argv) == 2
    assert "a.png: cannot write: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "real.png").read_bytes() == b"before"
    assert main(argv) == 0
    assert (tmp_path / "a.png").is_symlink() and len(list(tmp_path.iterdir())) == 2
    assert Image.open(tmp_path / "real.png").size[1] > 8


def test_a_file_is_converted_in_place_through_a_link(tmp_path, capsys) -> None:
    model = TableTeacher(num_tokens=2, vocabulary=3, dimension=1)
    checkpoints.save(tmp_path / "a.safetensors", model)
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    for source, out in (("a", "a"), ("link", "a"), ("a", "link"), ("link", "link")):
        paths = [str(tmp_path / f"{name}.safetensors") for name in (source, out)]
        assert main(["convert", *paths, "--force"]) == 0
        assert torch.equal(checkpoints.load(paths[1]).table, model.table)
    assert (tmp_path / "link.safetensors").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_the_last_indices(tmp_path, capsys) -> None:
    out = str(tmp_path / "images")
    for start in (2**63 - 11, 2**63, 2**64, 10**30):
        assert main([*SAMPLE, "--start-index", str(start), "--out", out, "--quiet"]) == 2
        error = capsys.readouterr().err
        told = "argument --start-index: expected an integer in 0..9223372036854775807"
        if start < 2**63:
            told = f"start_index: expected at most {2**63 - 12}"
        assert error.startswith(f"dd2-fast: error: {told}")
    assert main([*SAMPLE, "--start-index", str(2**63 - 12), "--out", out, "--quiet"]) == 0
    last = Sampler("digits")([1], start_index=2**63 - 1, output="np")[0]
    found = np.asarray(Image.open(tmp_path / "images" / f"{2**63 - 1}_1.png"))
    assert np.abs(found.astype(int) - last).max() <= 1
