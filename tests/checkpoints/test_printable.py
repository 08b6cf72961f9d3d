"""Names in files that move a cursor, break a line or ring: printable in every message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import teacher_tensors

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.differences import described, differences

pytestmark = pytest.mark.usefixtures("family")
EVIL = "\x1b[2J\x1b]0;t\x07a\r\nb\x9b\u202e\x7f"
ONE = torch.ones(1)
TEACHER = teacher_tensors()


class Called:
    """What a pickle names that is not let through."""


TREES: dict[str, dict[Any, Any]] = {
    "of no kind": {EVIL: ONE, f"{EVIL}.x": ONE},
    "under a name": {EVIL: {EVIL: ONE}},
    "no tensors": {EVIL: 1},
    "unexpected": {**TEACHER, EVIL: ONE},
    "unexpected, nested": {EVIL: {**TEACHER, EVIL: ONE}},
    "wrong shapes": {f"module.{EVIL}": ONE, **TEACHER, "out.bias": ONE},
    "float8": {**TEACHER, EVIL: ONE.to(torch.float8_e4m3fn)},
    "an average of another": {"model": TEACHER, f"ema{EVIL}": {**TEACHER, "out.bias": ONE}},
    "a long name": {**TEACHER, EVIL * 500: ONE},
}


def check(text: str) -> None:
    assert text.isprintable() and len(text) < 10_000, ascii(text)


def outcomes(path: Path, capsys) -> None:
    """The error of load, and what the commands print."""
    with pytest.raises((ValueError, TypeError)) as caught:
        checkpoints.load(path)
    check(str(caught.value))
    for command in (
        ["inspect", str(path)],
        ["inspect", str(path), "--verify"],
        ["convert", str(path), f"{path}.safetensors"],
    ):
        main(command)
        captured = capsys.readouterr()
        for line in [*captured.out.split("\n"), *captured.err.split("\n")]:
            check(line)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", TREES)
def test_names_of_tensors(tmp_path: Path, capsys, name: str, suffix: str) -> None:
    path, tree = tmp_path / f"x{suffix}", TREES[name]
    if suffix == ".safetensors":
        if not all(isinstance(value, torch.Tensor) for value in tree.values()):
            pytest.skip("it holds tensors alone")
        safetensors.torch.save_file({k: v.clone() for k, v in tree.items()}, path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=suffix == ".pth")
    outcomes(path, capsys)
    with pytest.raises((ValueError, TypeError)) as caught:
        checkpoints.load(tree)
    check(str(caught.value))


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_names_of_what_a_pickle_calls(tmp_path: Path, capsys, monkeypatch, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({"a": Called}, path, _use_new_zipfile_serialization=suffix == ".pth")
    outcomes(path, capsys)
    names = ["os.system", EVIL]
    monkeypatch.setattr(checkpoints.container, "_refused", lambda *_: names)
    outcomes(path, capsys)


@pytest.mark.parametrize(
    "header",
    [
        {"kind": EVIL, "config": {}},
        {"kind": "tiny_teacher", "config": {EVIL: 1}},
        {"kind": "tiny_teacher", "config": {"width": EVIL, "classes": 1}},
        {"kind": "tiny_teacher", "config": {"width": 4, "classes": 3, EVIL: 1 << 40}},
        {"kind": "tiny_teacher", "config": {"width": 4, "classes": 3, EVIL: [0] * 70_000}},
        {"kind": "tiny_teacher", "config": {"width": 4, "classes": 3}, "data": [EVIL]},
        {"kind": "tiny_teacher", "config": {}, "metadata": EVIL},
        {"kind": "tiny_teacher", "config": EVIL},
    ],
    ids=range(8),
)
def test_headers_of_ours(tmp_path: Path, capsys, header: dict[str, Any]) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TEACHER, path, {"dd2_fast": json.dumps(header)})
    outcomes(path, capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config.json", EVIL),
        ("config.json", {"a": EVIL}),
        ("model.safetensors.index.json", {"weight_map": EVIL}),
        ("model.safetensors.index.json", {"weight_map": {EVIL: "model-1.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": f"{EVIL}/x"}}),
    ],
)
def test_folders(tmp_path: Path, capsys, name: str, value: Any) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / name).write_text(json.dumps(value))
    part = "model-1.safetensors" if "index" in name else "model.safetensors"
    safetensors.torch.save_file({EVIL + "x": ONE}, folder / part)
    outcomes(folder, capsys)


def test_names_of_settings() -> None:
    check(described(differences({EVIL: EVIL}, {}), "there", "now"))
