"""Flipped bits of every sort of file: an error that names the file, or the very same values."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import teacher_tensors, tokenizer_tensors

from dd2_fast import checkpoints
from dd2_fast.checkpoints import checksums
from dd2_fast.checkpoints.files import write_atomic
from dd2_fast.cli import main
from dd2_fast.training.state import RunState

pytestmark = pytest.mark.usefixtures("family")
FLIPS = 80


def write(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A teacher's file of the sort that the path's name begins with."""
    tensors = teacher_tensors(8, 5) if tensors is None else tensors
    sort = path.name.partition(".")[0]
    if sort == "ours":
        model = checkpoints.load(tensors)
        checkpoints.save(path, model, tokenizer=checkpoints.load(tokenizer_tensors()))
    elif sort == "theirs":
        safetensors.torch.save_file(tensors, path)
    elif sort == "deflated":
        torch.save({"model": tensors}, path)
        with zipfile.ZipFile(path) as whole:
            records = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in records.items():
                archive.writestr(name, data)
    else:
        new = sort == "archive"
        torch.save({"model": tensors}, path, _use_new_zipfile_serialization=new)
    return path


def state(path: Path, **arguments: object) -> dict[str, torch.Tensor]:
    model = checkpoints.load(path, **arguments)
    inside = getattr(model, "tokenizer", None)
    beside = {} if inside is None else {f"t.{k}": v for k, v in inside.state_dict().items()}
    config = {"config": torch.tensor(list(model.config.values()))}
    return {k: v.clone() for k, v in {**model.state_dict(), **beside, **config}.items()}


def flipped(data: bytes, where: int, bit: int) -> bytes:
    return data[:where] + bytes([data[where] ^ 1 << bit]) + data[where + 1 :]


@pytest.mark.parametrize("sort", ["archive.pth", "deflated.pth", "ours.safetensors"])
def test_a_flipped_bit_anywhere(tmp_path: Path, sort: str) -> None:
    path = write(tmp_path / sort)
    whole, right, rng = path.read_bytes(), state(path), random.Random(0)
    refused = 0
    for where in [*range(len(whole) - 40, len(whole)), *rng.sample(range(len(whole)), FLIPS)]:
        write_atomic(path, flipped(whole, where, rng.randrange(8)))
        try:
            got = state(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), where
            refused += 1
        else:
            assert got.keys() == right.keys(), where
            assert all(torch.equal(got[name], value) for name, value in right.items()), where
    assert refused > FLIPS // 20  # of so small an archive most is padding


def places(path: Path) -> dict[str, int]:
    """A place inside the values of each record or tensor."""
    data = path.read_bytes()
    tensors = {"out.weight": teacher_tensors(8, 5)["out.weight"]}
    return {name: data.index(v.numpy().tobytes()) + 17 for name, v in tensors.items()}


@pytest.mark.parametrize("sort", ["archive.pth", "ours.safetensors"])
def test_every_command_names_the_file_and_the_record(tmp_path: Path, capsys, sort: str) -> None:
    path = write(tmp_path / sort)
    ((name, where),) = places(path).items()
    path.write_bytes(flipped(path.read_bytes(), where, 0))
    said = "record archive/data/1" if sort == "archive.pth" else f"tensor {name}"
    out = str(tmp_path / "out")
    for command in (
        ["inspect", str(path), "--verify"],
        ["inspect", str(path)],
        ["convert", str(path), f"{out}.safetensors"],
        ["sample", "--model", str(path), "--num", "1", "--out", f"{out}.png"],
        ["make-data", str(path), "--num", "1", "--out", out],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert str(path) in error and said in error and error.count("\n") == 1, error


@pytest.mark.parametrize("sort", ["archive.pth", "ours.safetensors"])
def test_large_files_are_compared_where_that_is_asked_for(
    tmp_path: Path, capsys, monkeypatch, sort: str
) -> None:
    path = write(tmp_path / sort)
    right, (where,) = state(path), places(path).values()
    path.write_bytes(flipped(path.read_bytes(), where, 0))
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "_SMALL", 0)
        assert not torch.equal(state(path)["out.weight"], right["out.weight"])
        with pytest.raises(ValueError, match="not what was written"):
            state(path, verify=True)
        assert main(["inspect", str(path)]) == 0
        assert "checksums" not in capsys.readouterr().out
        assert main(["inspect", str(path), "--verify"]) == 2
        assert main(["convert", str(path), str(tmp_path / "x.safetensors")]) == 2
    assert not torch.equal(checkpoints.load(path, verify=False).out.weight, right["out.weight"])
    with pytest.raises(TypeError, match="verify: expected a bool, got str"):
        checkpoints.load(path, verify="yes")


@pytest.mark.parametrize(
    ("sort", "says"),
    [
        *(("archive.pth", "9 compared"), ("older.pt", "none in the file")),
        *(("ours.safetensors", "4 compared"), ("theirs.safetensors", "none in the file")),
    ],
)
def test_what_inspect_says_of_whole_files(tmp_path: Path, capsys, sort: str, says: str) -> None:
    assert main(["inspect", str(write(tmp_path / sort)), "--verify"]) == 0
    assert f"checksums     {says}\n" in capsys.readouterr().out


def test_files_without_checksums_load(tmp_path: Path, capsys) -> None:
    """Of torch that was told to make none, and of ours by earlier versions."""
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "archive.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(checkpoints.load(path).out.weight, teacher_tensors(8, 5)["out.weight"])
    ours = write(tmp_path / "ours.safetensors")
    with safetensors.safe_open(ours, framework="pt") as file:
        header = {"dd2_fast": file.metadata()["dd2_fast"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    right = state(ours)
    safetensors.torch.save_file(tensors, tmp_path / "before.safetensors", header)
    got = state(tmp_path / "before.safetensors")
    assert all(torch.equal(got[name], value) for name, value in right.items())


@pytest.mark.parametrize("change", ["swapped", "missing", "more", "dtype", "note"])
def test_tensors_that_are_whole_and_others(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "ours.safetensors", teacher_tensors(8, 8))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change == "swapped":
        names = ("out.weight", "table.weight")
        tensors |= dict(zip(names, [tensors[name] for name in reversed(names)], strict=True))
    elif change == "missing":
        del tensors["out.bias"]
    elif change == "more":
        tensors["more"] = torch.ones(1)
    elif change == "dtype":
        tensors["out.bias"] = tensors["out.bias"].view(torch.int32)
    else:
        metadata["dd2_fast_crc32"] = json.dumps({"": [1]})
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"^{path}: expected "):
        checkpoints.load(path)


def test_a_damaged_state_of_a_run_is_passed_over(tmp_path: Path) -> None:
    model = checkpoints.load(teacher_tensors(8, 5))
    run = RunState(tmp_path, {"model": model}, {}, seed=0)
    run.save({})
    run.save({})
    data = run.path.read_bytes()
    where = data.index(teacher_tensors(8, 5)["out.weight"].numpy().tobytes())
    run.path.write_bytes(flipped(data, where, 0))
    again = RunState(tmp_path, {"model": model}, {}, seed=0)
    with pytest.warns(RuntimeWarning, match="state.pt: expected a saved training state"):
        assert again.resume()
    assert torch.equal(model.out.weight, teacher_tensors(8, 5)["out.weight"])
