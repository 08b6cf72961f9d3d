"""Weights with a NaN or infinity: the image, its label and the stage are named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_dd2_families import STUDENTS, TEACHERS, tiny_generator
from torch import Tensor, nn

from dd2_fast.checkpoints import load_bundle, save
from dd2_fast.cli import main
from dd2_fast.condition import ClassCondition
from dd2_fast.sampling import NpzFile, PngFolder, Sampler, resolve_path, run_job
from dd2_fast.sampling.faults import Faults
from dd2_fast.sampling.outputs import OUTPUTS

LABELS = [3, 1, 4, 1, 5]
BAD = (torch.nan, torch.inf, -torch.inf)


def digits() -> Any:
    bundle = load_bundle(resolve_path("digits"))
    bundle.generator.teacher = bundle.teacher
    return bundle.generator


def with_teacher(family: str) -> Any:
    model = tiny_generator(family)
    model.teacher = TEACHERS[family]()
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "causal": digits,
    "var": lambda: with_teacher("var"),
    "llamagen": lambda: with_teacher("llamagen"),
    "dd1_var": STUDENTS["var"],
    "dd1_llamagen": STUDENTS["llamagen"],
}
FAMILY = pytest.mark.parametrize("family", MODELS)


def spoil(parameter: Tensor, bad: float, at: tuple[int, ...] = (0,)) -> None:
    with torch.no_grad():
        parameter[at] = bad


def last_bias(module: nn.Module) -> Tensor:
    return [p for name, p in module.named_parameters() if name.endswith("bias")][-1]


@FAMILY
def test_a_generators_weights(family: str) -> None:
    model = MODELS[family]()
    sampler = Sampler(model)
    head = model.final_layer_conti.linear if "dd1" in family else model.head.output
    for bad in BAD:
        spoil(head.bias, bad)
        for output in OUTPUTS:
            with pytest.raises(
                FloatingPointError, match=r"^generator: .* 0 \(label 3\) and 4 more"
            ):
                sampler(LABELS, output=output)


@pytest.mark.parametrize("family", ["dd1_var", "dd1_llamagen"])
def test_a_students_classifier(family: str) -> None:
    """An argmax over logits with a NaN is a code like any other."""
    model = MODELS[family]()
    spoil(model.head.weight if family == "dd1_var" else model.output.weight, torch.nan, (5, 0))
    with pytest.raises(FloatingPointError, match="^generator: .*image 0"):
        Sampler(model)(LABELS)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_one_class_alone(batch_size: int) -> None:
    """The first image of it, by its number in the job; the other classes are drawn."""
    model = digits()
    spoil(model.backbone.class_embedding.weight, torch.nan, (4, 0))
    sampler = Sampler(model, batch_size=batch_size)
    assert sampler([3, 1, 5]).isfinite().all()
    with pytest.raises(ValueError, match=r"image 12 \(label 4\); its weights have one"):
        sampler(LABELS, start_index=10)
    with pytest.raises(FloatingPointError, match=r"image 8 \(label 4\)"):
        sampler([4], indices=[8])


@FAMILY
def test_a_decoders_weights(family: str) -> None:
    """An infinity too, which clamping alone would make white or black."""
    model = MODELS[family]()
    sampler = Sampler(model, batch_size=2)
    for bad in BAD:
        spoil(last_bias(model.tokenizer.decoder), bad)
        for output in ("pt", "np", "pil"):
            with pytest.raises(FloatingPointError, match=r"^decoder: .* 0 \(label 3\) and 1 more"):
                sampler(LABELS, output=output)
        latents = sampler(LABELS, output="latent")
        assert latents.isfinite().all()
        assert model.tokenizer.decode(latents).isnan().any(), "used alone it gives NaN"


@pytest.mark.parametrize("family", ["causal", "var", "llamagen"])
def test_a_teachers_weights(family: str) -> None:
    model = MODELS[family]()
    teacher = model.teacher
    sampler = Sampler(model, teacher_steps=3)
    weight = teacher.head.weight if family == "var" else classifier(teacher)
    spoil(weight, torch.inf, (2, 0))  # of a logit's sign: -inf is one that is never drawn
    with pytest.raises(FloatingPointError, match=r"teacher's logits, .* of image 2\d \(label"):
        sampler(LABELS, start_index=20)
    spoil(weight, torch.nan, (2, 0))
    with pytest.raises(FloatingPointError, match=r"teacher's logits, .* of image 20 \(label 3\)"):
        sampler(LABELS, start_index=20)
    for error in (ValueError, FloatingPointError):
        with pytest.raises(error, match=r"NaN or infinity at token 0 of image 0 \(label 7\)"):
            teacher.sample(torch.tensor([7, 2]), cfg=1.5)


def classifier(teacher: Any) -> Tensor:
    return teacher.classifier.weight if hasattr(teacher, "classifier") else teacher.output.weight


@pytest.mark.parametrize("sink", ["png", "npz"])
def test_a_job_stops_and_writes_no_such_image(sink: str, tmp_path: Path) -> None:
    model = digits()
    spoil(model.backbone.class_embedding.weight, torch.nan, (5, 0))
    out = PngFolder(tmp_path) if sink == "png" else NpzFile(tmp_path / "a.npz")
    with pytest.raises(FloatingPointError, match=r"generator: .* image 104 \(label 5\)"):
        run_job(Sampler(model, batch_size=2), LABELS, out, start_index=100)
    assert not (tmp_path / "a.npz").exists()
    assert len(list(tmp_path.glob("*.png"))) == (4 if sink == "png" else 0)


def test_the_command_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = digits()
    spoil(model.head.output.bias, torch.nan)
    save(tmp_path / "g.safetensors", model)
    save(tmp_path / "t.safetensors", model.tokenizer)
    files = ["--model", str(tmp_path / "g.safetensors"), "--tokenizer"]
    command = ["sample", *files, str(tmp_path / "t.safetensors"), "--labels", "7,8", "--quiet"]
    for out in ("images", "a.npz", "a.png"):
        assert main([*command, "--out", str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "error: generator: expected finite values, got a NaN or infinity in image 0" in line
        assert not list(tmp_path.glob("**/*.png")) and not (tmp_path / "a.npz").exists()


def test_float16_that_overflows_is_named() -> None:
    model = digits()
    with torch.no_grad():
        model.head.output.weight.mul_(1e6)
    with pytest.raises(FloatingPointError, match="generator: .* a dtype too narrow"):
        Sampler(copy.deepcopy(model), dtype=torch.float16)(LABELS)


def test_large_values_are_no_fault() -> None:
    """Whose sum, not they, would overflow in their dtype."""
    look = Faults(ClassCondition(4)).look
    index = torch.arange(2)
    look("x", torch.full((2, 3, 100), 6e4, dtype=torch.float16), index, index)
    look("x", torch.full((2, 3, 100), 3e38, dtype=torch.float64), index, index)
    look("x", torch.zeros(2, 3, dtype=torch.int64), index, index)


def test_flags_elsewhere_are_read_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: nothing is read while batches run, and the first stage of them is named."""
    faults, index = Faults(ClassCondition(4)), torch.arange(4)
    values = torch.zeros(4, 3)
    for stage, row in (("generator", None), ("teacher", 2), ("decoder", 1)):
        found = values.clone()
        if row is not None:
            found[row] = torch.nan
        monkeypatch.setattr("dd2_fast.sampling.faults._is_here", lambda values: False)
        faults.look(stage, found, index + 10, index)
    with pytest.raises(FloatingPointError, match=r"^teacher: .* image 12 \(label 2\);"):
        faults.check()
    Faults(ClassCondition(4)).check()
