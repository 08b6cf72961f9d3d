"""Files: round trips, what a damaged or foreign file says, bundles."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dd2_fast import checkpoints
from dd2_fast.checkpoints.bundle import PARTS
from dd2_fast.checkpoints.files import check_writable, write_atomic
from dd2_fast.models import ARTeacher, DD2Generator, DD2Guidance, TableTeacher, VQTokenizer

SIZES = dict(num_tokens=4, dimension=3, num_classes=2, width=8, layers=1, heads=2)


def models():
    codebook = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    return [
        VQTokenizer(image_size=4, vocabulary=5, dimension=3, width=4),
        ARTeacher(vocabulary=5, codebook=codebook, **SIZES),
        TableTeacher(
            num_tokens=2, vocabulary=2, dimension=1, joint=torch.eye(2), codebook=codebook[:2, :1]
        ),
        DD2Generator(head_width=8, head_depth=1, **SIZES),
        DD2Guidance(head_width=8, head_depth=1, **SIZES),
    ]


@pytest.mark.parametrize("index", range(5))
def test_round_trip(tmp_path: Path, index: int):
    model = models()[index]
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model, {"note": 1})
    again = checkpoints.load(path)
    assert type(again) is type(model) and again.config == model.config
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert checkpoints.read_header(path)["metadata"] == {"note": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "generator.safetensors"
    checkpoints.save(path, models()[3])
    return path


def rewrite(path: Path, change) -> None:
    """Save the file again with its tensors changed and its header kept."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = {"dd2_fast": file.metadata()["dd2_fast"]}  # without its checksums
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


@pytest.mark.parametrize("keep", [5, 100, -1])
def test_truncated_file_is_named(saved: Path, keep: int):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"generator\.safetensors: .*truncated or damaged"):
        checkpoints.load(saved)


def test_missing_extra_and_misshapen_tensors_are_named(saved: Path):
    def change(tensors):
        del tensors["head.output.bias"]
        tensors["surplus"] = torch.zeros(1)
        tensors["head.input.weight"] = torch.zeros(8, 4)

    rewrite(saved, change)
    with pytest.raises(ValueError) as caught:
        checkpoints.load(saved)
    text = str(caught.value)
    assert "generator.safetensors" in text
    assert "1 missing: head.output.bias" in text and "1 unexpected: surplus" in text
    assert "head.input.weight (expected [8, 3], got [8, 4])" in text


def test_only_the_first_names_are_listed(saved: Path):
    rewrite(saved, lambda tensors: [tensors.pop(k) for k in list(tensors) if "blocks" in k])
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more"):
        checkpoints.load(saved)


def test_foreign_files_and_sources(tmp_path: Path, saved: Path):
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="expected a dd2_fast checkpoint"):
        checkpoints.load(foreign)
    header = json.dumps({"kind": "unet", "config": {}})
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign, {"dd2_fast": header})
    with pytest.raises(ValueError, match="expected kind to be one of .*got 'unet'"):
        checkpoints.load(foreign)
    header = json.dumps({"kind": "dd2_generator", "config": {"depth": 3}})
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign, {"dd2_fast": header})
    with pytest.raises(ValueError, match="does not build a dd2_generator"):
        checkpoints.load(foreign)
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign, {"dd2_fast": "{"})
    with pytest.raises(ValueError, match=r"foreign\.safetensors"):
        checkpoints.load(foreign)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        checkpoints.load(tmp_path / "absent.safetensors")
    with pytest.raises(TypeError, match="source: expected a path or a state dict, got int"):
        checkpoints.load(3)
    with pytest.raises(TypeError, match="carry their configuration, got depth"):
        checkpoints.load(saved, depth=3)
    with pytest.raises(TypeError, match="model: expected one of .*got Linear"):
        checkpoints.save(saved, torch.nn.Linear(1, 1))


def test_a_codebook_goes_only_to_files_without_one(tmp_path: Path, saved: Path):
    codebook = torch.zeros(5, 3)
    checkpoints.save(tmp_path / "teacher.safetensors", models()[1])
    with pytest.raises(TypeError, match="carry their configuration, got codebook"):
        checkpoints.load(tmp_path / "teacher.safetensors", codebook=codebook)
    with pytest.raises(ValueError, match="does not build a dd2_generator: .*codebook"):
        checkpoints.load(saved, codebook=codebook)


def test_tokenizer_is_attached_to_a_generator_only(saved: Path, tmp_path: Path):
    tokenizer = VQTokenizer(image_size=4, vocabulary=5, dimension=3)
    assert checkpoints.load(saved, tokenizer=tokenizer).tokenizer is tokenizer
    with pytest.raises(ValueError, match="tokenizer: expected codes of dimension 3, got 8"):
        checkpoints.load(saved, tokenizer=VQTokenizer())
    with pytest.raises(ValueError, match="tokenizer: expected 4 tokens, got 16"):
        checkpoints.load(saved, tokenizer=VQTokenizer(dimension=3))
    checkpoints.save(tmp_path / "t.safetensors", tokenizer)
    with pytest.raises(TypeError, match="tokenizer: expected a generator"):
        checkpoints.load(tmp_path / "t.safetensors", tokenizer=tokenizer)


def test_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"No space left.*generator\.safetensors"):
        checkpoints.save(saved, models()[3])
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_unwritable_folders_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the folder.*file"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(OSError, match=r"cannot write: .*nowhere"):
        write_atomic(tmp_path / "nowhere" / "x", b"")


def write_bundle(folder: Path) -> None:
    from dd2_fast.metrics.classifier import DigitsClassifier

    tokenizer, teacher, _, generator, _ = models()
    parts = dict(
        tokenizer=tokenizer,
        teacher=teacher,
        generator=generator,
        stage1=generator,
        classifier=DigitsClassifier(),
    )
    for name in PARTS:
        checkpoints.save(folder / f"{name}.safetensors", parts[name])
    (folder / "run.json").write_text('{"recipe": "digits"}')


def test_bundle(tmp_path: Path):
    write_bundle(tmp_path)
    bundle = checkpoints.load_bundle(tmp_path)
    assert bundle.settings == {"recipe": "digits"}
    assert bundle.generator.tokenizer is bundle.tokenizer
    assert bundle.generator.teacher is bundle.teacher
    with pytest.raises(dataclasses.FrozenInstanceError):
        bundle.settings = {}
    generator = checkpoints.load(tmp_path)
    assert isinstance(generator, DD2Generator) and isinstance(generator.tokenizer, VQTokenizer)
    (tmp_path / "stage1.safetensors").unlink()  # as of a logit student
    assert checkpoints.load_bundle(tmp_path).stage1 is None
    (tmp_path / "teacher.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing teacher\.safetensors"):
        checkpoints.load_bundle(tmp_path)


def test_bundle_with_broken_settings(tmp_path: Path):
    write_bundle(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: expected JSON"):
        checkpoints.load_bundle(tmp_path)
