"""Whatever a user gives the command line, an error is one line that names it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dd2_fast.cli import main
from dd2_fast.cli.main import build_parser
from dd2_fast.sampling.sources import bundled_path

OUT = "new"  # an output that no command with an error makes
BAD_NUMBERS = ("x", "", "1.5", "nan", "1e400", "0x10", "--1")
DIGITS = bundled_path("digits")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of broken inputs; names begin with the kind that they claim to be."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "directory.pth").mkdir()
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("not a checkpoint\n" * 9)
    (folder / "page.safetensors").write_text("<!doctype html><title>404</title>")
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 9)
    torch.save({"a": torch.ones(3)}, folder / "whole.pth")
    torch.save({"a": torch.ones(3)}, folder / "older.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": torch.ones(3)}, folder / "whole.safetensors")
    for name in ("whole.pth", "older.pt", "whole.safetensors"):
        data = (folder / name).read_bytes()
        (folder / f"cut.{name}").write_bytes(data[: len(data) * 2 // 3])
    torch.save([1], folder / "list.pth")
    torch.save({"a": object}, folder / "unsafe.pth")
    os.mkfifo(folder / "pipe.pth")
    bundle = folder / "bundle"
    shutil.copytree(DIGITS, bundle)
    (bundle / "run.json").write_text("[" * 100_000)
    shutil.copytree(DIGITS, folder / "cut_bundle")
    teacher = folder / "cut_bundle" / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[:999])
    return folder


CHECKPOINTS = (
    *("directory.pth", "empty.pth", "text.pth", "page.safetensors", "noise.pt", "whole.pth"),
    *("older.pt", "whole.safetensors", "cut.whole.pth", "cut.older.pt", "cut.whole.safetensors"),
    *("list.pth", "unsafe.pth", "pipe.pth", "bundle", "cut_bundle", "absent.pth", "absent/x.pth"),
    *("a\x1b[2Jb.pth", "a\nb.pth", "x" * 300),
)


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run a command that must end with 2, one line on stderr and nothing made."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, naming: str = "") -> str:
        before = sorted(tmp_path.iterdir())
        code = main(argv)
        captured = capsys.readouterr()
        assert code == 2, (code, captured)
        assert captured.err.startswith("dd2-fast: error: ") and captured.err.count("\n") == 1
        assert captured.err[:-1].isprintable() and naming in captured.err, captured.err
        assert "Traceback" not in captured.out
        assert sorted(tmp_path.iterdir()) == before, argv
        return captured.err

    return run


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_broken_checkpoints(files: Path, fails, name: str) -> None:
    path, shown = str(files / name), name.split("\x1b")[0].split("\n")[0][:40]
    if name not in ("whole.pth", "older.pt", "whole.safetensors", "unsafe.pth") and (
        not name.endswith("bundle")
    ):
        fails("inspect", path, naming=shown)
    if not name.endswith("bundle"):
        fails("convert", path, f"{OUT}.safetensors", naming=shown)
    fails("convert", str(DIGITS), f"{OUT}.safetensors", "--tokenizer", path, naming=shown)
    fails("sample", "--model", path, "--num", "1", "--out", f"{OUT}.png", naming=shown)
    fails(*("sample", "--tokenizer", path, "--num", "1", "--out", f"{OUT}.png"), naming=shown)
    fails("make-data", path, "--num", "1", "--out", OUT, naming=shown)
    if name != "bundle":  # its parts are whole
        fails("demo", "--model", path, "--out", f"{OUT}.png", naming=shown)


COMMANDS = {
    "sample": ["--labels", "1", "--out", OUT],
    "make-data": ["digits", "--num", "1", "--out", OUT],
    "train": ["toy", "--out", OUT],
    "tune": ["toy", "--out", OUT],
    "demo": ["--out", f"{OUT}.png"],
    "evaluate": ["x", "--data", "y"],
    "fid": ["x", "y"],
    "info": [],
    "plot": ["x"],
    "inspect": ["x"],
    "convert": ["x", f"{OUT}.safetensors"],
    "export": ["x", f"{OUT}.onnx"],
    "edit": ["digits", "x", "--box", "0,0,1,1", "--labels", "1", "--out", OUT],
    "app": [],
}
TOP = 2**63 - 1
INTEGERS = {  # every one there is, with its range
    "sample --num": (1, TOP),
    "sample --per-class": (1, TOP),
    "sample --seed": (-TOP - 1, TOP),
    "sample --start-index": (0, TOP),
    "sample --steps": (1, 2),
    "sample --teacher-steps": (0, 2**31),
    "sample --top-k": (0, 2**31),
    "sample --jacobi": (0, 2**31),
    "sample --batch-size": (1, 2**31),
    "sample --scale": (1, 1024),
    "make-data --num": (1, TOP),
    "make-data --seed": (-TOP - 1, TOP),
    "make-data --top-k": (0, 2**31),
    "make-data --ode-steps": (1, 2**31),
    "make-data --batch-size": (1, 2**31),
    "make-data --shard-size": (1, 2**31),
    "train --seed": (0, TOP),
    "train --threads": (1, 4096),
    "train --check-parity": (1, 2**31),
    "tune --seed": (0, TOP),
    "tune --threads": (1, 4096),
    "tune --trials": (1, 2**31),
    "tune --samples": (100, 1 << 20),
    "demo --seed": (-TOP - 1, TOP),
    "demo --samples": (20, 1_000_000),
    "evaluate --seed": (0, 2**62),
    "evaluate --threads": (1, 4096),
    "fid --max-bytes": (1, TOP),
    "fid --batch-size": (1, 2**31),
    "app --port": (0, 65535),
    "export --batch": (1, 2**31),
    "export --teacher-steps": (0, 2**31),
    "export --steps": (1, 2),
    "edit --num": (1, 2**31),
    "edit --seed": (-TOP - 1, TOP),
    "edit --start-index": (0, TOP),
    "edit --steps": (1, 2),
    "edit --teacher-steps": (0, 2**31),
    "edit --top-k": (0, 2**31),
    "edit --batch-size": (1, 2**31),
    "edit --scale": (1, 1024),
}


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(one.choices for one in actions if isinstance(one, argparse._SubParsersAction))


def test_the_tables_name_every_integer_of_every_command() -> None:
    numbers = [
        f"{command} {action.option_strings[-1]}"
        for command, parser in commands().items()
        for action in parser._actions
        if action.type is int or "integer" in getattr(action.type, "__qualname__", "")
    ]
    assert sorted(numbers) == sorted(INTEGERS)
    assert commands().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_out_of_their_ranges(fails, name: str) -> None:
    (command, option), (low, high) = name.split(), INTEGERS[name]
    values = (*BAD_NUMBERS, "1e3", "1,2", "9" * 5000, str(10**30), str(-(10**30)), "\x1b[2J")
    for value in (*values, str(low - 1), str(high + 1)):
        error = fails(command, *COMMANDS[command], f"{option}={value}", naming=option)
        assert f"{option}: expected an integer in {low}..{high}, got " in error
    parser = commands()[command]
    for value in (low, high):
        argv = [*COMMANDS[command], f"{option}={value}"]
        assert value in vars(parser.parse_args(argv)).values()


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--labels=0,1", f"--seed={-TOP - 1}", "--out", f"{OUT}.png"],
        ["sample", "--num=2", f"--seed={TOP}", f"--start-index={TOP - 2}", "--out", OUT],
        ["sample", "--num=2", f"--seed={-TOP - 1}", "--out", f"{OUT}.npz"],
        ["sample", "--num=2", f"--batch-size={2**31}", "--scale=64", "--out", OUT],
        ["make-data", "random-var", "--num=2", f"--seed={-TOP - 1}", "--out", OUT],
        ["make-data", "random-var", "--num=2", f"--seed={TOP}", f"--batch-size={2**31}"]
        + [f"--shard-size={2**31}", f"--top-k={2**31}", "--pairs", "--ode-steps=1", "--out", OUT],
    ],
)
def test_the_ends_of_the_ranges_work(tmp_path: Path, monkeypatch, capsys, argv: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--quiet"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("seed", [-TOP - 1, TOP])
def test_every_seed_evaluates(seed: int) -> None:
    from dd2_fast.metrics.report import _seed

    assert 0 <= _seed(seed, 4, 1000) <= TOP
    assert _seed(5, 2, 3) == (5 * 1_000_003 + 2) * 1_000_003 + 3


@pytest.mark.parametrize("recipe", ["digits", "toy", "tiny_var"])
def test_seeds_that_no_recipe_takes(fails, recipe: str) -> None:
    for value in ("-1", str(TOP + 1), str(10**30), "1.5", "x"):
        fails("train", recipe, "--out", OUT, "--set", f"seed={value}", naming="seed")


HUGE = str(10**30)


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--num", "0", "--out", OUT],
        ["sample", "--num", "-3", "--out", OUT],
        ["sample", "--num", HUGE, "--out", OUT],
        ["sample", "--num", str(10**13), "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--seed", HUGE, "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--start-index", "-1", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--batch-size", "0", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--steps", "0", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--steps", HUGE, "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--scale", "0", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "-1", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "999", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--cfg", "nan", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--cfg", "inf", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--top-k", "-1", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--top-k", HUGE, "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--top-p", "nan", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--teacher-steps", "3", "--top-p", "2", "--out", f"{OUT}.png"],
        ["sample", "--labels", "1,x", "--out", OUT],
        ["sample", "--labels", "", "--out", OUT],
        ["sample", "--labels", "10", "--out", f"{OUT}.png"],
        ["sample", "--labels=-1", "--out", f"{OUT}.png"],
        ["sample", "--labels", HUGE, "--out", f"{OUT}.png"],
        ["sample", "--per-class", "1", "--num", "1", "--out", OUT],
        ["sample", "--per-class", str(TOP), "--out", OUT],
        ["sample", "--out", OUT],
        ["sample", "--num", "1", "--out", OUT, "--grid", f"{OUT}.jpg"],
        ["sample", "--num", "1", "--out", f"{OUT}.jpg"],
        ["sample", "--num", "1", "--out", f"{OUT}.npz", "--scale", "2"],
        ["sample", "--num", "1", "--out", "/dev/null/x.png"],
        ["sample", "--num", "1", "--out", "/proc/x"],
        ["sample", "--num", "1", "--out", "x" * 300 + ".png"],
        ["sample", "--num", "1", "--config", "x", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--config", "split=1", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--config", "split=1", "split=2", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--config", "source=1", "--out", f"{OUT}.png"],
        ["sample", "--num", "1", "--config", "max_bytes=x", "--out", f"{OUT}.png"],
        ["sample", "--model", "nonesuch", "--num", "1", "--out", f"{OUT}.png"],
        ["sample", "--model", "", "--num", "1", "--out", f"{OUT}.png"],
        ["sample", "--model", "a\0b", "--num", "1", "--out", f"{OUT}.png"],
        ["make-data", "digits", "--num", "0", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--seed", HUGE, "--out", OUT],
        ["make-data", "digits", "--num", "1", "--cfg", "nan", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--top-k", "-1", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--top-p", "0", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--top-p", "nan", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--batch-size", "0", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--shard-size", "0", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--ode-steps", "3", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--pairs", "--ode-steps", "0", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--labels", "odd", "--out", OUT],
        ["make-data", "digits", "--num", "1", "--out", "/dev/null/x"],
        ["make-data", "digits", "--out", OUT],
        ["train", "nonesuch"],
        ["train", "nonesuch.toml"],
        ["train", "/dev/null"],
        ["train", ""],
        ["train", "digits", "--teacher", "x"],
        ["train", "toy", "--threads", "0"],
        ["train", "toy", "--backend", "nonesuch", "--out", OUT],
        ["train", "toy", "--check-parity", "1"],
        ["train", "tiny_var", "--check-parity", "0"],
        ["train", "toy", "--out", "/dev/null/x"],
        ["train", "tiny_var", "--teacher", "nonesuch", "--out", "/proc/x"],
        ["plot", "nonesuch"],
        ["plot", "/dev/null"],
        ["fid", "nonesuch", "nonesuch"],
        ["fid", "/dev/null", "/dev/null"],
        ["demo", "--samples", "1"],
        ["demo", "--samples", "-1"],
        ["demo", "--out", f"{OUT}.jpg"],
        ["demo", "--out", "/dev/null/x.png"],
        ["demo", "--seed", HUGE, "--out", f"{OUT}.png"],
        ["convert", "x", "y"],
        ["convert", "x"],
        ["convert", str(DIGITS / "generator.safetensors"), "/dev/null/x.safetensors"],
        ["inspect"],
        ["inspect", ""],
        ["inspect", "a\0b"],
        ["info", "x"],
        ["--nonesuch"],
    ],
    ids=lambda argv: " ".join(argv)[:60].replace("/", "_"),
)
def test_values_that_no_command_takes(fails, argv: list[str]) -> None:
    fails(*argv)


@pytest.mark.parametrize(
    "setting",
    [
        *("x", "=", "=1", "steps", "nonesuch=1", "distill=1", "distill.steps=x", "seed=1.5"),
        *("distill.steps=-1", "distill.steps=nan", "stage1.rate=nan", "stage1.rate=inf"),
        *("stage1.betas=1", "stage1.betas=1,2,3", "stage1.betas=a,b", "overwrite=maybe"),
        *("stage1.target=x", "seed=", "seed=" + "9" * 5000, "a\x1b[2J=1", "\udcff=1"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_settings_that_no_recipe_takes(fails, setting: str) -> None:
    fails("train", "tiny_var", "--out", OUT, "--set", setting)


@pytest.mark.parametrize(
    "text",
    [
        *(b"\xff\xfe", b"x", b"[", b"a = " + b"[" * 100_000, b"nonesuch = 1", b"seed = 'x'"),
        *(b"seed = nan", b"seed = 1.5", b"distill = 3", b"[distill]\nsteps = 'x'", b"seed = true"),
        *(b"[distill]\nsteps = -1", b"[[distill]]\nsteps = 1", b"[stage1]\nbetas = ['a', 'b']"),
        *(b"[stage1]\nbetas = [0.1]", b"[stage1]\nrate = nan", b"seed = " + b"9" * 5000),
        *(b"[source]\nteacher = 3", b"seed = 1979-05-27"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_configurations_that_are_none(tmp_path: Path, fails, text: bytes) -> None:
    (tmp_path / "own.toml").write_bytes(text)
    fails("train", "own.toml", "--out", OUT, naming="own.toml")


def test_configurations_that_are_no_files(tmp_path: Path, fails) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name in ("pipe.toml", "folder.toml", "zero.toml", "absent.toml"):
        fails("train", name, "--out", OUT, naming=name)


GOOD_LINE = b'{"stage": "a", "step": 1, "time": 1.0, "values": {"x": 1.0}}\n'


@pytest.mark.parametrize(
    "log",
    [
        *(b"", b"\n", b"x\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 100_000 + b"\n", b"{}\n"),
        b'{"stage": 1, "step": 1, "time": 1, "values": []}\n',
        b'{"stage": ["a"], "step": 1, "time": 1, "values": {"x": 1}}\n',
        b'{"stage": "a", "step": Infinity, "time": 1, "values": {"x": 1}}\n',
        b'{"stage": "a", "step": -5, "time": 1, "values": {"x": 1}}\n',
        b'{"stage": "a", "step": 1' + b"0" * 400 + b', "time": 1, "values": {"x": 1}}\n',
        b'{"stage": "a", "step": 1, "time": 1, "values": {"x": "1"}}\n' + b"x\n",
        GOOD_LINE + b"\0\0\0\n",
    ],
    ids=lambda text: ascii(text[:60]),
)
def test_logs_that_cannot_be_drawn(tmp_path: Path, fails, log: bytes) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_bytes(log)
    fails("plot", ".", naming="log.jsonl")


def test_pictures_that_cannot_be_written(tmp_path: Path, fails) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_bytes(GOOD_LINE)
    (tmp_path / "folder.png").mkdir()
    for out, name in (("folder.png",) * 2, ("/dev/null/x.png", "/dev/null"), ("x.jpg",) * 2):
        fails("plot", ".", "--out", out, naming=name)
        fails("sample", "--num", "1", "--out", out, naming=name)
        fails("demo", "--out", out, naming=name)


def test_bundles_of_other_parts(tmp_path: Path, fails) -> None:
    for part, other in (
        ("generator", "tokenizer"),
        ("teacher", "classifier"),
        ("tokenizer", "teacher"),
    ):
        folder = tmp_path / part
        shutil.copytree(DIGITS, folder)
        shutil.copy(DIGITS / f"{other}.safetensors", folder / f"{part}.safetensors")
        for recipe in ("digits", "distil") if part == "generator" else ("digits",):
            (folder / "run.json").write_text(json.dumps({"recipe": recipe}))
            fails("sample", "--model", part, "--num", "1", "--out", f"{OUT}.png", naming=part)


def test_memory_that_runs_out_is_no_bug(fails, monkeypatch) -> None:
    for error in (
        MemoryError(),
        MemoryError("Unable to allocate 72.8 TiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    ):

        def fail(arguments, error=error) -> int:
            raise error

        monkeypatch.setattr("dd2_fast.cli.info.run", fail)
        fails("info", naming="out of memory")


def test_a_bug_still_shows_its_traceback(monkeypatch) -> None:
    for sort in (TypeError, AssertionError, KeyError, RuntimeError):

        def fail(arguments, sort=sort) -> int:
            raise sort("inside")

        monkeypatch.setattr("dd2_fast.cli.info.run", fail)
        with pytest.raises(sort, match="inside"):
            main(["info"])
