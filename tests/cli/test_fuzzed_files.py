"""Damaged bundles, shards and jobs through the command line: one line of error, or the same result.

Of each file, some bytes are flipped, its end is cut off, or another of the folder takes its place;
of JSON, some value is of another type or gone.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dd2_fast.cli import main
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.samples.shards import ShardedSamples

VALUES = (None, True, -1, 0, 2**70, 1.5, "", "x", [], [0], {}, {"a": 1}, [[]], float("nan"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder in a JSON value, with each of its keys."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def damaged(path: Path, rng: random.Random) -> str:
    """Damage a file; say how."""
    data = path.read_bytes()
    others = [p for p in path.parent.iterdir() if p.suffix == path.suffix and p != path]
    ways = ["flipped", "cut", *(["value", "gone"] if path.suffix == ".json" else [])]
    way = rng.choice([*ways, *(["other"] if others else [])])
    if way == "flipped":
        start = rng.choice([0, rng.randrange(len(data))])  # headers are short
        where = min(start + rng.randrange(200), len(data) - 1)
        byte = data[where] ^ 1 << rng.randrange(8)
        path.write_bytes(data[:where] + bytes([byte]) + data[where + 1 :])
    elif way == "cut":
        path.write_bytes(data[: rng.choice([0, 1, rng.randrange(len(data)), len(data) - 1])])
    elif way == "other":
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        return f"{path.name}: {other.name}"
    else:
        tree = json.loads(data)
        holder, key = rng.choice(list(places(tree)))
        if way == "value":
            holder[key] = rng.choice(VALUES)
        else:
            del holder[key]
        path.write_text(json.dumps(tree))
        return f"{path.name}: {way} {key} {holder if way == 'value' else ''}"[:200]
    return f"{path.name}: {way}"


def run(capsys, *argv: str) -> bool:
    """Whether a command succeeds; else it has said why in one line."""
    code = main(argv)
    captured = capsys.readouterr()
    if code == 0:
        return True
    assert code == 2 and captured.err.count("\n") == 1 and captured.err[:-1].isprintable()
    assert captured.err.startswith("dd2-fast: error: ")
    return False


def fuzz(
    whole: Path, scratch: Path, count: int, same: Callable[[Path], bool], seed: int = 0
) -> list[str]:
    """Damage one file of a copy of the folder, many times; the damages that led to errors."""
    refused = []
    for case in range(count):
        folder = scratch / "case"
        shutil.copytree(whole, folder)
        rng = random.Random(f"{seed} {case}")
        names = sorted(path.name for path in whole.iterdir() if path.is_file())
        how = damaged(folder / rng.choice(names), rng)
        try:
            with warnings.catch_warnings(record=True):
                if not same(folder):
                    refused.append(how)
        except BaseException as error:
            raise AssertionError(f"case {case}, {how}") from error
        shutil.rmtree(folder)
    return refused


def test_bundles(tmp_path: Path, capsys) -> None:
    whole, out = tmp_path / "whole", tmp_path / "x.png"
    shutil.copytree(bundled_path("digits"), whole)
    (whole / "stage1.safetensors").write_bytes((whole / "generator.safetensors").read_bytes())
    command = ["sample", "--labels", "0,1,2", "--out", str(out), "--quiet", "--model"]
    assert run(capsys, *command, str(whole))
    expected = out.read_bytes()

    def same(folder: Path) -> bool:
        out.unlink(missing_ok=True)
        if run(capsys, *command, str(folder)):
            assert out.read_bytes() == expected
            return True
        assert not out.exists()
        return False

    assert len(fuzz(whole, tmp_path, 12, same)) > 5


def test_shards(tmp_path: Path, capsys) -> None:
    whole = tmp_path / "whole"
    command = ["make-data", "random-causal", "--num", "23", "--shard-size", "8", "--quiet", "--out"]
    assert run(capsys, *command, str(whole))
    contents = {path.name: path.read_bytes() for path in whole.iterdir()}
    everything = torch.arange(23)
    expected = ShardedSamples(whole).read(everything)

    def same(folder: Path) -> bool:
        try:
            got = ShardedSamples(folder).read(everything)
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error)
            wrong = True
        else:
            wrong = False
            assert all(map(torch.equal, got, expected))
        if run(capsys, *command, str(folder)):
            after = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert {k: v for k, v in after.items() if k != "manifest.json"} == {
                k: v for k, v in contents.items() if k != "manifest.json"
            }
            assert all(map(torch.equal, ShardedSamples(folder).read(everything), expected))
        return not wrong

    assert len(fuzz(whole, tmp_path, 25, same)) > 10


@pytest.mark.parametrize("kind", ["folder", "parts", "archive"])
def test_jobs(tmp_path: Path, capsys, monkeypatch, kind: str) -> None:
    name = "out" if kind == "folder" else "out.npz"
    command = ["sample", "--num", "5", "--batch-size", "2", "--quiet", "--out"]
    whole = tmp_path / "whole"
    whole.mkdir()
    if kind == "parts":
        from dd2_fast.sampling.sinks import NpzFile

        with monkeypatch.context() as patch:
            patch.setattr(NpzFile, "finish", lambda self, labels: None)
            assert run(capsys, *command, str(whole / name))
    else:
        assert run(capsys, *command, str(whole / name))
    assert run(capsys, *command, str(tmp_path / name))

    def result(out: Path) -> dict[str, np.ndarray]:
        if kind == "folder":
            return {path.name: np.asarray(Image.open(path)) for path in out.glob("*.png")}
        with np.load(out) as archive:
            return dict(archive)

    expected = result(tmp_path / name)
    inside = {"folder": whole / "out", "parts": whole / "out.npz.parts", "archive": whole}[kind]

    def same(folder: Path) -> bool:
        out = folder if kind == "folder" else folder.with_name(name) if kind == "parts" else None
        out = folder / name if out is None else out
        if kind == "parts":
            parts = folder.with_name("out.npz.parts")
            out.unlink(missing_ok=True)
            shutil.rmtree(parts, ignore_errors=True)
            folder.rename(parts)
            folder.mkdir()
        ok = run(capsys, *command, str(out))
        if ok:
            got = result(out)
            assert got.keys() == expected.keys()
            assert all(np.array_equal(got[one], expected[one]) for one in expected)
        if kind == "parts":
            out.unlink(missing_ok=True)
        return ok

    refused = fuzz(inside, tmp_path, 10, same)
    assert refused or kind == "parts"
