"""Files that may not be read and places that may not be written: one line that names each."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dd2_fast.cli import main
from dd2_fast.sampling.sources import bundled_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
DIGITS = bundled_path("digits")
LINE = '{"stage": "a", "step": 1, "time": 1.0, "values": {"x": 1.0}}\n'
PNG = ["--labels", "0", "--out", "new.png", "--quiet"]
TRAIN = ["train", "tiny_var", "--out", "new", "--quiet"]

# What may not be opened, and the command that would.
CASES: list[tuple[str, list[str]]] = [
    *(
        (name, argv)
        for name in ("zip.pth", "older.pt", "x.safetensors", "hub", "hub/model.safetensors")
        for argv in (
            ["inspect", name],
            ["inspect", "whole.pth", "--tokenizer", name],
            ["convert", name, "new.safetensors"],
            ["convert", "whole.pth", "new.safetensors", "--tokenizer", name],
            ["sample", "--model", name, *PNG],
            ["sample", "--tokenizer", name, *PNG],
            ["make-data", name, "--num", "1", "--out", "new"],
            ["make-data", "whole.pth", "--tokenizer", name, "--num", "1", "--out", "new"],
            [*TRAIN, "--teacher", name],
            [*TRAIN, "--teacher", "whole.pth", "--tokenizer", name],
        )
        if name != "hub" or argv[0] != "inspect" or "--tokenizer" not in argv
    ),
    *(
        (name, argv)
        for name in (
            "bundle/generator.safetensors",
            "bundle/teacher.safetensors",
            "bundle/run.json",
        )
        for argv in (
            ["sample", "--model", "bundle", *PNG],
            ["make-data", "bundle", "--num", "1", "--out", "new"],
        )
    ),
    ("bundle/classifier.safetensors", ["demo", "--model", "bundle", "--out", "new.png"]),
    ("hub/config.json", ["inspect", "hub"]),
    ("own.toml", ["train", "own.toml", "--out", "new"]),
    ("run/log.jsonl", ["plot", "run"]),
    ("reference.npz", ["fid", "reference.npz", "other.npz"]),
    ("pictures", ["fid", "pictures", "other.npz"]),
    ("shards/manifest.json", [*TRAIN, "--data", "shards"]),
    (
        "shards/shard-00000.safetensors",
        [*TRAIN, "--data", "shards", "--set", "samples.cfg=0", "--set", "samples.top_k=0"],
    ),
    ("shards/manifest.json", ["make-data", "random-var", "--num", "4", "--out", "shards"]),
    ("images/.job.json", ["sample", "--num", "2", "--out", "images", "--quiet"]),
    ("done.npz", ["sample", "--num", "2", "--out", "done.npz", "--quiet"]),
    ("begun/state.pt", ["train", "toy", "--out", "begun", "--quiet"]),
]
# What may not be written.
WRITES: list[tuple[str, list[str]]] = [
    ("closed", ["sample", "--num", "1", "--out", "closed/x", "--quiet"]),
    ("closed", ["sample", "--num", "1", "--out", "closed", "--quiet"]),
    ("closed", ["sample", "--num", "1", "--out", "closed/x.png", "--quiet"]),
    ("closed", ["sample", "--num", "1", "--out", "closed/x.npz", "--quiet"]),
    ("closed", ["convert", str(DIGITS / "teacher.safetensors"), "closed/x.safetensors"]),
    ("closed", ["make-data", "digits", "--num", "1", "--out", "closed/x"]),
    ("closed", ["train", "toy", "--out", "closed/x", "--quiet"]),
    ("closed", ["plot", "run", "--out", "closed/x.png"]),
    ("closed", ["demo", "--out", "closed/x.png"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("permissions")
    tree = {"model": {"a": torch.ones(3)}}
    for name in ("zip.pth", "older.pt", "whole.pth"):
        torch.save(tree, folder / name, _use_new_zipfile_serialization=name != "older.pt")
    (folder / "hub").mkdir()
    for name in ("x.safetensors", "hub/model.safetensors"):
        safetensors.torch.save_file({"a": torch.ones(3)}, folder / name)
    (folder / "hub" / "config.json").write_text("{}")
    shutil.copytree(DIGITS, folder / "bundle")
    (folder / "own.toml").write_text("seed = 1")
    for name in ("run", "pictures", "closed", "begun"):
        (folder / name).mkdir()
    (folder / "run" / "log.jsonl").write_text(LINE)
    torch.save({}, folder / "begun" / "state.pt")
    for name in ("reference.npz", "other.npz"):
        np.savez(folder / name, np.zeros((2, 4, 4, 3), np.uint8))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["make-data", "random-var", "--num", "4", "--out", "shards", "--quiet"]) == 0
        for out in ("images", "done.npz"):
            assert main(["sample", "--num", "2", "--out", out, "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


def obey_permissions() -> None:
    """Give up what lets root open everything."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, effective
    assert libc.capset(header, data) == 0


def outcome(folder: Path, argv: list[str]) -> tuple[int | str, str]:
    """Exit code and standard error of a command in a child that obeys permissions."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code: int | str = ""
        try:
            torch.set_num_threads(1)  # those of the parent's OpenMP are not here
            obey_permissions()
            os.chdir(folder)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            sys.stderr = open(tell, "w", closefd=False)  # noqa: SIM115
            code = main(argv)
        except BaseException:
            code = traceback.format_exc()
        sys.stderr.flush()
        os.write(tell, b"\0" + json.dumps(code).encode())
        os._exit(0)
    os.close(tell)
    with open(told, "rb") as pipe:
        error, _, code = pipe.read().rpartition(b"\0")
    os.waitpid(child, 0)
    return json.loads(code), error.decode()


def check(folder: Path, name: str, argv: list[str], mode: int) -> None:
    path, before = folder / name, sorted(folder.rglob("*"))
    kept = path.stat().st_mode
    path.chmod(mode)
    try:
        code, error = outcome(folder, argv)
    finally:
        path.chmod(kept)
    if argv[0] == "train":  # its folder, with a state that the next run goes on from
        shutil.rmtree(folder / "new", ignore_errors=True)
    assert code == 2, (code, error)
    assert error.startswith("dd2-fast: error: ") and error.count("\n") == 1, error
    assert name in error, error
    assert "Permission denied" in error or "cannot" in error or "read-only" in error, error
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("name", "argv"), CASES, ids=lambda x: x if isinstance(x, str) else x[0])
def test_what_may_not_be_read(folder: Path, name: str, argv: list[str]) -> None:
    if argv[0] in ("plot", "fid"):
        pytest.importorskip("matplotlib" if argv[0] == "plot" else "torch_fidelity")
    check(folder, name, argv, 0)


@pytest.mark.parametrize(("name", "argv"), WRITES, ids=lambda x: x if isinstance(x, str) else x[0])
def test_where_nothing_may_be_written(folder: Path, name: str, argv: list[str]) -> None:
    if argv[0] == "plot":
        pytest.importorskip("matplotlib")
    check(folder, name, argv, 0o555)
