"""Which C++ compiler the build takes, by stubs: launchers, paths with spaces, old compilers."""

from __future__ import annotations

from pathlib import Path

import pytest
from buildtools_stubs import module, real_gxx, refusing, script


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)


def test_a_command_is_a_path_or_words(tmp_path: Path) -> None:
    command = module("commands").command
    plain = str(script(tmp_path / "a b" / "g++", ""))
    launcher = str(script(tmp_path / "ccache", ""))
    assert command(plain) == [plain]
    assert command(f"{launcher} g++ -m64") == [launcher, "g++", "-m64"]
    assert command(f"{launcher} '{plain}'") == [launcher, plain]
    assert command(f"'{plain}' -DA='b c'") == [plain, "-DA=b c"]
    for absent in ("", "nonesuch g++", "it's", str(tmp_path)):
        assert command(absent) is None


def test_a_relative_command_is_found_from_where_ninja_runs(tmp_path, monkeypatch) -> None:
    script(tmp_path / "g++", "")
    monkeypatch.chdir(tmp_path)
    assert module("commands").command("./g++") == [str(tmp_path / "g++")]


def test_flags_may_hold_spaces(monkeypatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-O1 -I'/opt/my include'")
    monkeypatch.setenv("LDFLAGS", "-L/opt/my\\ lib")
    cxx = module("cxx").Cxx([real_gxx()])
    assert cxx.flags[:2] == ["-O1", "-I/opt/my include"] and "-O3" in cxx.flags[2:]
    assert cxx.link_flags[0] == "-L/opt/my lib"


@pytest.mark.parametrize(("value", "found"), [("", []), ("3", ["-j", "3"]), (" 1 ", ["-j", "1"])])
def test_max_jobs(value: str, found: list[str], monkeypatch) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    assert module("commands").jobs() == found


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_max_jobs_is_a_number(value: str, monkeypatch) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(SystemExit, match=f"MAX_JOBS: expected .*'{value}'"):
        module("commands").jobs()


def test_a_launcher_launches(tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "log"
    launcher = script(tmp_path / "my tools" / "ccache", f'echo "$1" >>"{log}"; exec "$@"')
    monkeypatch.setenv("CXX", f"'{launcher}' {real_gxx()}")
    cxx, reason = module("cxx").find()
    assert cxx.command == [str(launcher), real_gxx()] and reason == ""
    assert set(log.read_text().split()) == {real_gxx()}


def test_temporary_files_may_lie_anywhere(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "a $HOME 'b'"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert module("cxx").Cxx([real_gxx()]).takes("-O1")
    assert not list(folder.iterdir())


def test_no_compiler_says_what_was_tried_and_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++ -m64")
    cxx, reason = module("cxx").find()
    assert cxx is None
    assert "CXX=/nonexistent/g++ -m64 is not there" in reason
    assert "apt-get install g++" in reason and "pip install" in reason and "\n" not in reason
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = module("cxx").find()[1]
    assert all(f"{name} is not there" in reason for name in ("g++", "c++", "clang++"))


def test_a_compiler_that_cannot_compile_is_none(tmp_path: Path, monkeypatch) -> None:
    broken = script(tmp_path / "g++", "echo note >&2; echo 'fatal error: no vector' >&2; exit 1")
    monkeypatch.setenv("CXX", str(broken))
    cxx, reason = module("cxx").find()
    assert cxx is None and "does not compile C++17: fatal error: no vector" in reason


def test_the_next_compiler_is_tried(tmp_path: Path, monkeypatch) -> None:
    script(tmp_path / "g++", "exit 1")
    works = script(tmp_path / "c++", f'exec "{real_gxx()}" "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert module("cxx").find()[0].command == [str(works)]


def test_missing_headers_of_python_are_named(tmp_path: Path, monkeypatch) -> None:
    real_gxx()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    cxx, reason = module("cxx").find()
    assert cxx is None and "Python.h" in reason and "python3-dev" in reason


X86 = pytest.mark.skipif(
    module("cxx").platform.machine() not in ("x86_64", "AMD64"), reason="not x86"
)


@X86
@pytest.mark.parametrize(
    ("refused", "levels"),
    [
        (["nothing"], {"v2": "x86-64-v2", "v3": "x86-64-v3", "v4": "x86-64-v4"}),
        (["-march=x86-64-v*"], {"v2": "sse4.2", "v3": "avx2", "v4": "avx512f"}),
        (["-march=x86-64-v4"], {"v2": "x86-64-v2", "v3": "x86-64-v3", "v4": "avx512f"}),
        (["-march=x86-64-v4", "-mavx512*"], {"v2": "x86-64-v2", "v3": "x86-64-v3"}),
        (["-march=x86-64-v[34]", "-mavx2"], {"v2": "x86-64-v2"}),
        (["-m*"], {"generic": ""}),
    ],
)
def test_every_level_is_tried(refused: list[str], levels: dict[str, str], tmp_path: Path) -> None:
    cxx = module("cxx").Cxx([str(refusing(tmp_path / "g++", *refused))])
    found = cxx.instruction_sets()
    assert set(found) == set(levels)
    for level, flag in levels.items():
        assert flag in " ".join(found[level])
        assert cxx.takes(*found[level])
    if "v4" in found:
        assert {"avx2", "sse4.2"} <= {w[2:] for w in found["v4"]} or found["v4"][0][-2:] == "v4"


@X86
def test_wide_vectors_are_asked_for_where_they_are_known(tmp_path: Path) -> None:
    found = module("cxx").Cxx([str(refusing(tmp_path / "g++", "-mprefer*"))]).instruction_sets()
    assert found["v4"] == ["-march=x86-64-v4"]
