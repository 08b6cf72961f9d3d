"""`dd2-fast convert`: what it writes is what it read, and what it refuses to overwrite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints.tiny import teacher_tensors, tokenizer_tensors

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.training.settings import parse_config

pytestmark = pytest.mark.usefixtures("family")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = {"trainer": {"ema_parameters": teacher_tensors(), "vae_local": tokenizer_tensors()}}
    path = tmp_path / "released.pth"
    torch.save(tree, path)
    return path


def test_round_trip(tmp_path: Path, source: Path, capsys) -> None:
    out = tmp_path / "new" / "teacher.safetensors"
    assert main(["convert", str(source), str(out), "--config", "heads=2"]) == 0
    text = capsys.readouterr().out
    size = (
        f"{out.stat().st_size / 1000:.1f} kB"
        if out.stat().st_size >= 1000
        else f"{out.stat().st_size} bytes"
    )
    inside = ", with its tiny_tokenizer"
    assert text == f"wrote {out}: tiny_teacher, 0.000 M parameters{inside}, {size}\n"
    before, after = checkpoints.load(source, heads=2), checkpoints.load(out)
    assert type(before) is type(after) and before.config == after.config
    assert after.config["heads"] == 2
    assert list(before.state_dict()) == list(after.state_dict())
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
    header = checkpoints.read_header(out)
    assert header["kind"] == "tiny_teacher" and header["metadata"] == {"source": "released.pth"}
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_an_existing_file_needs_force(tmp_path: Path, source: Path, capsys) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert main(["convert", str(source), str(out)]) == 2
    assert "it exists; --force replaces it" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main(["convert", str(source), str(out), "--force"]) == 0
    assert main(["convert", str(out), str(out), "--force"]) == 0
    assert torch.equal(checkpoints.load(out).out.bias, teacher_tensors()["out.bias"])


def test_a_failed_conversion_leaves_the_old_file(tmp_path: Path, source: Path, capsys) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    source.write_bytes(source.read_bytes()[:-30])
    assert main(["convert", str(source), str(out), "--force"]) == 2
    assert "truncated or damaged" in capsys.readouterr().err
    assert out.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x.pth"], "OUT: expected a file name ending in .safetensors"),
        (["folder.safetensors"], "a folder is there"),
        (["o.safetensors", "--config", "heads"], "--config: expected key=value, got 'heads'"),
        (["o.safetensors", "--config", "a=1", "a=2"], "--config: expected each key once, got 'a'"),
        (["o.safetensors", "--config", "depth=3"], "a tiny_teacher: config: expected heads"),
        (["o.safetensors", "--config", "heads=0"], "heads: expected at least 1, got 0"),
        (["o.safetensors", "--config", "heads=3"], "does not build a tiny_teacher"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path, source: Path, capsys, monkeypatch, argv, message
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    assert main(["convert", str(source), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("dd2-fast: error: ") and error.count("\n") == 1
    assert not (tmp_path / "o.safetensors").exists()


def test_a_missing_source_is_named(tmp_path: Path, capsys) -> None:
    assert main(["convert", str(tmp_path / "absent.pth"), str(tmp_path / "o.safetensors")]) == 2
    assert "absent.pth" in capsys.readouterr().err


def test_values_of_config() -> None:
    texts = ["a=1", "b=1,2,3", "c=[4, 5]", "d=true", "e=0.5", "f=name", "g=", "h=x,y", "i=a=b"]
    expected = [1, [1, 2, 3], [4, 5], True, 0.5, "name", [], "x,y", "a=b"]
    assert parse_config(texts) == dict(zip("abcdefghi", expected, strict=True))
