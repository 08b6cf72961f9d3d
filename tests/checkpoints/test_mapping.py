"""Loading maps the file: no second copy, pages read when used, the file itself never written."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import teacher_tensors
from processes import run_python

from dd2_fast import checkpoints

pytestmark = [
    pytest.mark.usefixtures("family"),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc"),
]
MIB = 2**20
SCRIPT = """
import os
import sys
import pytest
from checkpoints import tiny
from dd2_fast import checkpoints

def status():
    lines = (line.split() for line in open("/proc/self/status"))
    return {words[0]: int(words[1]) // 1024 for words in lines if words[0].endswith(":")
            and words[0][:-1] in ("RssAnon", "RssFile", "VmHWM", "VmRSS")}

def growth(path):
    before = status()
    model = checkpoints.load(path)
    loaded = status()
    float(model.out.weight.sum() + model.table.weight.sum())
    touched = status()
    checkpoints.save(path + ".copy", model)
    for then in (loaded, touched, status()):
        yield from (then[key] - before["VmRSS:" if key == "VmHWM:" else key]
                    for key in ("RssAnon:", "RssFile:", "VmHWM:"))

tiny.install(pytest.MonkeyPatch())
checkpoints.load(tiny.teacher_tensors())
for path in sys.argv[1:]:
    if (child := os.fork()) == 0:  # each from the same memory
        print(*growth(path), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def write(path: Path, tensors, container: str) -> Path:
    if container == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif container == "ours":
        checkpoints.save(path, checkpoints.load(tensors))
    else:
        torch.save({"model": tensors}, path)
    return path


@pytest.mark.slow
def test_a_large_file_costs_no_memory_of_its_own(tmp_path: Path):
    tensors = {
        "table.weight": torch.ones(3, 7168),
        "out.weight": torch.ones(7168, 7168),
        "out.bias": torch.ones(7168),
    }
    containers = ("zip", "safetensors", "ours")
    paths = [write(tmp_path / container, tensors, container) for container in containers]
    size = min(path.stat().st_size for path in paths) // MIB
    assert size >= 196
    report = run_python("-c", SCRIPT, *map(str, paths), folder=tmp_path)
    for written in tmp_path.iterdir():
        written.unlink()  # pytest keeps the folders of the last runs
    for container, line in zip(containers, report.splitlines(), strict=True):
        numbers = [int(value) for value in line.split()]
        loaded, touched, saved = numbers[:3], numbers[3:6], numbers[6:]
        assert max(loaded) < 40, f"{container} loaded: private, of files, at the peak"
        assert touched[0] < 40 and touched[1] > size - 10, container
        assert saved[0] < 40 and saved[2] < size + 40, container


@pytest.mark.parametrize("container", ["zip", "safetensors", "ours"])
def test_storage_lies_in_the_file_and_writing_stays_private(tmp_path: Path, container: str):
    path = write(tmp_path / "x", teacher_tensors(width=64, classes=50), container)
    whole = path.read_bytes()
    model = checkpoints.load(path)
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    for parameter in model.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges)
        parameter.zero_()
    assert path.read_bytes() == whole
    path.unlink()
    assert torch.equal(model.out.bias, torch.zeros(64))


def test_saving_over_the_file_a_model_was_loaded_from(tmp_path: Path):
    path = write(tmp_path / "x.safetensors", teacher_tensors(), "ours")
    for _ in range(3):
        checkpoints.save(path, checkpoints.load(path))
    for name, value in checkpoints.load(path).state_dict().items():
        assert torch.equal(value, teacher_tensors()[name])
