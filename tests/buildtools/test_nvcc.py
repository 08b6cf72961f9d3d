"""Which CUDA architectures are built, by stubs of nvcc and nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest
from buildtools_stubs import module, nvcc, script

ALL = ("sm_80,sm_90,sm_100,PTX_100", "no GPU was there to choose by")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is searched for programs."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "DD2_FAST_CUDA", "DD2_FAST_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", str(nvcc(tmp_path / "tool kit" / "bin" / "nvcc", tmp_path)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("shown", "names", "chosen"),
    [
        ("echo 9.0", "sm_90,PTX_90", "the GPU that was there"),
        ("printf '10.0\\n8.6\\n8.6\\n'", "sm_86,sm_100,PTX_100", "the GPU that was there"),
        ("echo 12.1", *ALL),  # newer than nvcc
        ("echo 7.5", *ALL),  # older than the kernels need
        ("printf '7.5\\n8.0\\n'", "sm_80,PTX_80", "the GPU that was there"),
        ("echo 'Field \"compute_cap\" is not a valid field to query.'", *ALL),
        ("echo '[N/A]'", *ALL),
        ("echo 9.0; exit 9", *ALL),  # the driver does not answer
        ("exit 0", *ALL),
    ],
)
def test_the_gpu_that_is_there_decides(shown: str, names: str, chosen: str, machine: Path) -> None:
    script(machine / "bin" / "nvidia-smi", shown)
    found, reason = module("nvcc").find()
    assert (found.names, found.chosen, reason) == (names, chosen, "")


def test_without_a_gpu_all_are_built() -> None:
    found, _ = module("nvcc").find()
    assert (found.names, found.chosen, found.version) == (*ALL, "13.1")
    # 80 and 90 share a PTX.
    assert [flag for flag in found.flags if "gencode" in flag] == [
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_80,code=[sm_80,sm_90]",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize(
    ("named", "names"),
    [
        ("all", "sm_80,sm_90,sm_100,PTX_100"),
        ("90a,100+PTX", "sm_90a,sm_100,PTX_100"),
        ("8.6", "sm_86"),
        (" 80; 86 ", "sm_80,sm_86"),
    ],
)
def test_what_is_named_counts(named: str, names: str, machine: Path, monkeypatch) -> None:
    script(machine / "bin" / "nvidia-smi", "echo 9.0")
    monkeypatch.setenv("DD2_FAST_CUDA_ARCHS", named)
    found, _ = module("nvcc").find()
    assert (found.names, found.chosen) == (names, "as DD2_FAST_CUDA_ARCHS says")


def test_a_name_that_is_none(monkeypatch) -> None:
    monkeypatch.setenv("DD2_FAST_CUDA_ARCHS", "hopper")
    with pytest.raises(SystemExit, match="DD2_FAST_CUDA_ARCHS: expected .*'hopper'"):
        module("nvcc").find()


def test_an_older_nvcc_builds_what_it_knows(machine: Path, monkeypatch) -> None:
    old = nvcc(machine / "old", machine, known="80 90 90a")
    monkeypatch.setenv("CUDACXX", str(old))
    assert module("nvcc").find()[0].names == "sm_80,sm_90,PTX_90"
    monkeypatch.setenv("CUDACXX", str(nvcc(machine / "older", machine, known="50 70")))
    found, reason = module("nvcc").find()
    assert found is None and "knows none of 80, 90, 100" in reason


def test_cudacxx_may_have_a_launcher(machine: Path, monkeypatch) -> None:
    launcher = script(machine / "ccache", 'exec "$@"')
    compiler = machine / "tool kit" / "bin" / "nvcc"
    monkeypatch.setenv("CUDACXX", f"{launcher} '{compiler}'")
    assert module("nvcc").find()[0].command == [str(launcher), str(compiler)]


@pytest.mark.parametrize("value", ["", "1"])
def test_an_nvcc_that_cannot_compile(value: str, machine: Path, monkeypatch) -> None:
    error = "host_config.h: fatal error: -- unsupported GNU version!"
    monkeypatch.setenv("CUDACXX", str(nvcc(machine / "nvcc", machine, error=error)))
    monkeypatch.setenv("DD2_FAST_CUDA", value)
    if value == "1":
        with pytest.raises(SystemExit, match="DD2_FAST_CUDA=1: expected nvcc: .*unsupported GNU"):
            module("nvcc").find()
    else:
        found, reason = module("nvcc").find()
        assert found is None and reason.endswith(error)


def test_no_nvcc(machine: Path, monkeypatch) -> None:
    monkeypatch.setenv("DD2_FAST_CUDA", "0")
    assert module("nvcc").find() == (None, "DD2_FAST_CUDA=0")
    monkeypatch.setenv("DD2_FAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="DD2_FAST_CUDA: expected 0 or 1, got 'yes'"):
        module("nvcc").find()
