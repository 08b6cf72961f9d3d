"""The sampler draws small generators by one call of a kernel: the modules' own images."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import DD2Generator
from dd2_fast.models.causal.tokenizer import VQTokenizer
from dd2_fast.ops import available_backends, default_backend
from dd2_fast.sampling import Sampler, at_once, resolve_path

LABELS = [3, 1, 4, 1, 5, 9, 2]
pytestmark = pytest.mark.skipif(
    available_backends("cpu")["cpu"] is not None, reason="no compiled kernels"
)


@pytest.fixture
def digits() -> Any:
    return load_bundle(resolve_path("digits"))


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a module was called")

    monkeypatch.setattr(DD2Generator, "forward", refuse)
    monkeypatch.setattr(VQTokenizer, "_decoded", refuse)


def by_modules(sampler: Sampler, *arguments: Any, **settings: Any) -> Any:
    with default_backend("torch"):
        return sampler(*arguments, **settings)


def tensor(result: Any) -> Tensor:
    return torch.stack([torch.as_tensor(each) for each in result]).double()


@pytest.mark.parametrize("teacher_steps", [0, 6])
@pytest.mark.parametrize("output", ["pt", "np", "latent", "tokens"])
def test_the_modules_own_images(digits: Any, output: str, teacher_steps: int) -> None:
    sampler = Sampler(digits, teacher_steps=teacher_steps, batch_size=3)
    for start in (0, 17):
        settings: dict[str, Any] = {"seed": 5, "start_index": start, "output": output}
        found = sampler(LABELS, **settings)
        wanted = by_modules(sampler, LABELS, **settings)
        assert type(found) is type(wanted) and found.dtype == wanted.dtype
        # The last digit of a token may move a pixel by one level of 255.
        allowed = {"np": 1.0, "tokens": 0.0}.get(output, 1e-5)
        assert (tensor(found) - tensor(wanted)).abs().max() <= allowed


def test_errors_stay_in_a_counted_budget(digits: Any) -> None:
    """Against float64: some 40 roundings a layer in 20 layers, of values up to 4."""
    sampler = Sampler(digits)
    exact = copy.deepcopy(sampler).double()
    with default_backend("torch"):
        latents, images = (exact(LABELS * 20, output=o) for o in ("latent", "pt"))
    assert (sampler(LABELS * 20, output="latent") - latents).abs().max() < 2e-5
    assert (sampler(LABELS * 20) - images).abs().max() < 6e-6


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_module_is_called(digits: Any, no_modules: None, batch_size: int | None) -> None:
    sampler = Sampler(digits, batch_size=batch_size)
    for output in ("pt", "np", "pil", "latent"):
        assert len(sampler(LABELS, output=output)) == len(LABELS)
    assert len(sampler([])) == 0 and sampler([]).shape == (0, 3, 8, 8)
    assert len(Sampler(digits, teacher_steps=3)(LABELS)) == len(LABELS)


def test_changed_weights_are_seen(digits: Any) -> None:
    sampler = Sampler(digits)
    before = sampler(LABELS)
    for network in (digits.generator.head, digits.tokenizer.decoder):
        with torch.no_grad():
            last = list(network.parameters())[-1]
            last += 0.25
        after = sampler(LABELS)
        assert not torch.equal(after, before)
        assert (after - by_modules(sampler, LABELS)).abs().max() < 1e-5
        before = after


def test_converted_networks_take_the_modules(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    for dtype, error in ((torch.float64, 1e-5), (torch.bfloat16, 0.5)):
        sampler.to(dtype)
        assert (sampler(LABELS) - wanted).abs().max() < error
    sampler.generator.float()
    sampler.tokenizer.float()


def test_results_are_ordinary_tensors_under_any_mode(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    with torch.inference_mode():
        found = sampler(LABELS)
    assert not found.is_inference() and torch.equal(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampler(LABELS), wanted)
    assert torch.equal(sampler(LABELS, progress=True), wanted)
    labels = torch.tensor(LABELS).repeat_interleave(2)[::2]
    assert torch.equal(sampler(labels), wanted)


def test_copies_of_a_sampler_have_their_own(digits: Any) -> None:
    sampler = Sampler(digits)
    wanted = sampler(LABELS)
    for again in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        with torch.no_grad():
            again.generator.head.output.bias += 1
        assert not torch.equal(again(LABELS), wanted)
    assert torch.equal(sampler(LABELS), wanted)


def test_what_it_covers(digits: Any) -> None:
    """A subclass, or a network with a forward or decode of its own, is called itself."""

    class Other(DD2Generator):
        pass

    indices, labels = torch.arange(2), torch.tensor([1, 2])

    def drawn(generator: Any, tokenizer: Any) -> Tensor | None:
        return at_once.AtOnce(generator, tokenizer).draw(0, indices, labels, images=True)

    assert drawn(digits.generator, digits.tokenizer) is not None
    other = Other(**digits.generator.config)
    assert drawn(other, digits.tokenizer) is None
    with default_backend("torch"):
        assert drawn(digits.generator, digits.tokenizer) is None
    digits.tokenizer.decode = lambda embeddings: embeddings
    assert drawn(digits.generator, digits.tokenizer) is None
