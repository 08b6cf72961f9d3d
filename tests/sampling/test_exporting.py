"""Exported files: the sampler's images, drawn by programs that cannot import this package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.test_condition import PairCondition
from models.test_dd2_families import STUDENTS
from models.test_prepared import at_work, var_generator
from optional import require
from processes import run_python
from snippets import snippet
from torch import Tensor, nn

import dd2_fast
from dd2_fast import Sampler, export
from dd2_fast.cli import main
from dd2_fast.models import DD2Generator, VQTokenizer
from dd2_fast.sampling import exporting
from dd2_fast.sampling.noise import image_noise

README = "dd2_fast/sampling/README.md"
ALONE = """
import sys
sys.modules["dd2_fast"] = None  # whoever imports it gets an ImportError
"""
WITH_TORCH = """
import json
import numpy as np
import torch
about = {"dd2_fast.json": ""}
compiled = torch._inductor.aoti_load_package(open("model.aoti", "rb"))
programs = {
    "pt2": torch.export.load("model.pt2", extra_files=about).module(),
    "aoti": compiled,
}
x, y = (torch.from_numpy(array) for array in np.load("inputs.npz").values())
for name, program in programs.items():
    np.savez(name, *(program(x[:count], y[:count]).numpy() for count in (1, 2, 5)))
print(json.dumps([json.loads(about["dd2_fast.json"]), compiled.get_metadata()]))
"""
QUICKLY = {  # to compile: the headers are used once, and every such processor has AVX2
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "cpp.vec_isa_ok": True,
}
SEED = 7


def tiny(width: int = 16, layers: int = 1) -> DD2Generator:
    """Of the small family, and quick to compile."""
    torch.manual_seed(0)
    sizes = dict(num_tokens=4, dimension=4, num_classes=3, width=width, layers=layers, heads=2)
    generator = DD2Generator(head_width=16, head_depth=1, **sizes)
    tokenizer = VQTokenizer(vocabulary=16, dimension=4, image_size=4, width=16)
    generator.tokenizer = tokenizer.eval().requires_grad_(False)
    for tensor in tokenizer.decoder[-1].parameters():
        tensor *= 10  # from black to white
    return at_work(generator)


def inputs(sampler: Sampler, count: int) -> tuple[Tensor, Tensor]:
    """Noise and labels of the first images of a seed."""
    dimension = sampler.tokenizer.codebook.shape[1]
    index = torch.arange(count)
    return image_noise(SEED, index, (sampler.num_tokens, dimension)), index % sampler.num_classes


def named(sampler: Sampler, count: int) -> dict[str, Tensor]:
    return dict(zip(("noise", "labels"), inputs(sampler, count), strict=True))


def wanted(sampler: Sampler, count: int) -> np.ndarray:
    return sampler(torch.arange(count) % sampler.num_classes, seed=SEED).numpy()


def run_onnx(path: Path, **arrays: Tensor) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["images"], {name: array.numpy() for name, array in arrays.items()})[0]


def close(found: np.ndarray, images: np.ndarray) -> None:
    """Within 1e-4, and not by being all the same."""
    assert found.dtype == images.dtype and found.shape == images.shape
    assert np.abs(found - images).max() < 1e-4 and images.std() > 0.01


def test_the_guide_under_onnxruntime(tmp_path: Path, capsys) -> None:
    """From the command line to images, in an interpreter that has onnxruntime and NumPy."""
    require("onnxruntime")
    path = tmp_path / "digits.onnx"
    assert main(["export", "digits", str(path)]) == 0
    size = path.stat().st_size
    captured = capsys.readouterr()
    assert captured.out == f"wrote {path}: {size / 1e6:.1f} MB\n" and not captured.err
    code = ALONE + snippet(README, "noise") + snippet(README, "onnx")
    code += "np.save('images.npy', images)\n"
    code += "print([(i.name, i.type, i.shape) for i in session.get_inputs()])\n"
    code += "print(session.get_outputs()[0].shape)\n"
    code += "print(sorted(session.get_modelmeta().custom_metadata_map.items()))\n"
    code += "assert 'torch' not in sys.modules\n"
    told = run_python("-c", code, folder=tmp_path).splitlines()
    close(
        np.load(tmp_path / "images.npy"), np.asarray(dd2_fast.sample("digits", [3, 1, 4], seed=7))
    )
    noise, labels = (
        ("noise", "tensor(float)", ["batch", 16, 8]),
        ("labels", "tensor(int64)", ["batch"]),
    )
    about = [("dd2_fast", dd2_fast.__version__), ("num_classes", "10")]
    assert told == [str(each) for each in ([noise, labels], ["batch", 3, 8, 8], about)]
    sampler = Sampler("digits")
    for count in (1, 11):
        close(run_onnx(path, **named(sampler, count)), wanted(sampler, count))


@pytest.mark.slow
def test_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported program, and one that AOTInductor compiled, at batches of three sizes; and what
    both files say of themselves."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    sampler = Sampler(tiny())
    with config.patch(QUICKLY):
        for ending in ("pt2", "aoti"):
            export(sampler, tmp_path / f"model.{ending}")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "model.pt2", "model.aoti"}
    np.savez(tmp_path / "inputs.npz", *(tensor.numpy() for tensor in inputs(sampler, 5)))
    about = {"dd2_fast": dd2_fast.__version__, "num_classes": "3"}
    for found in json.loads(run_python("-c", ALONE + WITH_TORCH, folder=tmp_path)):
        assert found.items() >= about.items()
    images = wanted(sampler, 5)
    for name in ("pt2", "aoti"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            for key, count in zip(arrays, (1, 2, 5), strict=True):
                close(arrays[key], images[:count])


FAMILIES: dict[str, Callable[[], Sampler]] = {
    "var": lambda: Sampler(var_generator(layers=1, patch_nums=(1, 2, 3))),
    "dd1 var, two steps": lambda: Sampler(at_work(STUDENTS["var"]()), steps=2),
    "dd1 llamagen": lambda: Sampler(at_work(STUDENTS["llamagen"]())),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_released_families(name: str, tmp_path: Path) -> None:
    """The same under onnxruntime as drawn, at three batches."""
    require("onnxruntime")
    sampler = FAMILIES[name]()
    export(sampler, tmp_path / "model.onnx")
    for count in (1, 2, 5):
        found = run_onnx(tmp_path / "model.onnx", **named(sampler, count))
        close(found, wanted(sampler, count))


def program(sampler: Any, path: Path, **settings: Any) -> nn.Module:
    export(sampler, path, **settings)
    return torch.export.load(path).module()


def test_uint8_of_a_fixed_batch(tmp_path: Path) -> None:
    """Each level is the nearest of the sampler's float images, last dimension colour."""
    sampler = Sampler(tiny())
    run = program(sampler, tmp_path / "model.pt2", batch=3, uint8=True)
    found = run(*inputs(sampler, 3)).numpy()
    levels = wanted(sampler, 3).astype(np.float64).transpose(0, 2, 3, 1) * 255
    assert found.dtype == np.uint8 and found.shape == (3, 4, 4, 3)
    assert np.abs(found - levels).max() < 0.51 and levels.std() > 10
    with pytest.raises(Exception, match=r"size.*== 3"):
        run(*inputs(sampler, 2))


def test_bfloat16_in_and_out_is_float32(tmp_path: Path) -> None:
    sampler = Sampler(tiny(), dtype=torch.bfloat16)
    images = program(sampler, tmp_path / "model.pt2")(*inputs(sampler, 2))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, sampler([0, 1], seed=SEED), atol=1e-4, rtol=0)


def test_only_what_draws_is_in_the_file() -> None:
    """Of weights, the generator's and the decoder's; of prepared networks, no table of classes
    that was never filled, nor layers that others stand for."""
    generator = tiny()
    found = exporting.exported(Sampler(generator), None, False)
    names = {name for name, _ in generator.named_parameters(prefix="generator")}
    names |= {
        f"tokenizer.decoder.{name}" for name, _ in generator.tokenizer.decoder.named_parameters()
    }
    assert set(found.state_dict) == names | {"tokenizer.shift", "tokenizer.scale"}
    prepared = exporting.exported(Sampler(var_generator(layers=1)), None, False).state_dict
    assert not [name for name in prepared if "encoder" in name or name.endswith(".table")]
    assert "generator.head.time.0.weight" not in prepared
    assert all(
        tensor.isfinite().all() or name.endswith("mask") for name, tensor in prepared.items()
    )


class OfPairs(nn.Module):
    """A generator that is conditioned on a pair of tensors."""

    condition, num_tokens = PairCondition(), 4

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tiny().tokenizer
        self.vector, self.sequence = nn.Linear(4, 4), nn.Linear(6, 4)

    def forward(self, noise: Tensor, labels: Any) -> Tensor:
        return noise + (self.vector(labels[0]) + self.sequence(labels[1].flatten(1)))[:, None]


def test_other_conditions_and_weights_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one file cannot hold them, also when the file has been moved with them."""
    require("onnxruntime")
    monkeypatch.setattr(exporting, "_LARGEST_ONNX", 0)
    sampler = Sampler(OfPairs())
    export(sampler, tmp_path / "model.onnx")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "model.onnx.data"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in names:
        (tmp_path / name).rename(moved / name)
    rows = sampler.condition.draw("balanced", 0, torch.arange(3))
    noise = image_noise(SEED, torch.arange(3), (4, 4))
    images = sampler(rows, seed=SEED).numpy()
    rows = dict(zip(("noise", "condition_0", "condition_1"), (noise, *rows), strict=True))
    close(run_onnx(moved / "model.onnx", **rows), images)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="teacher_steps: expected 0 or 1 .*one pass from noise"):
        export("digits", path, teacher_steps=2)
    with pytest.raises(ValueError, match="teacher_steps: expected 0 or 1 .* got 3"):
        export(Sampler("digits", teacher_steps=3), path)
    with pytest.raises(ValueError, match="batch: expected at least 1, or None for any, got 0"):
        export("digits", path, batch=0)
    with pytest.raises(ValueError, match=r"path: .* in \.pt2, \.onnx, \.aoti, got '.*model.pth'"):
        export("digits", path.with_suffix(".pth"))
    with pytest.raises(ValueError, match="steps: expected 1 for a DD2Generator, got 2"):
        export("digits", path, steps=2)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript is not .*'dd2-fast\[export\]'"):
        export("digits", path)
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "/nonexistent")}),
        pytest.raises(FileNotFoundError, match="expected a C.. compiler for .aoti, found none"),
    ):
        export("digits", path.with_suffix(".aoti"))
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys) -> None:
    path = tmp_path / "model.pt2"
    assert main(["export", "digits", str(path), "--teacher-steps", "4"]) == 2
    path.write_text("precious")
    assert main(["export", "digits", str(path)]) == 2
    error = capsys.readouterr().err
    assert "teacher_steps: expected 0 or 1 for a file, got 4" in error
    assert "it exists; --force replaces it" in error and error.count("\n") == 2
    assert path.read_text() == "precious"
