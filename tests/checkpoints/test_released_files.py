"""The released families through `load`: as their files are nested, against the parity fixtures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from parity.synth import synth_tensors
from torch import Tensor

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.checkpoints import formats
from dd2_fast.checkpoints.registry import KINDS
from dd2_fast.cli import main

LIMIT = 1e-4  # relative RMS error in float32
PARITY = Path(__file__).parent.parent / "parity"
MANIFESTS = sorted(path.stem for path in (PARITY / "manifests").glob("*.json"))
Outputs = list[tuple[Tensor, Tensor]]


def settings(fixture: str) -> dict[str, Any]:
    return json.loads((PARITY / f"{fixture}.json").read_text())


def arrays(fixture: str) -> dict[str, Tensor]:
    with np.load(PARITY / f"{fixture}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def weights(fixture: str, part: str) -> dict[str, Tensor]:
    content = settings(fixture)
    return synth_tensors(content[part], content["config"]["seed"])


def unit(image: Tensor) -> Tensor:
    """An image in [-1, 1] as the tokenizers give it."""
    return (image / 2 + 0.5).clamp(0, 1)


def tokenizer_outputs(model: Any, want: Mapping[str, Tensor]) -> Outputs:
    got = model.decode(model.embed(want["tokens"])), model.decode(want["cont_embeddings"])
    return [(got[0], unit(want["image"])), (got[1], unit(want["cont_image"]))]


def teacher_outputs(model: Any, want: Mapping[str, Tensor]) -> Outputs:
    null = torch.full_like(want["labels"], model.num_classes)
    return [
        (model.logits(want["tokens"], want["labels"]), want["logits"]),
        (model.logits(want["tokens"], null), want["logits_uncond"]),
    ]


def student_outputs(model: Any, want: Mapping[str, Tensor]) -> Outputs:
    return [
        (model(want["noise"], want["labels"], steps=k), want[f"embeddings_{k}step"]) for k in (1, 2)
    ]


@dataclass(frozen=True)
class Case:
    """One model of a fixture: its kind, what shapes cannot tell, and its outputs."""

    fixture: str
    part: str
    kind: str
    outputs: Callable[[Any, Mapping[str, Tensor]], Outputs]
    nestings: tuple[str, ...]
    config: Mapping[str, Any]
    buffers: tuple[str, ...] = ()
    tokenizer: str = ""  # the part of the fixture to attach

    def check(self, model: Any) -> None:
        assert KINDS[self.kind].endswith(f":{type(model).__name__}") and not model.training
        for got, want in self.outputs(model, arrays(self.fixture)):
            assert got.shape == want.shape
            assert float((got - want).norm() / want.norm()) < LIMIT

    def tensors(self) -> dict[str, Tensor]:
        """The state dict with the buffers that released files carry, all of them wrong."""
        stale = {name: torch.full((3,), float("nan")) for name in self.buffers}
        return {**weights(self.fixture, self.part), **stale}

    def keywords(self) -> dict[str, Any]:
        """What `load` gets beside the file."""
        if not self.tokenizer:
            return dict(self.config)
        return {**self.config, "tokenizer": weights(self.fixture, self.tokenizer)}


SIDES = {"patch_nums": [1, 2, 3, 4]}
VAR_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "blocks.1.attn.zero_k_bias")
LLAMAGEN = {"grid": 4, "n_head": 2}
CASES = {
    "VAR": Case(
        "var_tiny",
        "var",
        "var_teacher",
        teacher_outputs,
        ("", "trainer.var_wo_ddp"),
        SIDES,
        VAR_BUFFERS,
        "vqvae",
    ),
    "VAR tokenizer": Case(
        "var_tiny",
        "vqvae",
        "var_tokenizer",
        tokenizer_outputs,
        ("", "trainer.vae_local"),
        SIDES,
        ("quantize.ema_vocab_hit_SV",),
    ),
    "DD1 VAR": Case(
        "dd1_var_tiny",
        "dd",
        "dd1_var_student",
        student_outputs,
        ("trainer.ema_parameters", "trainer.var_wo_ddp", ""),
        {**SIDES, "split": 2},
        VAR_BUFFERS,
        "vqvae",
    ),
    "LlamaGen": Case(
        "llamagen_tiny",
        "gpt",
        "llamagen_teacher",
        teacher_outputs,
        ("", "model", "module", "state_dict"),
        LLAMAGEN,
        ("freqs_cis",),
        "vq",
    ),
    "LlamaGen tokenizer": Case(
        "llamagen_tiny",
        "vq",
        "llamagen_tokenizer",
        tokenizer_outputs,
        ("model", "ema", ""),
        {"grid": 4},
        ("quantize.codebook_used",),
    ),
    "DD1 LlamaGen": Case(
        "dd1_llamagen_tiny",
        "dd",
        "dd1_llamagen_student",
        student_outputs,
        ("ema", "model", "trainer.ema_parameters"),
        {**LLAMAGEN, "split": 6, "codebook": arrays("dd1_llamagen_tiny")["codebook"]},
        ("freqs_cis",),
    ),
}
NESTED = [(name, nesting) for name, case in CASES.items() for nesting in case.nestings]


def nest(tensors: Mapping[str, Tensor], nesting: str) -> dict[str, Any]:
    """What the public trainers save: other state dicts, counters, and a Namespace beside it."""
    tree: dict[str, Any] = dict(tensors)
    for name in reversed(nesting.split(".") if nesting else []):
        other = {"discriminator": {"main.0.weight": torch.zeros(4, 3)}, "config": {"a": None}}
        optimizer = {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}
        tree = {**other, "opt": optimizer, "args": argparse.Namespace(ema=True), name: tree}
    return tree


@pytest.mark.parametrize(("name", "nesting"), NESTED)
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_public_nestings(tmp_path: Path, name: str, nesting: str, prefix: str):
    case = CASES[name]
    tensors = {prefix + key: value for key, value in case.tensors().items()}
    path = tmp_path / "released.pth"
    torch.save(nest(tensors, nesting), path)
    case.check(checkpoints.load(path, **case.keywords()))


@pytest.mark.parametrize("name", CASES)
def test_raw_names_in_safetensors(tmp_path: Path, name: str):
    path = tmp_path / "released.safetensors"
    safetensors.torch.save_file(CASES[name].tensors(), path)
    CASES[name].check(checkpoints.load(path, **CASES[name].keywords()))


@pytest.mark.parametrize("name", CASES)
def test_convert_then_load(tmp_path: Path, capsys, name: str):
    case, out = CASES[name], tmp_path / "ours.safetensors"
    torch.save(nest(case.tensors(), case.nestings[0]), tmp_path / "released.pth")
    config = {key: value for key, value in case.config.items() if key != "codebook"}
    texts = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    assert main(["convert", str(tmp_path / "released.pth"), str(out), "--config", *texts]) == 0
    assert f": {case.kind}, " in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert f"{case.kind}, written by dd2_fast" in capsys.readouterr().out
    beside = ("tokenizer", "codebook")  # neither is a part of the weights
    case.check(checkpoints.load(out, **{k: v for k, v in case.keywords().items() if k in beside}))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_stay_half(tmp_path: Path, name: str, dtype: torch.dtype):
    case, path = CASES[name], tmp_path / "half.pth"
    torch.save({k: v.to(dtype) for k, v in case.tensors().items()}, path)
    model = checkpoints.load(path, **case.config)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for key, value in weights(case.fixture, case.part).items():
        assert torch.equal(model.state_dict()[key], value.to(dtype))


def test_a_var_trainer_file_has_both_parts(tmp_path: Path):
    path = tmp_path / "ckpt.pth"
    parts = {"vae_local": CASES["VAR tokenizer"].tensors(), "var_wo_ddp": CASES["VAR"].tensors()}
    torch.save({"epoch": 1, "args": {"depth": 2}, "trainer": {"config": {}, **parts}}, path)
    CASES["VAR"].check(checkpoints.load(path, tokenizer=path, **SIDES))


@pytest.mark.parametrize("name", ["VAR", "LlamaGen"])
def test_the_average_of_a_student_comes_first(name: str):
    case = CASES[f"DD1 {name}"]
    mean = case.tensors()
    last = {key: torch.full_like(value, float("nan")) for key, value in mean.items()}
    tree = {"trainer": {"var_wo_ddp": last, "ema_parameters": mean}, "model": last}
    case.check(checkpoints.load(tree, **case.keywords()))


@pytest.mark.parametrize("name", ["DD1 VAR", "DD1 LlamaGen"])
def test_images_from_the_file_of_a_student(tmp_path: Path, name: str):
    case, part = CASES[name], {"DD1 VAR": "vqvae", "DD1 LlamaGen": "vq"}[name]
    fixture = case.fixture if name == "DD1 VAR" else "llamagen_tiny"
    torch.save({"trainer": {"ema_parameters": case.tensors()}}, tmp_path / "dd1.pth")
    torch.save({"model": weights(fixture, part)}, tmp_path / "vae.pth")
    config = {key: value for key, value in case.config.items() if key != "codebook"}
    model = checkpoints.load(tmp_path / "dd1.pth", tokenizer=tmp_path / "vae.pth", **config)
    images = dd2_fast.sample(model, [1, 2, 3], seed=5)
    side = 64 if name == "DD1 VAR" else 16
    assert images.shape == (3, 3, side, side) and 0 <= images.min() < images.max() <= 1
    again = dd2_fast.sample(model, [1, 2, 3], seed=5, batch_size=1)
    torch.testing.assert_close(again, images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_released_manifest_builds_without_memory(name: str):
    manifest = json.loads((PARITY / "manifests" / f"{name}.json").read_text())
    shapes = {**manifest["parameters"], **manifest["buffers"]}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    matching = [one for one in formats.FORMATS if one.matches(tensors)]
    config = {"grid": 24} if name.endswith("_384") else {}
    model = checkpoints.load({"model": tensors}, **config)
    assert len(matching) == 1 and KINDS[matching[0].kind].endswith(f":{type(model).__name__}")
    got = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert got == manifest["parameters"] and all(p.is_meta for p in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    gone = list(manifest["parameters"])[len(got) // 2]
    del tensors[gone]
    with pytest.raises(ValueError, match=f"^state dict: .*; 1 missing: {gone} "):
        checkpoints.load(tensors, **config)


def test_every_format_has_a_kind_of_its_own():
    kinds = [one.kind for one in formats.FORMATS]
    assert len(set(kinds)) == len(kinds) == len(CASES) and set(kinds) <= set(KINDS)


def test_digits_of_our_own_are_of_no_released_kind():
    assets = Path(dd2_fast.__file__).parent / "assets" / "digits"
    for path in assets.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(path)
        assert not any(one.matches(tensors) for one in formats.FORMATS)


def test_inspect_names_what_it_needs(tmp_path: Path, capsys):
    path = tmp_path / "ckpt.pth"
    parts = {"vae_local": CASES["VAR tokenizer"].tensors(), "var_wo_ddp": CASES["VAR"].tensors()}
    torch.save({"trainer": parts}, path)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    places = [text.index(part) for part in ("trainer.var_wo_ddp", "var_teacher", "var_tokenizer")]
    assert places == sorted(places)
    assert "not known: " in text and "patch_nums: expected the sides of 4 scales" in text
    assert "left out      3 that follow from the configuration" in text
