"""`dd2-fast train`: from the command line to the recipe's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from dd2_fast.cli import main
from dd2_fast.cli.settings import apply_settings, field_types
from dd2_fast.training.recipes import digits, toy


@dataclass(frozen=True)
class _Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.0, 0.99)
    sizes: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class _Config:
    seed: int = 0
    name: str = "a"
    fast: bool = False
    limit: int | None = None
    kind: Literal["sid", "dmd"] = "sid"
    inner: _Inner = field(default_factory=_Inner)


def test_settings_are_parsed_by_type() -> None:
    assignments = ["seed=3", "name=x=y", "fast=yes", "limit=7", "kind=dmd"]
    assignments += ["inner.rate=1e-3", "inner.betas=0.5,0.9", "inner.sizes=1,2,3"]
    assert apply_settings(_Config(), assignments) == _Config(
        3, "x=y", True, 7, "dmd", _Inner(1e-3, (0.5, 0.9), (1, 2, 3))
    )
    assert apply_settings(_Config(limit=2), ["limit=none"]) == _Config()
    assert list(field_types(_Config()))[-3:] == ["inner.rate", "inner.betas", "inner.sizes"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set: expected name=value, got 'seed'"),
        ("iner.rate=3", "^--set: did you mean inner.rate. expected one of .*; got 'iner.rate'"),
        ("inner=3", "expected one of the fields seed, name, .*inner.rate.*; got 'inner'"),
        ("seed=1.5", "--set seed: expected an integer, got '1.5'"),
        ("inner.rate=fast", "--set inner.rate: expected a number, got 'fast'"),
        ("inner.rate=nan", "--set inner.rate: expected a finite number"),
        ("fast=2", "--set fast: expected true or false, got '2'"),
        ("inner.betas=0.1", "--set inner.betas: expected 2 values separated by commas"),
        ("kind=kl", "--set kind: expected one of sid, dmd, got 'kl'"),
    ],
)
def test_settings_that_do_not_fit_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_settings(_Config(), [assignment])


@pytest.mark.parametrize(("name", "recipe"), [("digits", digits), ("toy", toy)])
def test_the_recipe_gets_what_was_asked(name, recipe, tmp_path, capsys, monkeypatch) -> None:
    seen = {}

    def run(config, out: Path, *, progress: bool) -> Path:
        seen.update(config=config, out=out, progress=progress, threads=torch.get_num_threads())
        (out / "run.json").write_text('{"metrics": {}}')
        return out

    monkeypatch.setattr(recipe, "run", run)
    threads = torch.get_num_threads()
    argv = ["train", name, "--out", str(tmp_path), "--seed", "5", "--threads", "1", "--quiet"]
    try:
        assert main([*argv, "--set", "distill.steps=17"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert seen["config"].seed == 5 and seen["config"].distill.steps == 17
    assert seen["out"] == tmp_path and not seen["progress"] and seen["threads"] == 1
    assert capsys.readouterr().out == f"wrote {tmp_path}\n"


def test_list_prints_fields_as_set_takes_them(capsys) -> None:
    assigned = ["distill.steps=3", "seed=4", "tokenizer.steps=900"]
    assert main(["train", "digits", "--list", "--set", *assigned[:2], "--set", assigned[2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(assigned) <= set(lines)
    config = digits.DigitsConfig()
    assert apply_settings(config, lines) != config
    assert apply_settings(config, [line for line in lines if line not in assigned]) == config


def test_an_interruption_says_that_it_resumes(tmp_path, capsys, monkeypatch) -> None:
    def run(config, out: Path, *, progress: bool) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "run", run)
    assert main(["train", "digits", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert f"the same command continues from {tmp_path}" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "nonesuch=1"], "expected one of the fields seed,"),
        (["--set", "distill.steps=-3"], "error: distill.steps: expected zero or more, got -3"),
        (["--set", "distil.steps=3"], "--set: did you mean distill.steps?"),
        (["--threads", "0"], "--threads: expected an integer in 1..4096, got 0"),
        (["--out", "{tmp}/file/run"], "{tmp}/file/run: cannot write"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, argv, message) -> None:
    (tmp_path / "file").touch()
    assert main(["train", "digits", *(a.format(tmp=tmp_path) for a in argv)]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error and error.count("\n") == 1
