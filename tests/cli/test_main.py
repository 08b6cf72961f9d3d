"""Help, versions, exit codes, and the report of `info`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from processes import run_python

import dd2_fast
from dd2_fast import ops
from dd2_fast.cli import main

COMMANDS = (
    "info",
    "demo",
    "sample",
    "train",
    "tune",
    "plot",
    "make-data",
    "inspect",
    "convert",
    "export",
    "app",
)


def test_version_and_help(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dd2-fast {dd2_fast.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"\n    {command}\s", text) for command in COMMANDS)
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        assert f"usage: dd2-fast {command}" in capsys.readouterr().out


def test_usage_errors_are_one_line(capsys) -> None:
    for argv in (["nonesuch"], ["demo", "--samples", "x"], ["sample", "--out", "x"], ["train"]):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("dd2-fast: error: ") and captured.err.count("\n") == 1
        assert "--help" in captured.err and not captured.out
    assert main([]) == 2
    assert "usage: dd2-fast" in capsys.readouterr().out


def test_info_lists_every_backend_with_its_reason(capsys) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and dd2_fast.__version__ in text and "digits" in text
    for name, reason in ops.available_backends("cpu").items():
        expected = "available" if reason is None else f"unavailable: {reason}"
        assert re.search(rf"^  backend {name} +{re.escape(expected)}$", text, re.MULTILINE)
    assert re.search(r"^extension +(compiled for|unavailable: )", text, re.MULTILINE)
    columns = {re.match(r" *\S+( \S+)? {2,}", line).end() for line in text.splitlines() if line}
    assert len(columns) == 1


def test_info_says_that_a_forced_backend_is_none(capsys, monkeypatch) -> None:
    monkeypatch.setenv("DD2_FAST_BACKEND", "nonesuch")
    assert main(["info"]) == 2
    assert "DD2_FAST_BACKEND: expected one of 'cuda', " in capsys.readouterr().err


def test_a_forced_backend_that_cannot_run_is_one_line(capsys, monkeypatch) -> None:
    def refuse(arguments) -> int:
        raise RuntimeError("backend 'cuda' cannot run conditional_score: no device")

    monkeypatch.setattr("dd2_fast.cli.info.run", refuse)
    assert main(["info"]) == 2
    error = capsys.readouterr().err
    assert error == "dd2-fast: error: backend 'cuda' cannot run conditional_score: no device\n"


def test_a_bug_is_not_hidden(monkeypatch) -> None:
    def fail(arguments) -> int:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("dd2_fast.cli.info.run", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["info"])


def test_runs_as_a_module(tmp_path: Path) -> None:
    output = run_python("-m", "dd2_fast", "info", folder=tmp_path)
    assert output.splitlines()[0].split() == ["dd2_fast", dd2_fast.__version__]


def test_dir_lists_what_can_be_had() -> None:
    assert set(dd2_fast.__all__) <= set(dir(dd2_fast)) and "Sampler" in dir(dd2_fast)
    assert all(hasattr(dd2_fast, name) for name in dir(dd2_fast))
