"""What files and tokenizers say of a model beside its shapes: used, contradictions refused."""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints.test_released_files import CASES, SIDES, weights
from torch import Tensor

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.cli import main

VAR, GPT = weights("var_tiny", "var"), weights("llamagen_tiny", "gpt")
VAE, VQ = weights("var_tiny", "vqvae"), weights("llamagen_tiny", "vq")
LEVELS = torch.tensor([[0] + 4 * [1] + 9 * [2] + 16 * [3]])


def trainer(**other: Any) -> dict[str, Any]:
    """What VAR's trainer saves."""
    config = {"patch_nums": (1, 2, 3, 4), "resos": (16, 32, 48, 64), "prog_it": 0}
    parts = {"config": config, "var_wo_ddp": VAR, "vae_local": VAE, "var_opt": {"state": {}}}
    return {"epoch": 1, "iter": 0, "trainer": {**parts, **other}, "args": {"depth": 2}}


def arguments(**other: Any) -> argparse.Namespace:
    """What LlamaGen's trainer was called with."""
    both = {"gpt_model": "GPT-B", "image_size": 64, "downsample_size": 16, "ema": False, **other}
    return argparse.Namespace(**both)


def test_a_var_trainer_file_needs_nothing(tmp_path: Path, capsys):
    path, out = tmp_path / "ar-ckpt-last.pth", tmp_path / "x.safetensors"
    torch.save(trainer(), path)
    model = checkpoints.load(path)
    CASES["VAR"].check(model)
    assert model.tokenizer.patch_nums == (1, 2, 3, 4)
    CASES["VAR tokenizer"].check(model.tokenizer)
    assert main(["inspect", str(path)]) == 0
    assert "  read        patch_nums from trainer.config" in capsys.readouterr().out
    assert main(["convert", str(path), str(out)]) == 0
    assert "with its var_tokenizer" in capsys.readouterr().out
    CASES["VAR"].check(checkpoints.load(out))
    samples = ["make-data", str(path), "--num", "2", "--quiet", "--out", str(tmp_path / "data")]
    assert main(samples) == 0


@pytest.mark.parametrize(
    "tree",
    [
        {"trainer": {"var_wo_ddp": VAR}, "args": {"patch_nums": [1, 2, 3, 4]}},
        {"trainer": {"var_wo_ddp": VAR}, "args": {"pn": "1_2_3_4"}},
        {"model": VAR, "args": argparse.Namespace(pn="1-2-3-4")},
        {"model": VAR, "hyper_parameters": {"patch_nums": (1, 2, 3, 4)}},
        {"state_dict": VAR, "config": {"model_kwargs": {"patch_nums": [1, 2, 3, 4]}}},
        {"model": VAR, "patch_nums": None, "cfg": types.SimpleNamespace(patch_nums=[1, 2, 3, 4])},
        {"model": VAR, "args": {"patch_nums": np.arange(1, 5)}},
        {"trainer": {"ema_parameters": VAR, "var_wo_ddp": {**VAR, "lvl_1L": LEVELS}}},
        {"ema": VAR, "run": {"model": dict(VAR), "args": {"patch_nums": [1, 2, 3, 4]}}},
        {**VAR, "lvl_1L": LEVELS},
        {"model": {"module." + k: v for k, v in {**VAR, "lvl_1L": LEVELS}.items()}},
    ],
)
def test_scales_wherever_the_file_says_them(tree):
    assert checkpoints.load(tree).patch_nums == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("tree", "grid"),
    [
        ({"model": GPT, "args": arguments()}, 4),
        ({"model": GPT, "args": arguments(image_size=384)}, 24),
        ({"module": GPT, "args": arguments(image_size=256, downsample_size=8)}, 32),
        ({"state_dict": GPT, "args": vars(arguments(image_size=512))}, 32),
        ({"model": GPT, "ema": GPT, "args": arguments(image_size=np.int64(384))}, 24),
        ({"model": GPT, "config": {"block_size": 576}}, 24),
        ({"model": GPT, "args": {"latent_size": 5}}, 5),
        ({"model": GPT, "args": {"image_size": 80.0}}, 5),
        ({"ema": GPT, "old": {"model": dict(GPT), "args": arguments(image_size=384)}}, 24),
        ({**GPT, "freqs_cis": torch.zeros(17, 16, 2)}, 4),
        ({"model": GPT}, 16),
        ({"model": GPT, "args": arguments(image_size=None)}, 16),
    ],
)
def test_rasters_as_the_file_says_them(tmp_path: Path, tree, grid: int):
    torch.save(tree, tmp_path / "x.pt")
    assert checkpoints.load(tmp_path / "x.pt", n_head=2).grid == grid


def folder(path: Path, tensors: dict[str, Tensor], config: Any, sort: str) -> Path:
    """A folder as the hub's mixin writes it, its weights in one file or two."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if sort == "pytorch_model.bin":
        torch.save(tensors, path / sort)
    elif sort == "model.safetensors":
        safetensors.torch.save_file(tensors, path / sort)
    else:
        places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
        for part in set(places.values()):
            own = {name: tensors[name] for name in names if places[name] == part}
            safetensors.torch.save_file(own, path / part)
        (path / sort).write_text(json.dumps({"weight_map": places}))
    return path


VARHF = {
    "vae_kwargs": {"vocab_size": 64, "z_channels": 8, "ch": 32, "v_patch_nums": [1, 2, 3, 4]},
    **{"num_classes": 10, "depth": 2, "embed_dim": 128, "num_heads": 2, "patch_nums": [1, 2, 3, 4]},
}
SORTS = ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]


@pytest.mark.parametrize("sort", SORTS)
def test_folders_of_a_hub(tmp_path: Path, capsys, sort: str):
    teacher = folder(tmp_path / "var", {**VAR, "lvl_1L": LEVELS}, VARHF, sort)
    tokenizer = folder(tmp_path / "vae", VAE, VARHF["vae_kwargs"], sort)
    CASES["VAR"].check(checkpoints.load(teacher, tokenizer=tokenizer))
    gpt = folder(tmp_path / "gpt", GPT, {"n_head": 2, "block_size": 16, "dim": 64}, sort)
    model = checkpoints.load(str(gpt), tokenizer=VQ)
    assert model.grid == 4
    CASES["LlamaGen"].check(model)
    assert main(["inspect", str(gpt)]) == 0
    assert "  read        heads, grid from config.json" in capsys.readouterr().out
    out = str(tmp_path / "x.safetensors")
    assert main(["convert", str(teacher), out, "--tokenizer", str(tokenizer)]) == 0
    CASES["VAR"].check(checkpoints.load(out))


def test_our_own_file_in_a_folder(tmp_path: Path):
    model = checkpoints.load(VAR, tokenizer=VAE, **SIDES)
    checkpoints.save(tmp_path / "model.safetensors", model, tokenizer=model.tokenizer)
    (tmp_path / "config.json").write_text('{"patch_nums": [1, 2]}')
    CASES["VAR"].check(checkpoints.load(tmp_path))
    with pytest.raises(TypeError, match="carry their configuration, got patch_nums"):
        checkpoints.load(tmp_path, **SIDES)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "config.json: expected JSON, got"),
        ("config.json", "[1]", r"config.json: expected a JSON object, got \[1\]"),
        ("config.json", "[" * 100_000, "config.json: expected JSON, got one nested"),
        ("model.safetensors.index.json", "{}", "index.json: expected a weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}', "names of files beside"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "names of files beside"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone"}}', "gone: expected a check"),
    ],
)
def test_damaged_folders_are_named(tmp_path: Path, capsys, name: str, text: str, words: str):
    if name == "config.json":
        safetensors.torch.save_file(VAR, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        checkpoints.load(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dd2-fast: error: ") and error.count("\n") == 1


NARROW = {
    **VQ,
    **{"quantize.embedding.weight": torch.randn(64, 4), "quant_conv.bias": torch.zeros(4)},
    "quant_conv.weight": VQ["quant_conv.weight"][:4],
    "post_quant_conv.weight": VQ["post_quant_conv.weight"][:, :4],
}
FEWER = {"quantize.embedding.weight": torch.randn(63, 8)}


def test_what_a_tokenizer_tells_of_its_teacher():
    assert checkpoints.load(GPT, n_head=2, grid=4, tokenizer=NARROW).dimension == 4
    assert checkpoints.load(GPT, n_head=2, tokenizer=checkpoints.load(VQ, grid=4)).grid == 4
    scales = checkpoints.load(VAE, **SIDES)
    assert checkpoints.load(VAR, tokenizer=scales).patch_nums == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("teacher", "tokenizer", "config", "words"),
    [
        (GPT, NARROW, {"dimension": 8}, "dimension: expected 4 as in the tokenizer, got 8"),
        (GPT, {**VQ, **FEWER}, {}, "vocabulary: expected 64, got 63 in the tokenizer"),
        (GPT, checkpoints.load(VQ, grid=4), {"grid": 5}, "grid: expected 4 as in the tokenizer"),
        (VAR, {**VAE, **FEWER}, SIDES, "vocabulary: expected 64, got 63 in the tokenizer"),
        (VAR, VQ, SIDES, "tokenizer: expected a VARTokenizer, got LlamaGenTokenizer"),
        (
            {"model": GPT, "args": arguments()},
            checkpoints.load(VQ, grid=5),
            {},
            "grid: expected one value, got 4 in args and 5 in the tokenizer",
        ),
    ],
)
def test_a_tokenizer_that_contradicts_is_refused(teacher, tokenizer, config, words: str):
    config = {**config, "n_head": 2} if teacher is not VAR else config
    with pytest.raises((ValueError, TypeError), match=words):
        checkpoints.load(teacher, tokenizer=tokenizer, **config)


def test_attaching_one_that_contradicts_is_refused():
    teacher = checkpoints.load(VAR, **SIDES)
    with pytest.raises(ValueError, match="tokenizer: expected 64 codes, got 63"):
        teacher.tokenizer = checkpoints.load({**VAE, **FEWER})
    with pytest.raises(ValueError, match=r"tokenizer: expected codes \[64, 8\]"):
        checkpoints.load(GPT, n_head=2, grid=4).tokenizer = checkpoints.load(NARROW)
    generator = dd2_fast.models.DD2Generator.from_teacher(
        checkpoints.load(VAR, tokenizer=VAE, **SIDES), head_width=8, head_depth=1
    )
    generator.tokenizer = checkpoints.load(VAE)  # of ten scales: taken at the generator's
    assert generator.tokenizer.patch_nums == (1, 2, 3, 4)
    with pytest.raises(TypeError, match="tokenizer: expected a VARTokenizer"):
        generator.tokenizer = checkpoints.load(VQ)
    assert generator.tokenizer.patch_nums == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("tree", "config", "words"),
    [
        (trainer(config={"patch_nums": (1, 2, 5)}), {}, r"has 3 and 30 \(read from trainer.config"),
        (
            {**trainer(), "args": {"pn": "1_2_5"}},
            {},
            r"got \[1, 2, 5\] in args and \[1, 2, 3, 4\] in trainer.config",
        ),
        (trainer(), {"patch_nums": [1, 2, 5]}, "as in trainer.config, got .*pass the inner state"),
        ({"model": GPT, "args": arguments()}, {"grid": 16}, "grid: expected 4 as in args, got 16"),
        (
            {"model": GPT, "args": arguments(num_classes=11)},
            {},
            "num_classes: expected a row for the null class beside the 11 of args",
        ),
    ],
)
def test_contradictions_in_a_file_or_of_the_caller(tree, config, words: str):
    config = {**config, "n_head": 2} if "model" in tree else config
    with pytest.raises(ValueError, match=words):
        checkpoints.load(tree, **config)


def test_what_agrees_may_be_said_twice():
    assert checkpoints.load(trainer(), patch_nums=(1, 2, 3, 4)).patch_nums == (1, 2, 3, 4)
    tree = {"model": GPT, "args": arguments()}
    assert checkpoints.load(tree, n_head=2, grid=4, tokenizer=VQ).grid == 4


@pytest.mark.parametrize("command", ["inspect", "convert", "make-data", "sample", "train"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (["patch_nums=1,2,5"], "patch_nums: expected"),
        (["depth=2"], "config: expected patch_nums, n_head, got depth"),
        (["patch_nums"], "--config: expected key=value, got 'patch_nums'"),
        (["patch_nums=1,2", "patch_nums=1,3"], "--config: expected each key once"),
        (["tokenizer=x"], "--config: expected a setting of the model, got 'tokenizer'"),
        (["patch_nums=wide"], "patch_nums: expected a list of integers, got str"),
    ],
)
def test_every_command_takes_config_alike(tmp_path: Path, capsys, command, config, words):
    teacher, tokenizer = tmp_path / "var.pth", tmp_path / "vae.pth"
    torch.save(VAR, teacher)
    torch.save(VAE, tokenizer)
    out = str(tmp_path / "out")
    argv = {
        "inspect": [str(teacher)],
        "convert": [str(teacher), out + ".safetensors"],
        "make-data": [str(teacher), "--num", "1", "--out", out],
        "sample": ["--model", str(teacher), "--num", "1", "--out", out],
        "train": ["tiny_var", "--teacher", str(teacher), "--out", out],
    }[command]
    argv = [command, *argv, "--tokenizer", str(tokenizer), "--config", *config]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("dd2-fast: error: ") and error.count("\n") == 1


def test_train_takes_config(tmp_path: Path, capsys):
    torch.save({"trainer": {"var_wo_ddp": VAR, "vae_local": VAE}}, tmp_path / "x.pth")
    argv = ["train", "tiny_var", "--teacher", str(tmp_path / "x.pth"), "--list"]
    assert main([*argv, "--config", "patch_nums=1,2,3,4"]) == 0
    assert "source.config=patch_nums=1,2,3,4" in capsys.readouterr().out
    source = tmp_path / "x.toml"
    source.write_text(f'[source]\nteacher = "{tmp_path / "x.pth"}"\nconfig = "patch_nums=1,2"\n')
    assert main(["train", str(source), "--out", str(tmp_path / "run")]) == 2
    assert "patch_nums: expected 4 scales" in capsys.readouterr().err


def test_inspect_marks_where_everything_is_from(tmp_path: Path, capsys):
    torch.save({"model": GPT, "args": arguments(num_classes=1000)}, tmp_path / "x.pt")
    torch.save(VQ, tmp_path / "vq.pt")
    tokenizer = ["--tokenizer", str(tmp_path / "vq.pt")]
    assert main(["inspect", str(tmp_path / "x.pt"), *tokenizer, "--config", "n_head=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [(line[:14].strip(), line[14:]) for line in lines]
    assert ("given", "heads") in rows and ("read", "grid from args") in rows
    assert ("read", "dimension from the tokenizer") in rows
    assert ("inferred", "width, layers, hidden, num_classes, vocabulary, codebook") in rows
    assert ("differs", "num_classes 1000 in args, where the tensors are of 10") in rows
    torch.save(GPT, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    assert "  default     heads, grid, dimension\n" in capsys.readouterr().out


def test_text_conditional_files_and_adapters_are_named(tmp_path: Path, capsys):
    text = {name: value for name, value in GPT.items() if not name.startswith("cls_")}
    text |= {"cls_embedding.cap_proj.fc1.weight": torch.zeros(4, 4)}
    text |= {"cls_embedding.uncond_embedding": torch.zeros(3, 4)}
    lora = {f"base_model.model.{name}": value for name, value in GPT.items()}
    lora["base_model.model.layers.0.attention.wqkv.lora_A.default.weight"] = torch.zeros(2, 64)
    for tensors, words in ((text, "a text-conditional LlamaGen"), (lora, "low-rank adapters")):
        path = tmp_path / "x.pt"
        torch.save({"model": tensors, "args": arguments(gpt_type="t2i")}, path)
        with pytest.raises(ValueError, match=rf"x\.pt: expected one of .*got {words}"):
            checkpoints.load(path)
        assert main(["inspect", str(path)]) == 0
        assert f"not supported: {words}" in capsys.readouterr().out
