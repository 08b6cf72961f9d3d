"""A converted file needs nothing beside it: configuration, codebook and tokenizer are inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.test_released_files import CASES
from parity import llamagen_models, var_models
from parity.llamagen_models import weights

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.models import DD2Generator

# Which tokenizer goes with the fixture of a model that wants one.
TOKENIZERS = {
    "VAR": ("var_tiny", "vqvae"),
    "DD1 VAR": ("dd1_var_tiny", "vqvae"),
    "LlamaGen": ("llamagen_tiny", "vq"),
    "DD1 LlamaGen": ("llamagen_tiny", "vq"),
}


def released(tmp_path: Path, name: str) -> tuple[str, str, list[str]]:
    """The files of a model and of its tokenizer, and its --config."""
    case, (fixture, part) = CASES[name], TOKENIZERS[name]
    torch.save({"model": case.tensors()}, tmp_path / "model.pth")
    torch.save({"model": weights(fixture, part)}, tmp_path / "vae.pth")
    config = [f"{k}={json.dumps(v)}" for k, v in case.config.items() if k != "codebook"]
    return str(tmp_path / "model.pth"), str(tmp_path / "vae.pth"), config


def outputs(model) -> list[torch.Tensor]:
    """What a model makes of fixed inputs, up to images."""
    rng = torch.Generator().manual_seed(7)
    noise = torch.randn(2, model.num_tokens, model.dimension, generator=rng)
    labels = torch.tensor([1, 2])
    if hasattr(model, "logits"):
        tokens = model.sample(labels, cfg=1.5, top_k=9, seed=2)
        images = model.tokenizer.decode(model.tokenizer.embed(tokens))
        return [tokens, model.logits(tokens, labels), images]
    both = [model(noise, labels, steps=k) for k in (1, 2)]
    return [*both, dd2_fast.sample(model, [1, 2], seed=2)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_converted_with_its_tokenizer(tmp_path: Path, capsys, name: str) -> None:
    source, vae, config = released(tmp_path, name)
    out, again = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert main(["convert", source, str(out), "--tokenizer", vae, "--config", *config]) == 0
    kind = CASES[f"{name.split()[-1]} tokenizer"].kind
    assert f", with its {kind}, " in capsys.readouterr().out
    assert main(["convert", str(out), str(again)]) == 0  # keeps it
    beside = {k: v for k, v in CASES[name].config.items() if k != "codebook"}
    want = checkpoints.load(source, tokenizer=vae, **beside)
    for path in (out, again):
        got = checkpoints.load(path)
        assert got.config == want.config and got.tokenizer.config == want.tokenizer.config
        assert list(got.state_dict()) == list(want.state_dict())
        # Not bit by bit: mapped tensors lie where they lie, and products round by alignment.
        torch.testing.assert_close(outputs(got), outputs(want), atol=1e-4, rtol=1e-4)
    assert checkpoints.load(out, tokenizer=want.tokenizer).tokenizer.config == got.tokenizer.config
    other = checkpoints.load(source, tokenizer=out, **beside)  # the tokenizer in it alone
    assert torch.equal(other.codebook, want.codebook)
    assert main(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"{kind}, inside" in text and f"tensors       {len(want.state_dict())}, " in text


@pytest.mark.parametrize("name", ["LlamaGen", "DD1 LlamaGen"])
def test_a_codebook_of_its_own_is_saved(tmp_path: Path, name: str, capsys) -> None:
    path, codebook = tmp_path / "x.safetensors", llamagen_models.arrays("dd1_llamagen_tiny")
    codebook = codebook["codebook"]
    config = {k: v for k, v in CASES[name].config.items() if k != "codebook"}
    model = checkpoints.load(CASES[name].tensors(), **config, codebook=codebook)
    checkpoints.save(path, model.half())
    again = checkpoints.load(path)
    assert again.codebook.dtype == torch.float32 and torch.equal(again.codebook, codebook)
    assert list(again.state_dict()) == list(model.state_dict()) and again.config == model.config
    with pytest.raises(TypeError, match="our own checkpoints carry .* got codebook"):
        checkpoints.load(path, codebook=codebook)
    assert main(["inspect", str(path)]) == 0
    assert "its codebook  [64, 8]" in capsys.readouterr().out


def test_a_student_without_codebook_still_takes_one(tmp_path: Path) -> None:
    case, path = CASES["DD1 LlamaGen"], tmp_path / "x.safetensors"
    config = dict(case.config)
    codebook = config.pop("codebook")
    checkpoints.save(path, checkpoints.load(case.tensors(), **config))
    case.check(checkpoints.load(path, codebook=codebook))


@pytest.mark.parametrize("name", ["VAR", "DD1 VAR"])
def test_a_tokenizer_of_another_family_is_one_line(tmp_path: Path, capsys, name: str) -> None:
    source, _, config = released(tmp_path, name)
    torch.save(weights("llamagen_tiny", "vq"), tmp_path / "vq.pt")
    out = tmp_path / "o.safetensors"
    argv = ["convert", source, str(out), "--tokenizer", str(tmp_path / "vq.pt")]
    assert main([*argv, "--config", *config]) == 2
    assert "tokenizer: expected a VARTokenizer, got Llama" in capsys.readouterr().err
    assert not out.exists()


def test_our_generator_with_its_tokenizer(tmp_path: Path) -> None:
    generator = DD2Generator.from_teacher(var_models.teacher(), head_width=16, head_depth=1).eval()
    checkpoints.save(tmp_path / "g.safetensors", generator, tokenizer=generator.tokenizer)
    images = dd2_fast.sample(str(tmp_path / "g.safetensors"), [1, 2], seed=3)
    want = dd2_fast.sample(generator, [1, 2], seed=3)
    torch.testing.assert_close(images, want, atol=1e-5, rtol=0)


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tokenizer = var_models.tokenizer()
    checkpoints.save(path, var_models.teacher(), tokenizer=tokenizer)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    del tensors["tokenizer.quant_conv.bias"]
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"\(tokenizer\): .*1 missing: quant_conv.bias \[8\]"):
        checkpoints.load(path)
    header = json.loads(metadata["dd2_fast"])
    for part in ({"kind": "spam", "config": {}}, {"kind": "var_tokenizer"}, 3):
        text = json.dumps({**header, "tokenizer": part})
        safetensors.torch.save_file(tensors, path, {"dd2_fast": text})
        with pytest.raises(ValueError, match=r"x\.safetensors: expected kind"):
            checkpoints.load(path)
    text = json.dumps({**header, "data": ["codebook"]})
    safetensors.torch.save_file(tensors, path, {"dd2_fast": text})
    with pytest.raises(ValueError, match="expected a tensor data.codebook, found none"):
        checkpoints.load(path)
