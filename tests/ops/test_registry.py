"""Choice of backends, and the direction of imports."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from processes import run_python

import dd2_fast
from dd2_fast.ops import (
    available_backends,
    conditional_score,
    default_backend,
    extension,
    nvrtc,
    registry,
)

PACKAGE = Path(dd2_fast.__file__).parent
ARGUMENTS = (torch.zeros(2, 3), 0.5, torch.zeros(2, 5), torch.randn(5, 3))
# Each layer may import those to its right.
LAYERS = ("cli", "training", "sampling", "metrics", "checkpoints", "models", "losses", "ops")


def test_every_backend_has_a_reason_or_none() -> None:
    reasons = available_backends("cpu")
    assert reasons["torch"] is None
    assert list(reasons) == ["cuda", "cupy", "triton", "cpu", "torch"]
    assert all("not on cpu" in reasons[name] for name in ("cuda", "cupy", "triton"))
    on_gpu = available_backends("cuda")
    assert "not on cuda" in on_gpu["cpu"] and on_gpu["torch"] is None


@pytest.mark.parametrize("installed", [True, False])
def test_triton_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    found = importlib.util.find_spec("torch") if installed else None
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    wanted = "8.0 or newer, the device has 7.5" if installed else "triton is not installed"
    assert wanted in available_backends("cuda")["triton"]


@pytest.mark.parametrize("backend", ["cuda", "cupy", "triton"])
def test_named_backend_never_falls_back(backend: str) -> None:
    with pytest.raises(RuntimeError, match=f"'{backend}' cannot run condition.*CUDA tensors"):
        conditional_score(*ARGUMENTS, backend=backend)


def test_the_first_usable_backend_is_chosen_and_no_other_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the extension's CUDA part there is no need to import CuPy."""
    assert registry.BACKENDS == ("cuda", "cupy", "triton", "cpu", "torch")
    asked = []

    def reason(name: str, device: torch.device) -> str | None:
        asked.append(name)
        return None if name in ("cuda", "torch") else "no"

    monkeypatch.setattr(registry, "_reason", reason)
    chosen = registry.resolve("nearest_code", "", torch.device("cuda"), torch.float32)
    assert chosen.__name__.endswith("nearest_code.cuda") and asked == ["cuda"]


def test_reasons_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch may run where the extension cannot: its CUDA is newer than the driver's."""
    error: str | None = "CUDA driver version is insufficient for CUDA runtime version"
    module = types.SimpleNamespace(
        cuda_architectures=("sm_80", "PTX_100"), cuda_unusable=lambda: error
    )
    monkeypatch.setattr(extension, "load", lambda: (module, None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "the device has 7.5" in str(available_backends("cuda")["cuda"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    reason = available_backends("cuda")["cuda"]
    assert reason == f"the extension, built for sm_80, PTX_100, cannot run here: {error}"
    error = None
    assert available_backends("cuda")["cuda"] is None


def test_reasons_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str | None:
        return available_backends("cuda")["cupy"]

    # An extension with a CUDA part would ask the device that this machine only pretends to have.
    monkeypatch.setitem(registry._UNAVAILABLE, "cuda", lambda device: None)
    monkeypatch.setattr(extension, "load", lambda: (types.SimpleNamespace(), None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason() == "needs compute capability 8.0 or newer, the device has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "cupy", None)
    nvrtc.load.cache_clear()
    assert "not installed: install dd2-fast[cuda13], or dd2-fast[cuda12]" in str(reason())
    nvrtc.load.cache_clear()
    broken = types.SimpleNamespace(cuda=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy", broken)
    assert "CuPy has no working NVRTC" in str(reason())
    nvrtc.load.cache_clear()
    broken.cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
    assert "CuPy sees no CUDA device" in str(reason())
    broken.cuda.runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
    assert reason() is None
    monkeypatch.undo()
    nvrtc.load.cache_clear()


def test_cupy_without_the_extension_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launches are planned there."""
    monkeypatch.setattr(extension, "load", lambda: (None, "no C++ compiler"))
    reason = available_backends("cuda")["cupy"]
    assert reason is not None and "planned" in reason and reason.endswith("no C++ compiler")


def test_environment_overrides_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD2_FAST_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="'cuda' cannot run"):
        conditional_score(*ARGUMENTS)
    conditional_score(*ARGUMENTS, backend="torch")
    monkeypatch.setenv("DD2_FAST_BACKEND", "tpu")
    with pytest.raises(ValueError, match="DD2_FAST_BACKEND: expected one of .*got 'tpu'"):
        conditional_score(*ARGUMENTS)
    with pytest.raises(ValueError, match="backend: expected one of .*got 'gpu'"):
        conditional_score(*ARGUMENTS, backend="gpu")


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD2_FAST_CPU_ISA", "v9")
    with pytest.raises(ValueError, match="DD2_FAST_CPU_ISA: expected 'v2', 'v3' or .*got 'v9'"):
        extension.load.__wrapped__()


def test_operator_without_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The automatic choice passes over a backend that the operator lacks; naming it says so."""
    monkeypatch.setattr(registry, "_exists", lambda op, name: name != "cuda")
    with pytest.raises(RuntimeError, match="'cuda' cannot run .*no 'cuda' backend"):
        conditional_score(*ARGUMENTS, backend="cuda")
    reasons = {"cuda": None, "cpu": "runs on CPU tensors only", "torch": None}
    monkeypatch.setattr(registry, "_reason", lambda name, device: reasons.get(name, "no"))
    chosen = registry.resolve("flow_solve", "", torch.device("cuda"), torch.float32)
    assert chosen.__name__.endswith("flow_solve.reference")
    monkeypatch.undo()
    monkeypatch.setattr(registry, "_reason", lambda name, device: reasons.get(name, "no"))
    chosen = registry.resolve("flow_solve", "", torch.device("cuda"), torch.float32)
    assert chosen.__name__.endswith("flow_solve.cuda")


def test_default_backend_is_for_a_block_and_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(backend: str = "") -> str:
        name = registry.resolve("nearest_code", backend, torch.device("cpu"), torch.float32)
        return name.__name__.rpartition(".")[2]

    monkeypatch.delenv("DD2_FAST_BACKEND", raising=False)
    usual, threads = chosen(), []
    with default_backend("torch"):
        thread = threading.Thread(target=lambda: threads.append(chosen()))
        thread.start()
        thread.join()
        assert chosen() == "reference" and threads == ["reference"]
        with default_backend(None):
            assert chosen() == "reference"
        with default_backend("cuda"), pytest.raises(RuntimeError, match="cannot run nearest_code"):
            chosen()
        with pytest.raises(ZeroDivisionError), default_backend("cpu"):
            raise ZeroDivisionError
        assert chosen() == "reference"
    assert chosen() == usual
    with pytest.raises(ValueError, match="backend: expected one of .*'magic'"):
        default_backend("magic").__enter__()


def test_without_extension_the_reference_runs_and_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['dd2_fast._C'] = None\n"
        "import torch, warnings, dd2_fast.ops as ops\n"
        "assert 'dd2_fast._C' in ops.available_backends('cpu')['cpu']\n"
        "a = (torch.zeros(2, 3), .5, torch.zeros(2, 5), torch.randn(5, 3))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    assert all(ops.conditional_score(*a).isfinite().all() for _ in range(2))\n"
        "assert ['torch reference' in str(w.message) for w in caught] == [True], caught\n"
    )
    run_python("-c", code, folder=tmp_path)


AGREE = """
import os, traceback, torch
from dd2_fast.ops import conditional_score, extension, flow_solve, nearest_code, sample_code
import dd2_fast.ops.image_normal

def both(function, *arguments, **options):
    return [function(*arguments, **options, backend=backend) for backend in ("cpu", "torch")]

def check():
    torch.manual_seed(0)
    for top_k, top_p in ((0, 1.0), (60, 0.9), (0, 0.5)):
        t, filters = torch.rand(14, 2) * 0.9 + 0.1, dict(top_k=top_k, top_p=top_p)
        x, logits = torch.randn(14, 2, 9), torch.randn(14, 301).half()
        codebook = torch.randn(301, 9)
        scores = both(conditional_score, x, t, logits, codebook, **filters)
        torch.testing.assert_close(*scores, atol=2e-4, rtol=2e-4)
        assert torch.equal(*both(sample_code, logits, **filters))
        assert torch.equal(*both(nearest_code, x, codebook))
        assert torch.equal(*both(flow_solve, x, logits, codebook, **filters))
    normal = torch.ops.dd2_fast.image_normal
    numbers = [normal(None, 5, torch.arange(3), (61, 3), 1, b) for b in ("cpu", "torch")]
    torch.testing.assert_close(*numbers, atol=1e-6, rtol=2e-7)
    return extension.native().build_info["cpu_instruction_set"]

for isa in ("v2", "v3", "v4"):  # the extension is loaded once in a process
    if (child := os.fork()) == 0:
        os.environ["DD2_FAST_CPU_ISA"] = isa
        try:
            print(isa, check(), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, isa
"""


@pytest.mark.skipif(extension.load()[0] is None, reason="no compiled extension")
def test_every_instruction_set_agrees_with_the_reference(tmp_path: Path) -> None:
    lines = run_python("-W", "ignore", "-c", AGREE, folder=tmp_path).splitlines()
    used = dict(line.split() for line in lines)
    assert used.keys() == {"v2", "v3", "v4"}
    for isa, name in used.items():
        assert name.startswith("x86-64-v") and name <= f"x86-64-{isa}" or name == "generic"


def imported_modules(path: Path) -> set[str]:
    """Absolute names of the dd2_fast modules that a file imports."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = f"{base}.{node.module or ''}" if node.level else node.module or ""
            names |= {f"{module.rstrip('.')}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("dd2_fast.")}


def test_imports_point_one_way() -> None:
    found = 0
    for depth, layer in enumerate(LAYERS):
        for path in (PACKAGE / layer).rglob("*.py"):
            for name in imported_modules(path):
                target = name.split(".")[1]
                if target in LAYERS:
                    found += 1
                    assert LAYERS.index(target) >= depth, f"{path} imports {name}"
    assert found > 20


# The rooms of training/, each of which imports those before it; what is in no folder and is not
# the configuration is the run's. Two files are other paths of those in samples/.
ROOMS = ("config", "run", "samples", "stages", "recipes", "tuning")
OTHER_PATHS = ("shards.py", "make_shards.py")


def test_rooms_of_training_import_one_way() -> None:
    folder = PACKAGE / "training"

    def room(parts: Sequence[str]) -> int:
        if parts[0] == "settings":
            return ROOMS.index("config")
        return ROOMS.index(parts[0]) if parts[0] in ROOMS else ROOMS.index("run")

    found = set()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if str(path.relative_to(folder)) in OTHER_PATHS:
            continue
        for name in imported_modules(path):
            if name.startswith("dd2_fast.training."):
                target = name.split(".")[2:]
                assert f"{target[0]}.py" not in OTHER_PATHS, f"{path} imports {name}"
                found.add((room(parts), room(target)))
                assert room(target) <= room(parts), f"{path} imports {name}"
    assert {(4, 3), (3, 2), (3, 1), (2, 1), (1, 0)} <= found


def test_backends_of_an_operator_do_not_import_each_other() -> None:
    backends = ("cpu", "cuda", "triton", "cupy")
    for folder in (PACKAGE / "ops").iterdir():
        for path in (folder / f"{b}.py" for b in backends):
            if path.exists():
                others = {f"{folder.name}.{b}" for b in (*backends, "api") if b != path.stem}
                imported = imported_modules(path)
                assert not any(name.endswith(tuple(others)) for name in imported), path


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, dd2_fast; import dd2_fast.ops\n"
        "heavy = {'triton', 'cupy', 'sklearn', 'scipy', 'dd2_fast._C'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run_python("-c", code, folder=tmp_path)
