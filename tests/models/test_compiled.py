"""Compiled once: what calls need is made before the first trace; and exported for any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_dd2_families import STUDENTS, TEACHERS, tiny_generator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from dd2_fast.checkpoints import load, load_bundle, save
from dd2_fast.sampling import resolve_path

LABELS = torch.tensor([3, 7])


class Whole(nn.Module):
    """From noise to embeddings or images, with the tokenizer, which models do not own, inside."""

    def __init__(self, model: Any, decodes: bool) -> None:
        super().__init__()
        self.model, self.tokenizer, self.decodes = model, model.tokenizer, decodes

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.model(noise, labels)
        return self.tokenizer.decode(x) if self.decodes else x


def _digits(name: str) -> Any:
    bundle = load_bundle(resolve_path("digits"))
    return getattr(bundle, name).requires_grad_(False)


def _inputs(model: Any, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    dimension = model.codebook.shape[1] if hasattr(model, "codebook") else model.dimension
    noise = torch.randn(batch, model.num_tokens, dimension, generator=generator)
    return noise, torch.arange(batch) % 8


GENERATORS: dict[str, Callable[[], Any]] = {
    "causal": lambda: _digits("generator"),
    "var": lambda: tiny_generator("var"),
    "llamagen": lambda: tiny_generator("llamagen"),
    "dd1_var": STUDENTS["var"],
    "dd1_llamagen": STUDENTS["llamagen"],
}
_TEACHERS = {"causal": lambda: _digits("teacher"), **TEACHERS}


def _count(make: Callable[[], Any], call: Callable[[Any], Callable[..., Tensor]], inputs) -> int:
    """How often three calls compile a fresh model: an eager call might have made what they need."""
    torch.compiler.reset()
    model, counter = make(), CompileCounter()
    compiled = torch.compile(call(model), backend=counter, fullgraph=True, dynamic=False)
    results = [compiled(*inputs) for _ in range(3)]
    wanted = call(make())(*inputs)
    assert (results[2] - wanted).norm() < 1e-2 * wanted.norm()
    return counter.frame_count


@pytest.mark.parametrize("family", GENERATORS)
def test_a_generator_compiles_once(family: str) -> None:
    make = GENERATORS[family]
    assert _count(make, lambda model: model, _inputs(make())) == 1


@pytest.mark.parametrize("family", _TEACHERS)
def test_a_teacher_compiles_once(family: str) -> None:
    make = _TEACHERS[family]
    assert _count(make, lambda model: model.logits, _inputs(make())) == 1


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.slow
def test_a_decoder_compiles_once(family: str) -> None:
    make = GENERATORS[family]
    assert _count(make, lambda model: model.tokenizer.decode, _inputs(make())[:1]) == 1


@pytest.mark.slow
def test_a_cast_and_loaded_model_compiles_once(tmp_path: Path) -> None:
    """Of files, whose models are built on the meta device, in bfloat16."""
    generator = tiny_generator("var")
    save(tmp_path / "g.safetensors", generator)
    save(tmp_path / "t.safetensors", generator.tokenizer)

    def make() -> Any:
        tokenizer = load(tmp_path / "t.safetensors").bfloat16()
        return load(tmp_path / "g.safetensors", tokenizer=tokenizer)

    assert _count(make, lambda model: model, _inputs(generator)) == 1
    assert _count(make, lambda model: model.tokenizer.decode, _inputs(generator)[:1]) == 1


@pytest.mark.parametrize(
    ("family", "strict"),
    [
        ("causal", False),
        ("llamagen", False),
        ("var", False),
        pytest.param("var", True, marks=pytest.mark.long),
    ],
)
@torch.no_grad()
@pytest.mark.slow
def test_exported_for_any_batch(family: str, strict: bool) -> None:
    """Embeddings and images, at a batch that was not exported."""
    batch = torch.export.Dim("batch", min=2, max=4096)
    for decodes in (False, True):
        module = Whole(GENERATORS[family](), decodes)
        exported = torch.export.export(
            module, _inputs(module.model, 3), dynamic_shapes=({0: batch},) * 2, strict=strict
        )
        inputs = _inputs(module.model, 5)
        torch.testing.assert_close(
            exported.module()(*inputs), module(*inputs), atol=1e-4, rtol=1e-4
        )
