"""LlamaGen's files are told by names, and their shapes give the models' arguments."""

from __future__ import annotations

import pytest
import torch
from parity import llamagen_models as parity
from torch import Tensor

from dd2_fast.checkpoints.registry import class_of
from dd2_fast.models.llamagen.released import FORMATS
from dd2_fast.models.released import Format

SIZES = {  # layers, heads, width, hidden
    "B": (12, 12, 768, 2048),
    "L": (24, 16, 1024, 2816),
    "XL": (36, 20, 1280, 3584),
    "XXL": (48, 24, 1536, 4096),
    "3B": (24, 32, 3200, 8704),
}


def on_meta(name: str, buffers: bool = True) -> dict[str, Tensor]:
    shapes = parity.manifest(name)
    both = {**shapes["parameters"], **(shapes["buffers"] if buffers else {})}
    return {key: torch.empty(shape, device="meta") for key, shape in both.items()}


def recognise(tensors: dict[str, Tensor]) -> Format:
    (found,) = [one for one in FORMATS if one.matches(tensors)]
    return found


def config_of(name: str) -> dict[str, int]:
    """What the shapes of this file cannot tell."""
    return {"grid": 24} if name.endswith("384") else {}


def test_every_size_has_a_manifest():
    names = parity.manifest_names()
    assert {"llamagen_vq_ds8", "llamagen_vq_ds16", "dd1_llamagen_L"} <= set(names)
    assert {name.split("-")[1].split("_")[0] for name in names if "GPT" in name} == set(SIZES)


@pytest.mark.parametrize("name", parity.manifest_names())
def test_released_names_and_shapes(name: str):
    tensors = on_meta(name)
    found = recognise(tensors)
    arguments = found.configure(tensors, config_of(name))
    with torch.device("meta"):
        model = class_of(found.kind)(**arguments)
    got = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert got == parity.manifest(name)["parameters"]
    assert all(found.ignored(key) for key in parity.manifest(name)["buffers"])
    assert not any(found.ignored(key) for key in got)
    if "GPT" in name:
        layers, heads, width, hidden = SIZES[name.split("-")[1].split("_")[0]]
        assert (arguments["layers"], arguments["heads"]) == (layers, heads)
        assert (arguments["width"], arguments["hidden"]) == (width, hidden)
        assert model.num_tokens == (576 if name.endswith("384") else 256)
        assert model.num_classes == 1000
    again = class_of(found.kind)
    with torch.device("meta"):
        assert again(**model.config).config == model.config


@pytest.mark.parametrize(("name", "factor"), [("llamagen_vq_ds8", 8), ("llamagen_vq_ds16", 16)])
def test_tokenizers_halve_the_resolution_as_named(name: str, factor: int):
    arguments = recognise(on_meta(name)).configure(on_meta(name), {})
    with torch.device("meta"):
        tokenizer = class_of("llamagen_tokenizer")(**arguments)
        assert tokenizer.factor == factor
        images = torch.empty(1, 3, 4 * factor, 4 * factor)
        assert tokenizer.latents(images).shape == (1, 16, 8)
        assert tokenizer.decode(torch.empty(1, 16, 8)).shape == images.shape


def test_stray_buffers_are_ignored():
    for name in ("freqs_cis", "causal_mask", "layers.3.attention.kv_cache.k_cache"):
        assert all(one.ignored(name) for one in FORMATS)
    assert not any(one.ignored("layers.3.attention.wqkv.weight") for one in FORMATS)


def test_families_are_told_apart():
    kinds = {name: recognise(on_meta(name, buffers=False)).kind for name in parity.manifest_names()}
    assert kinds["dd1_llamagen_L"] == "dd1_llamagen_student"
    assert kinds["llamagen_vq_ds8"] == kinds["llamagen_vq_ds16"] == "llamagen_tokenizer"
    assert list(kinds.values()).count("llamagen_teacher") == len(kinds) - 3
    assert not any(one.matches({"pos_1LC": torch.empty(1)}) for one in FORMATS)


def test_published_splits_and_the_callers_own():
    tensors = on_meta("dd1_llamagen_L")
    configure = recognise(tensors).configure
    with torch.device("meta"):
        build = class_of("dd1_llamagen_student")
        student = build(**configure(tensors, {}))
        assert (student.split, student.second_step) == (130, 130)
        student = build(**configure(tensors, {"split": 90, "second_step": 80}))
        assert (student.split, student.second_step) == (90, 80)
    codebook = torch.randn(16384, 8)
    assert configure(tensors, {"codebook": codebook})["codebook"] is codebook


@pytest.mark.parametrize(
    ("name", "config", "error", "message"),
    [
        (
            "llamagen_GPT-B_256",
            {"split": 4},
            TypeError,
            "n_head, grid, codebook, dimension, got",
        ),
        ("llamagen_GPT-B_256", {"n_head": 7}, ValueError, "n_head: expected heads of .*got 7"),
        ("llamagen_GPT-B_256", {"n_head": 0}, ValueError, "n_head: expected heads of .*got 0"),
        ("llamagen_GPT-B_256", {"grid": 16.0}, TypeError, "grid: expected an int, got float"),
        ("llamagen_GPT-B_256", {"codebook": [1]}, TypeError, "codebook: expected a float .*list"),
        ("llamagen_GPT-B_256", {"codebook": torch.ones(3)}, ValueError, r"\[V, C\], got \[3\]"),
        ("dd1_llamagen_L", {"patch_nums": 1}, TypeError, "config: expected .*got patch_nums"),
        ("dd1_llamagen_L", {"split": True}, TypeError, "split: expected an int, got bool"),
        (
            "llamagen_vq_ds16",
            {"n_head": 4},
            TypeError,
            "config: expected grid, groups, code_length, got n_head",
        ),
        ("llamagen_vq_ds16", {"groups": 8.0}, TypeError, "groups: expected an int, got float"),
        ("llamagen_vq_ds16", {"code_length": "2"}, TypeError, "code_length: .* number, got str"),
    ],
)
def test_bad_configurations(name: str, config: dict, error, message: str):
    tensors = on_meta(name)
    with pytest.raises(error, match=message):
        recognise(tensors).configure(tensors, config)


def test_shapes_that_make_no_model():
    tensors = on_meta("llamagen_GPT-B_256")
    tensors["layers.0.attention.wqkv.weight"] = torch.empty(1536, 768, device="meta")
    with pytest.raises(ValueError, match=r"wqkv.weight: expected 2304 rows .*got 1536"):
        recognise(tensors).configure(tensors, {})
    tensors = on_meta("dd1_llamagen_L")
    tensors["cls_embedding.embedding_table.weight"] = torch.empty(1001, 1280, device="meta")
    tensors["layers.0.attention.wqkv.weight"] = torch.empty(3840, 1280, device="meta")
    with pytest.raises(ValueError, match="split: expected the first token .*has 1280"):
        recognise(tensors).configure(tensors, {})
    tensors = on_meta("llamagen_vq_ds16")
    name = "encoder.conv_blocks.2.res.0.conv1.weight"
    tensors[name] = torch.empty(200, 128, 3, 3, device="meta")
    with pytest.raises(ValueError, match="multiples of 128"):
        recognise(tensors).configure(tensors, {})
