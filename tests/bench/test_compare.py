"""compare.py on files made up here: both formats, noise, missing rows, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from result_files import BENCH, gpu_check_file, pytest_file


def compare(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, str(BENCH / "tools" / "compare.py"), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


BEFORE = [("op cpu var", "cpu", 10.0, 0.5), ("op cpu var", "eager", 40.0, 8.0)]


def test_reports_what_moved_beyond_its_noise_and_nothing_else(tmp_path: Path) -> None:
    before = pytest_file(tmp_path / "a.json", BEFORE)
    # The first 30% slower with 10% of noise; the second 20% with 40%.
    after = pytest_file(
        tmp_path / "b.json", [("op cpu var", "cpu", 13.0, 0.65), ("op cpu var", "eager", 48.0, 9.6)]
    )
    code, out, _ = compare(before, after)
    assert code == 0
    assert "1 of 2 moved" in out
    (row,) = [line for line in out.splitlines() if line.startswith("op cpu var")]
    assert row.split()[3:] == ["cpu", "10.000", "ms", "13.000", "ms", "+30.0%", "10.0%"]


@pytest.mark.parametrize(("limit", "code"), [("25", 1), ("35", 0)])
def test_fail_above(tmp_path: Path, limit: str, code: int) -> None:
    before = pytest_file(tmp_path / "a.json", BEFORE)
    after = pytest_file(tmp_path / "b.json", [("op cpu var", "cpu", 13.0, 0.65), BEFORE[1]])
    assert compare(before, after, "--fail-above", limit)[0] == code
    # The same in the other direction is a gain.
    assert compare(after, before, "--fail-above", "1")[0] == 0


def test_a_slow_down_within_the_noise_does_not_fail(tmp_path: Path) -> None:
    before = pytest_file(tmp_path / "a.json", [("g", "v", 10.0, 3.0)])
    after = pytest_file(tmp_path / "b.json", [("g", "v", 14.0, 4.0)])
    code, out, _ = compare(before, after, "--fail-above", "5")
    assert (code, out.splitlines()[0]) == (0, "0 of 1 moved beyond their noise")


def test_mixes_formats_and_names_what_only_one_has(tmp_path: Path) -> None:
    before = pytest_file(tmp_path / "a.json", [*BEFORE, ("old", "cpu", 1.0, 0.0)])
    rows = [("op cpu var", "cpu", 5.0, 0.1), ("op cpu var", "eager", 40.0, 1.0)]
    after = gpu_check_file(tmp_path / "b.json", [*rows, ("new", "cuda", 1.0, 0.0)])
    code, out, _ = compare(before, after)
    assert code == 0
    assert "different machines: A CPU, 2 threads and A GPU" in out
    assert "-50.0%" in out
    assert "only in a.json: old cpu" in out and "only in b.json: new cuda" in out


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": {}}'])
def test_refuses_what_is_no_result_file(tmp_path: Path, content: str) -> None:
    good = pytest_file(tmp_path / "a.json", BEFORE)
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    code, _, err = compare(good, bad)
    assert code == 2 and str(bad) in err and "Traceback" not in err
    code, _, err = compare(good, tmp_path / "absent.json")
    assert code == 2 and "absent.json" in err


def of_date(path: Path, date: str, rows: list[tuple[str, str, float, float]]) -> None:
    content = json.loads(pytest_file(path, rows).read_text())
    path.write_text(json.dumps({**content, "datetime": f"{date}T00:00:00"}))


def test_a_folder_is_the_newest_file_of_each_group_of_the_machine(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    of_date(folder / "a.json", "2026-01-03", [("one cpu var", "cpu", 10.0, 0.1)])
    old = [("one cpu var", "cpu", 99.0, 0.1), ("two cpu var", "cpu", 20.0, 0.1)]
    of_date(folder / "b.json", "2026-01-02", old)
    gpu_check_file(folder / "gpu.json", [("two cpu var", "cpu", 1.0, 0.1)])
    rows = [("one cpu var", "cpu", 11.0, 0.1), ("two cpu var", "cpu", 30.0, 0.1)]
    after = pytest_file(tmp_path / "new.json", rows)
    code, out, err = compare(folder, after)
    assert code == 0, err
    assert "2 of 2 moved" in out and "+10.0%" in out and "+50.0%" in out
    other = gpu_check_file(tmp_path / "other.json", rows, gpu="Another GPU")
    code, _, err = compare(folder, other)
    assert code == 2 and f"{folder}: expected results of Another GPU, got none" in err


def test_the_committed_results_compare_with_any_of_them(tmp_path: Path) -> None:
    """Also with the newest, of which a part was measured alone."""
    for path in (BENCH / "results").glob("*.json"):
        after = shutil.copy(path, tmp_path / "again.json")
        code, out, err = compare(BENCH / "results", after, "--fail-above", "0")
        assert code in (0, 1), err
        assert int(re.match(r"\d+ of (\d+) moved", out)[1]) == len(load_rows(path))


def load_rows(path: Path) -> list[object]:
    return json.loads(path.read_text())["benchmarks"]


def test_nothing_in_common_is_no_comparison(tmp_path: Path) -> None:
    before = pytest_file(tmp_path / "a.json", BEFORE)
    after = pytest_file(tmp_path / "b.json", [("other cpu var", "cpu", 1.0, 0.1)])
    code, _, err = compare(before, after, "--fail-above", "5")
    assert code == 2 and "a.json and b.json have no variant in common" in err


@pytest.mark.parametrize(("eager", "said"), [(60.0, True), (41.0, False), (20.0, True)])
def test_a_machine_in_another_state_is_told_by_plain_code(
    tmp_path: Path, eager: float, said: bool
) -> None:
    before = pytest_file(tmp_path / "a.json", BEFORE)
    after = pytest_file(tmp_path / "b.json", [BEFORE[0], ("op cpu var", "eager", eager, 0.1)])
    out = compare(before, after)[1]
    assert ("the machine was not in the same state" in out) == said
