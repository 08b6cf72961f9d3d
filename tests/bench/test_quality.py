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


@pytest.mark.parametrize("name", ["claims", "passes", "tuning", "refinements"])
def test_the_committed_tables_are_made_from_the_committed_files(name: str, tmp_path: Path) -> None:
    folder = BENCH / "results" / name
    tool = str(BENCH / "tools" / "quality.py")
    printed = run_python(tool, f"--{name}", str(folder), folder=tmp_path).strip()
    tables = [part for part in printed.split("\n\n") if not part.startswith("#")]
    if name == "tuning":  # after how many trials, which the text may say otherwise
        tables = [part for part in tables if part.startswith("|")]
    files = list(folder.glob("*.json"))
    least = {
        "claims": {path.stem.partition("-")[0].partition("_")[0] for path in files} - {"lengths"},
        "passes": files,
        "tuning": 2 * [path for path in files if "-" not in path.stem],
        "refinements": range(2),
    }
    quality = (BENCH / "QUALITY.md").read_text()
    assert len(tables) >= len(least[name]) >= 1
    assert sum(table.count("\n|") for table in tables) > len(files)  # rows
    assert all(table in quality for table in tables)
