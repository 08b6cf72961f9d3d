"""The source distribution, and what is installed from it: with a compiler, twice, and without."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from buildtools_stubs import ODD, ROOT, real_gxx, script
from optional import require

BACKEND = "import sys, setuptools.build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"


def build(what: str, source: Path, out: Path, **values: str) -> Path:
    """The sdist or wheel that pip would make, by the backend itself; nothing is downloaded."""
    for name in ("setuptools", "pybind11", "ninja"):
        require(name)
    out.mkdir(parents=True, exist_ok=True)
    scripts = Path(sys.executable).parent  # ninja's
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DD2_FAST_CUDA": "0", **values}
    run = subprocess.run(
        [sys.executable, "-c", BACKEND, what, str(out)],
        cwd=source, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (made,) = out.iterdir()
    return made


def cloned(folder: Path) -> Path:
    """The checkout's tracked files alone, as a fresh clone has them."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    clone = folder / "clone"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    return clone


def unpacked_sdist(folder: Path) -> Path:
    with tarfile.open(build("sdist", cloned(folder), folder / "sdist")) as archive:
        # Python 3.11.2, which is Debian 12's, has no filters yet.
        filters: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / ODD, **filters)
    (source,) = (folder / ODD).iterdir()
    return source


def run_installed(site: Path, code: str, folder: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def unzip(wheel: Path, site: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def packaged(clone: Path) -> set[str]:
    """What of the checkout is to be installed: the package and the kernels' headers."""
    names = {str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file()}
    package = {name for name in names if name.startswith("dd2_fast/")}
    headers = {f"dd2_fast/{name}" for name in names if name.startswith("csrc/include/dd2/")}
    assert package and headers
    return headers | {n for n in package if not n.endswith(("README.md", "API.md", "demo.png"))}


def test_the_package_is_every_folder_of_it(tmp_path: Path) -> None:
    """Folders are found, not listed: a new one is installed too, and nothing beside the package."""
    require("setuptools")
    clone = cloned(tmp_path)
    added = clone / "dd2_fast" / "ops" / "added" / "__init__.py"
    added.parent.mkdir()
    added.write_text("")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    run = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lib = tmp_path / "lib"
    built = {str(path.relative_to(lib)) for path in lib.rglob("*") if path.is_file()}
    assert built == packaged(clone)


@pytest.mark.slow
def test_a_source_distribution_is_the_checkout(tmp_path: Path) -> None:
    source = unpacked_sdist(tmp_path)
    clone = tmp_path / "clone"
    # The build leaves bytecode there, unless PYTHONDONTWRITEBYTECODE says otherwise.
    files = (path for path in clone.rglob("*") if "__pycache__" not in path.parts)
    tracked = {path.relative_to(clone) for path in files}
    packed = {path.relative_to(source) for path in source.rglob("*")}
    assert Path("csrc/plan/plan.h") in packed
    assert {str(path) for path in tracked - packed} <= {".gitignore", ".pre-commit-config.yaml"}
    linked = re.findall(r"\]\(([^)#:]+)\)", (source / "README.md").read_text())
    assert "dd2_fast/assets/demo.png" in linked
    assert [name for name in linked if not (source / name).exists()] == []


@pytest.mark.slow
def test_installs_from_a_folder_of_any_name_twice_the_same(tmp_path: Path) -> None:
    source = unpacked_sdist(tmp_path)
    copy = shutil.copytree(source, tmp_path / "plain")
    # Not optimized and for one instruction set alone, for the time that it takes.
    old = 'case "$*" in *-v3*|*-mavx2*) exit 1;; esac; '
    fast = script(tmp_path / "my tools" / "g++", f'{old}exec "{real_gxx()}" "$@" -O0')
    (tmp_path / "it's $TMP").mkdir()
    log = tmp_path / "log"
    launcher = script(tmp_path / "ccache", f'echo >>"{log}"; exec "$@"')
    named = f"{launcher} '{fast}'"
    first = build("wheel", source, tmp_path / "1", CXX=named, TMPDIR=str(tmp_path / "it's $TMP"))
    second = build("wheel", copy, tmp_path / "2", CXX=named, MAX_JOBS="1")
    assert first.read_bytes() == second.read_bytes()
    kernels = list((source / "csrc" / "cpu").glob("*.cpp"))
    assert len(log.read_text().splitlines()) > 2 * len(kernels)
    names = zipfile.ZipFile(first).namelist()
    made = {name for name in names if ".dist-info/" not in name and not name.endswith(".so")}
    assert made == packaged(copy) | {"dd2_fast/build.json"}
    site = unzip(first, tmp_path / "site")
    code = (
        "import torch, dd2_fast.cli, dd2_fast.ops as ops\n"
        "a = torch.zeros(2, 3), .5, torch.zeros(2, 5), torch.randn(5, 3)\n"
        "same = [ops.conditional_score(*a, backend=b) for b in ('cpu', 'torch')]\n"
        "torch.testing.assert_close(*same)\n"
        "dd2_fast.cli.main(['info'])\n"
    )
    out = run_installed(site, code, tmp_path)
    assert re.search(r"^extension +compiled for the CPU only \(DD2_FAST_CUDA=0\)$", out, re.M)
    assert re.search(r"^  built_with +\S", out, re.M)
    assert re.search(r"^  built_for +(v2|generic)$", out, re.M)


@pytest.mark.slow
def test_without_a_compiler_info_and_the_first_warning_say_how_to_get_it(tmp_path: Path) -> None:
    source = unpacked_sdist(tmp_path)
    wheel = build("wheel", source, tmp_path / "1", CXX="/nonexistent/g++")
    site = unzip(wheel, tmp_path / "site")
    assert list(json.loads((site / "dd2_fast" / "build.json").read_text())) == ["missing"]
    code = (
        "import warnings, torch, dd2_fast.cli, dd2_fast.ops as ops\n"
        "a = torch.zeros(2, 3), .5, torch.zeros(2, 5), torch.randn(5, 3)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    ops.conditional_score(*a)\n"
        "print([str(w.message) for w in caught][0])\n"
        "dd2_fast.cli.main(['info'])\n"
    )
    warning, *info = run_installed(site, code, tmp_path).splitlines()
    (extension,) = (line for line in info if line.startswith("extension "))
    for text in (warning, extension):
        assert "CXX=/nonexistent/g++ is not there" in text
        assert "apt-get install g++" in text and "pip install" in text
