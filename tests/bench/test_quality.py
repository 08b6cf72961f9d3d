"""The comparison of methods in bench/QUALITY.md is what the committed files make."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_python
from result_files import BENCH


@pytest.mark.slow
def test_the_committed_comparison_is_made_from_the_committed_files(tmp_path: Path) -> None:
    folder = BENCH / "results" / "ablations"
    printed = run_python(
        str(BENCH / "tools" / "quality.py"), "--ablations", str(folder), folder=tmp_path
    ).strip()
    assert printed.startswith("## Methods at equal training time")
    table = printed.partition("\n\n")[2]
    assert table.count("\n") >= 9 and table in (BENCH / "QUALITY.md").read_text()


def test_the_committed_claims_are_made_from_the_committed_files(tmp_path: Path) -> None:
    folder = BENCH / "results" / "claims"
    printed = run_python(
        str(BENCH / "tools" / "quality.py"), "--claims", str(folder), folder=tmp_path
    ).strip()
    tables = [part for part in printed.split("\n\n") if not part.startswith("#")]
    quality = (BENCH / "QUALITY.md").read_text()
    claims = {path.stem.partition("-")[0].partition("_")[0] for path in folder.glob("*.json")}
    assert len(tables) >= len(claims - {"lengths"}) >= 1
    assert all(table in quality for table in tables)


def test_the_committed_passes_are_made_from_the_committed_files(tmp_path: Path) -> None:
    folder = BENCH / "results" / "passes"
    printed = run_python(
        str(BENCH / "tools" / "quality.py"), "--passes", str(folder), folder=tmp_path
    ).strip()
    tables = [part for part in printed.split("\n\n") if part.startswith("|")]
    quality = (BENCH / "QUALITY.md").read_text()
    assert len(tables) == len(list(folder.glob("*.json"))) >= 1
    assert all(table.count("\n") >= 5 and table in quality for table in tables)


def test_the_committed_tuning_is_made_from_the_committed_files(tmp_path: Path) -> None:
    folder = BENCH / "results" / "tuning"
    printed = run_python(
        str(BENCH / "tools" / "quality.py"), "--tuning", str(folder), folder=tmp_path
    ).strip()
    tables = [part for part in printed.split("\n\n") if part.startswith("|")]
    studies = [path for path in folder.glob("*.json") if "-" not in path.stem]
    quality = (BENCH / "QUALITY.md").read_text()
    assert len(tables) == 2 * len(studies) >= 2
    assert all(table in quality for table in tables)


def test_the_committed_refinements_are_made_from_the_committed_files(tmp_path: Path) -> None:
    folder = BENCH / "results" / "refinements"
    printed = run_python(
        str(BENCH / "tools" / "quality.py"), "--refinements", str(folder), folder=tmp_path
    ).strip()
    tables = [part for part in printed.split("\n\n") if part.startswith("|")]
    quality = (BENCH / "QUALITY.md").read_text()
    assert len(tables) == 2 and tables[0].count("\n") > len(list(folder.glob("*-0.json")))
    assert all(table in quality for table in tables)
