"""Pickles that would run something: refused by name, and nothing runs."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import zipfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from checkpoints.tiny import teacher_tensors

from dd2_fast import checkpoints
from dd2_fast.checkpoints.container import UnsafeFileError, open_file
from dd2_fast.cli import main

pytestmark = pytest.mark.usefixtures("family")


class Payload:
    """Unpickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    """A class of the training code, as trainers pickle them."""


def tree(where: str, payload):
    tensors = teacher_tensors()
    if where == "beside":
        return {"model": tensors, "hook": payload}
    if where == "first":
        return {"hook": payload, "model": tensors}
    if where == "in a namespace":
        return {"model": tensors, "args": argparse.Namespace(hook=payload)}
    return {"model": {**tensors, "extra": payload}}


@pytest.mark.parametrize("where", ["beside", "first", "in a namespace", "among tensors"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, "posix.mkdir"),
        (Path.touch, "builtins.getattr"),
        (functools.partial(os.mkdir), "functools.partial"),
    ],
)
def test_a_payload_is_refused_and_never_runs(
    tmp_path: Path, capsys, where: str, zipped: bool, function, name: str
):
    target, path = tmp_path / "ran", tmp_path / "x.pth"
    argument = target if function is Path.touch else str(target)
    torch.save(
        tree(where, Payload(function, argument)), path, _use_new_zipfile_serialization=zipped
    )
    for source in (path, str(path)):
        with pytest.raises(UnsafeFileError, match=r"x\.pth: .*could run anything") as caught:
            checkpoints.load(source)
        assert caught.value.names and (not zipped or name in caught.value.names)
    with pytest.raises(UnsafeFileError):
        checkpoints.load(teacher_tensors(), tokenizer=path)
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 2
    assert main(["inspect", str(path)]) == 0
    captured = capsys.readouterr()
    assert "would call" in captured.out and caught.value.names[0] in captured.out
    assert captured.err.startswith(f"dd2-fast: error: {path}: ") and captured.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]
    torch.load(path, weights_only=False)  # the payload is a real one
    assert target.exists()


def test_all_that_is_refused_is_named(tmp_path: Path):
    path = tmp_path / "x.pth"
    hooks = [Payload(os.mkdir, "a"), Payload(os.rmdir, "a"), Plain(), Fraction(1, 2)]
    torch.save({"model": teacher_tensors(), "hooks": hooks}, path)
    with pytest.raises(UnsafeFileError) as caught:
        open_file(path)
    assert {"posix.mkdir", "posix.rmdir", "fractions.Fraction"} < set(caught.value.names)
    assert any(name.endswith("Plain") for name in caught.value.names)
    assert "argparse.Namespace" not in str(caught.value)


def test_a_namespace_cannot_smuggle_a_call(tmp_path: Path):
    """State and constructor arguments of the one class let through are attributes, not code."""
    path = tmp_path / "x.pth"
    sneaky = argparse.Namespace(__reduce__=4, __setstate__="posix.system")
    torch.save({"model": teacher_tensors(), "args": sneaky}, path)
    loaded = open_file(path).tree["args"]
    assert type(loaded) is argparse.Namespace and vars(loaded)["__setstate__"] == "posix.system"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript:UserWarning")
def test_torchscript_archives_are_refused(tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with pytest.raises(ValueError, match=r"x\.pt: expected a whole PyTorch file.*TorchScript"):
        checkpoints.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(ValueError, match=r"x\.pt: expected a whole PyTorch file"):
        checkpoints.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_without_torchs_advice(tmp_path: Path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Payload(os.mkdir, str(tmp_path / "ran"))))
    with pytest.raises(ValueError, match=r"x\.pkl: expected a whole PyTorch file") as caught:
        checkpoints.load(path)
    assert "issue" not in str(caught.value) and not (tmp_path / "ran").exists()
