"""What every family must have, by its small random network: the contract of models/family.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.checkpoints import load, save
from dd2_fast.checkpoints.formats import FORMATS
from dd2_fast.checkpoints.registry import KINDS, class_of
from dd2_fast.models import DD2Generator
from dd2_fast.models.families import FAMILIES, backbone_of
from dd2_fast.training.config import ExecutionConfig
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.recipes.teachers import RANDOM

LABELS = torch.tensor([3, 7])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]


@pytest.fixture
def released(family: Any) -> Any:
    """A teacher as a file has it, in float64, which reads codes at least."""
    torch.manual_seed(0)
    teacher = family.random().double().eval().requires_grad_(False)
    teacher.tokenizer.double()
    for name, parameter in teacher.named_parameters():  # what starts at zero, and so hides faults
        if "ada_lin" in name:
            nn.init.normal_(parameter, std=0.1)
    return teacher


@pytest.fixture
def teacher(family: Any, released: Any) -> Any:
    """One that reads any vector."""
    return family.adapt(released, 0).eval().requires_grad_(False)


def tokens_of(teacher: Any) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(len(teacher.codebook), (2, teacher.num_tokens), generator=rng)


def test_names_kinds_and_formats_are_those_of_files() -> None:
    """Files of users hold these."""
    assert list(FAMILIES) == ["causal", "var", "llamagen"]
    assert {name: list(one.kinds) for name, one in FAMILIES.items()} == {
        "causal": ["vq_tokenizer", "ar_teacher", "table_teacher"],
        "var": ["var_teacher", "var_tokenizer", "dd1_var_student"],
        "llamagen": ["llamagen_teacher", "llamagen_tokenizer", "dd1_llamagen_student"],
    }
    for one in FAMILIES.values():
        assert all(class_of(kind) is model for kind, model in one.kinds.items())
        assert {released.kind for released in one.formats} <= set(one.kinds)
    assert set(KINDS) - {kind for one in FAMILIES.values() for kind in one.kinds} == {
        "dd2_generator",
        "dd2_guidance",
        "logit_student",
        "digits_classifier",
        "image_classifier",
    }
    assert {one.kind for one in FORMATS} == {k for k in KINDS if "var" in k or "llamagen" in k}
    assert list(RANDOM) == ["random-causal", "random-var", "random-llamagen"]


def test_a_teacher_is_of_its_family(family: Any, released: Any) -> None:
    assert backbone_of(released)[0] is family
    assert type(released) in family.kinds.values()
    assert type(released.tokenizer) in family.kinds.values()
    assert not any("tokenizer" in name for name, _ in released.named_modules())


def test_every_block_is_prepared(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and checkpointed, each once; what is called apart lies within them."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    network = DD2Generator.from_teacher(teacher, head_width=8, head_depth=1)
    parallel = Parallel(ExecutionConfig(compile=True, checkpoint_activations=True))
    parallel.prepare(network)
    blocks = list(network.backbone.blocks)
    layers = network.config["layers"]
    assert len(blocks) == layers >= 2 and compiled == [*blocks, network.head]
    assert all("forward" in vars(block) for block in blocks)
    within = {part for block in blocks for part in block.modules()}
    for part, method in network.backbone.apart:
        assert part in within and callable(getattr(part, method))


def test_features_read_earlier_steps_alone(teacher: Any) -> None:
    """Changing a step and all after it changes no feature up to it, and those after it do."""
    backbone = backbone_of(teacher)[1]
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2, teacher.num_tokens, teacher.codebook.shape[1], generator=rng).double()
    features = backbone(x, LABELS)
    assert features.shape == (2, teacher.num_tokens, backbone.width)
    for own in teacher.steps:
        changed = x.clone()
        changed[:, own.start :] += 1
        difference = (backbone(changed, LABELS) - features).abs().amax((0, 2))
        assert difference[: own.stop].max() == 0
        if own.stop < teacher.num_tokens:
            assert difference[own.stop :].min() > 0


def test_gradients_reach_what_is_read(teacher: Any) -> None:
    backbone = backbone_of(teacher)[1]
    x = teacher.codebook[tokens_of(teacher)].clone().requires_grad_()
    features = backbone(x, LABELS)
    rng = torch.Generator().manual_seed(3)  # a plain sum of what a norm gives is a constant
    (features * torch.randn(features.shape, generator=rng).double()).sum().backward()
    last = teacher.steps[-1].start
    norms = x.grad.norm(dim=-1)
    assert norms[:, :last].min() > 1e-4 and norms[:, last:].max() == 0


def test_the_null_class_is_one_more_condition(released: Any) -> None:
    tokens, null = tokens_of(released), torch.full_like(LABELS, released.num_classes)
    logits = released.logits(tokens, LABELS)
    unconditional = released.logits(tokens, null)
    assert logits.shape == (*tokens.shape, len(released.codebook))
    assert (logits - unconditional).abs().amax(-1).min() > 0
    other = released.logits(tokens, torch.zeros_like(null))
    assert (other - unconditional).abs().amax(-1).min() > 0
    with pytest.raises(ValueError, match=f"labels: expected values in 0..{released.num_classes}"):
        released.logits(tokens, null + 1)


def test_no_guidance_has_a_number(released: Any) -> None:
    assert released.guidance_scale(released.unguided) == 1.0
    scale = torch.as_tensor(released.guidance_scale(3.0)).expand(released.num_tokens)
    assert scale[-1] > 1


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("known", [0, 2])
def test_the_cache_is_teacher_forcing(released: Any, guided: bool, known: int) -> None:
    """Step by step, from the beginning or after a prefix, logits are those of all tokens."""
    tokens = tokens_of(released)
    logits = released.logits(tokens, LABELS)
    null = released.logits(tokens, torch.full_like(LABELS, released.num_classes))
    seen: list[slice] = []

    def choose(here: slice, cond: Tensor, uncond: Tensor | None) -> Tensor:
        seen.append(here)
        torch.testing.assert_close(cond, logits[:, here], atol=1e-9, rtol=1e-9)
        assert (uncond is not None) == guided
        if uncond is not None:
            torch.testing.assert_close(uncond, null[:, here], atol=1e-9, rtol=1e-9)
        return tokens[:, here]

    first = released.steps[known].start
    prefix = tokens[:, :first] if known else None
    made = released.generate(LABELS, choose, guided=guided, prefix=prefix)
    assert torch.equal(made, tokens) and seen == released.steps[known:]


def test_files_keep_teacher_and_tokenizer(released: Any, tmp_path: Path) -> None:
    path, tokens = tmp_path / "teacher.safetensors", tokens_of(released)
    released.float()
    save(path, released, tokenizer=released.tokenizer.float())
    again = load(path)
    assert type(again) is type(released) and again.config == released.config
    assert not any("tokenizer" in name for name in again.state_dict())
    expected = released.logits(tokens, LABELS)
    torch.testing.assert_close(again.logits(tokens, LABELS), expected, atol=1e-5, rtol=1e-5)
    images = again.tokenizer.decode(again.tokenizer.embed(tokens))
    assert images.shape[:2] == (2, 3) and 0 <= images.min() <= images.max() <= 1
    mine = released.tokenizer.decode(released.tokenizer.embed(tokens))
    torch.testing.assert_close(images, mine, atol=1e-5, rtol=0)
    assert again.tokenizer.encode(images).shape == tokens.shape


def test_a_network_starts_as_the_teacher_and_is_saved(teacher: Any, tmp_path: Path) -> None:
    teacher.float().tokenizer.float()
    network = DD2Generator.from_teacher(teacher, head_width=8, head_depth=1, exact=True).eval()
    x = teacher.codebook[tokens_of(teacher)].float()
    assert torch.equal(network.backbone(x, LABELS), backbone_of(teacher)[1](x, LABELS))
    save(tmp_path / "generator.safetensors", network, tokenizer=teacher.tokenizer)
    again = load(tmp_path / "generator.safetensors")
    assert again.config == network.config
    torch.testing.assert_close(again(x, LABELS), network(x, LABELS), atol=1e-5, rtol=1e-5)
