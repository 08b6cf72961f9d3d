"""`dd2-fast inspect`: its report on files of every sort."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import teacher_tensors, tokenizer_tensors

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.models import VQTokenizer

pytestmark = pytest.mark.usefixtures("family")


def report(path: Path, capsys) -> list[tuple[str, str]]:
    """The (name, value) rows that the command prints."""
    assert main(["inspect", str(path)]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return [(line[:14].strip(), line[14:]) for line in captured.out.splitlines()]


def test_a_released_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.pth"
    half = {name: value.half() for name, value in teacher_tensors(1000, 100).items()}
    half["mask"] = torch.zeros(1000)
    tree = {"epoch": 3, "trainer": {"ema_parameters": half, "vae_local": tokenizer_tensors()}}
    torch.save({**tree, "args": argparse.Namespace(lr=1)}, path)
    assert report(path, capsys) == [
        ("file", str(path)),
        ("size", f"{path.stat().st_size / 1e6:.1f} MB"),
        ("container", "PyTorch"),
        ("keys", "epoch, trainer, args"),
        ("nesting", "trainer.ema_parameters"),
        ("kind", "tiny_teacher"),
        ("config", '{"width": 1000, "classes": 100}'),
        ("inferred", "width, classes"),
        ("tensors", "3, 1.101 M parameters"),
        ("dtypes", "float16 3"),
        ("left out", "1 that follow from the configuration"),
        ("first names", "table.weight  [100, 1000]"),
        ("", "out.weight  [1000, 1000]"),
        ("", "out.bias  [1000]"),
        ("nesting", "trainer.vae_local"),
        ("kind", "tiny_tokenizer; load takes the one above"),
        ("config", '{"codes": 5, "dimension": 2}'),
        ("inferred", "codes, dimension"),
        ("tensors", "1, 0.000 M parameters"),
        ("dtypes", "float32 1"),
        ("first names", "codebook  [5, 2]"),
    ]


def test_a_file_of_ours(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, checkpoints.load(teacher_tensors(), heads=2), {"note": "a"})
    rows = dict(report(path, capsys))
    assert rows["container"] == "safetensors" and rows["tensors"].startswith("3, ")
    assert rows["kind"] == "tiny_teacher, written by dd2_fast"
    assert rows["config"] == '{"classes": 3, "heads": 2, "width": 4}'
    assert rows["metadata"] == '{"note": "a"}'


def test_unknown_files(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {f"layer{i}.weight": torch.zeros(2, dtype=torch.bfloat16) for i in range(9)}
    safetensors.torch.save_file({**tensors, "n": torch.zeros(2)}, path, {"format": "pt"})
    rows = report(path, capsys)
    assert ("kind", "unknown") in rows and ("metadata", '{"format": "pt"}') in rows
    assert ("tensors", "10, 0.000 M parameters") in rows
    assert ("dtypes", "bfloat16 9, float32 1") in rows
    assert len([name for name, _ in rows if not name]) == 5
    path = tmp_path / "x.pth"
    torch.save({"a": 1, "model": {"w": torch.zeros(3)}}, path, _use_new_zipfile_serialization=False)
    rows = report(path, capsys)
    assert ("container", "PyTorch, older format") in rows and ("keys", "a, model") in rows
    assert ("nesting", "model") in rows and ("first names", "w  [3]") in rows
    torch.save({"a": 1}, path)
    assert report(path, capsys)[2:] == [
        ("container", "PyTorch"),
        ("keys", "a"),
        ("kind", "unknown"),
    ]


def test_what_cannot_be_inspected_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    for name, message in (("x.pth", "truncated"), ("absent", "found none"), ("", "the folder")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("dd2-fast: error: ") and error.count("\n") == 1


def test_a_tokenizer_of_another_family(tmp_path: Path, capsys) -> None:
    checkpoints.save(tmp_path / "vq.safetensors", VQTokenizer(vocabulary=4, dimension=2, width=8))
    torch.save(teacher_tensors(), tmp_path / "x.pth")
    argv = ["inspect", str(tmp_path / "x.pth"), "--tokenizer", str(tmp_path / "vq.safetensors")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.endswith("--tokenizer: expected one for a tiny_teacher, got a vq_tokenizer\n")


def test_a_limit_that_is_none_is_no_damage(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DD2_FAST_MAX_BYTES", "1e9")
    for name, new in (("x.pth", True), ("x.pt", False)):
        torch.save(teacher_tensors(), tmp_path / name, _use_new_zipfile_serialization=new)
        assert main(["inspect", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("dd2-fast: error: DD2_FAST_MAX_BYTES: expected a number of bytes")
