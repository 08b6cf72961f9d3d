"""VAR's released files: recognised by names, sizes from shapes, every name and shape built."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from parity import var_models
from parity.synth import synth_tensors
from parity.var_models import PATCH_NUMS, match
from torch import Tensor

from dd2_fast import checkpoints
from dd2_fast.checkpoints.registry import class_of
from dd2_fast.models.var.released import FORMATS

SIDES_256 = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
SIDES_512 = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]


def var(depth: int, **other: Any) -> dict[str, Any]:
    sizes = dict(patch_nums=SIDES_256, vocabulary=4096, dimension=32, num_classes=1000)
    network = dict(width=64 * depth, layers=depth, heads=depth, shared_aln=False, l2_norm=True)
    return {**sizes, **network, **other}


RELEASED = {
    "var_d16": ("var_teacher", var(16)),
    "var_d20": ("var_teacher", var(20)),
    "var_d24": ("var_teacher", var(24)),
    "var_d30": ("var_teacher", var(30)),
    "var_d36_512": ("var_teacher", var(36, patch_nums=SIDES_512, shared_aln=True)),
    "dd1_var_d16": ("dd1_var_student", var(16, split=5, second_step=None)),
    "dd1_var_d20": ("dd1_var_student", var(20, split=4, second_step=None)),
    "dd1_var_d24": ("dd1_var_student", var(24, split=4, second_step=None)),
    "vae_ch160v4096z32": (
        "var_tokenizer",
        dict(
            patch_nums=SIDES_256,
            vocabulary=4096,
            dimension=32,
            channels=160,
            multipliers=[1, 1, 2, 2, 4],
            blocks=2,
            phis=4,
            image_channels=3,
        ),
    ),
}


def released(name: str) -> tuple[dict[str, Tensor], set[str]]:
    """A released state dict on the meta device, and the names of its buffers."""
    path = var_models.FOLDER / "manifests" / f"{name}.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    both = {**manifest["parameters"], **manifest["buffers"]}
    return {k: torch.empty(v, device="meta") for k, v in both.items()}, set(manifest["buffers"])


def tiny(kind: str) -> dict[str, Tensor]:
    fixture, part = {
        "var_teacher": ("var_tiny", "var"),
        "var_tokenizer": ("var_tiny", "vqvae"),
        "dd1_var_student": ("dd1_var_tiny", "dd"),
    }[kind]
    return synth_tensors(var_models.fixture(fixture)[part])


@pytest.mark.parametrize("name", RELEASED)
def test_released_file(name: str):
    tensors, buffers = released(name)
    kind, expected = RELEASED[name]
    one = match(tensors)
    assert one.kind == kind
    assert {k for k in tensors if one.ignored(k)} == buffers
    config = one.configure(tensors, {})
    assert config == expected and json.loads(json.dumps(config)) == config
    with torch.device("meta"):
        model = class_of(kind)(**config)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert shapes == {k: list(v.shape) for k, v in tensors.items() if k not in buffers}
    assert model.num_tokens == sum(side**2 for side in expected["patch_nums"])


def test_teacher_without_l2_norm():
    tensors, _ = released("var_d16")
    tensors = {k: v for k, v in tensors.items() if "scale_mul" not in k}
    config = match(tensors).configure(tensors, {})
    assert config == var(16, l2_norm=False)
    with torch.device("meta"):
        assert "blocks.0.attn.scale_mul_1H11" not in class_of("var_teacher")(**config).state_dict()


def test_given_settings():
    config = match(tiny("dd1_var_student")).configure(
        tiny("dd1_var_student"), dict(patch_nums=(1, 2, 3, 4), split=2, second_step=1)
    )
    assert (config["patch_nums"], config["split"], config["second_step"]) == (PATCH_NUMS, 2, 1)
    tensors, _ = released("vae_ch160v4096z32")
    config = match(tensors).configure(tensors, {"patch_nums": SIDES_512})
    assert config["patch_nums"] == SIDES_512
    tensors, _ = released("dd1_var_d16")
    assert match(tensors).configure(tensors, {"split": 3})["split"] == 3


@pytest.mark.parametrize("kind", ["var_teacher", "var_tokenizer", "dd1_var_student"])
def test_round_trip_in_our_own_format(tmp_path, kind: str):
    model = {
        "var_teacher": var_models.teacher,
        "var_tokenizer": var_models.tokenizer,
        "dd1_var_student": var_models.student,
    }[kind]()
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model)
    again = checkpoints.load(path)
    assert type(again) is type(model) and again.config == model.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_nearest_kind_of_an_unknown_file_and_what_it_misses():
    for kind, missing in (("var_teacher", "head.weight"), ("dd1_var_student", "lvl_embed.weight")):
        tensors = {k: v for k, v in tiny(kind).items() if k != missing}
        with pytest.raises(ValueError, match=f"; nearest is {kind}, without {missing}$"):
            checkpoints.load(tensors)
    with pytest.raises(ValueError, match=r"of none of these: a \[1\]$"):
        checkpoints.load({"a": torch.zeros(1)})


def test_foreign_files_match_nothing():
    llama = {"tok_embeddings.weight": torch.empty(1), "output.weight": torch.empty(1)}
    for tensors in ({}, llama, {"head.weight": torch.empty(2, 2)}):
        assert not any(one.matches(tensors) for one in FORMATS)


@pytest.mark.parametrize(
    ("kind", "config", "error", "words"),
    [
        ("var_teacher", {}, ValueError, "patch_nums: .*680 and 2240 tokens, this file has 30"),
        ("var_teacher", {"patch_nums": [1, 2, 3]}, ValueError, "patch_nums: expected 4 scales"),
        ("var_teacher", {"patch_nums": [1, 2, 5]}, ValueError, "has 3 and 30"),
        ("var_teacher", {"patch_nums": "1234"}, TypeError, "patch_nums: expected a list"),
        ("var_teacher", {"split": 2}, TypeError, "config: expected patch_nums, n_head, got split"),
        ("var_tokenizer", {"patch_nums": [1, 1]}, ValueError, "rise"),
        ("var_tokenizer", {"grid": 16}, TypeError, "got grid"),
        ("dd1_var_student", {"patch_nums": PATCH_NUMS}, ValueError, "split: .*this one has 2"),
        (
            "dd1_var_student",
            {"depth": 2},
            TypeError,
            "patch_nums, split, second_step, n_head, got d",
        ),
    ],
)
def test_bad_settings(kind: str, config: dict, error, words: str):
    tensors = tiny(kind)
    with pytest.raises(error, match=words):
        match(tensors).configure(tensors, config)


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        ("var_teacher", "pos_1LC", torch.empty(30, 128), "pos_1LC: expected 3 dimensions"),
        ("var_teacher", "word_embed.weight", None, "word_embed.weight: .*found none"),
        ("var_tokenizer", "encoder.conv_in.weight", None, "encoder.conv_in.weight"),
        ("var_tokenizer", "encoder.conv_in.weight", torch.empty(48, 3, 3, 3), "multiples of 48"),
    ],
)
def test_damaged_files(kind: str, name: str, value: Tensor | None, words: str):
    tensors = {k: v for k, v in tiny(kind).items() if k != name}
    if value is not None:
        tensors[name] = value
    with pytest.raises(ValueError, match=words):
        match(tensors).configure(tensors, {"patch_nums": PATCH_NUMS})
