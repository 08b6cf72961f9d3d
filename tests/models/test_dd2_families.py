"""DD2's networks over the released families: copies of the teacher, of the paper's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity import llamagen_models, var_models

from dd2_fast.checkpoints import load, save
from dd2_fast.losses import ImageRandom, TeacherScore, csd_loss, draw_noisy, gts_loss
from dd2_fast.losses.noise import TimeDistribution
from dd2_fast.models import DD2Generator, DD2Guidance
from dd2_fast.models.llamagen import LlamaGenTeacher, adapt
from dd2_fast.models.var import VARTeacher
from dd2_fast.models.var.tokenizer import PATCH_NUMS
from dd2_fast.sampling import Sampler, sample
from dd2_fast.sampling.noise import image_noise

LABELS = torch.tensor([3, 7])


def llamagen_teacher() -> LlamaGenTeacher:
    teacher = llamagen_models.make_teacher(llamagen_models.make_tokenizer())
    return adapt(teacher)[0].eval().requires_grad_(False)


TEACHERS = {"var": var_models.teacher, "llamagen": llamagen_teacher}
FAMILY = pytest.mark.parametrize("family", TEACHERS)


def tiny_generator(family: str) -> DD2Generator:
    torch.manual_seed(0)
    generator = DD2Generator.from_teacher(TEACHERS[family](), head_width=16, head_depth=1)
    for parameter in generator.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return generator.eval().requires_grad_(False)


@FAMILY
def test_the_backbone_is_the_teachers(family: str) -> None:
    teacher = TEACHERS[family]()
    guidance = DD2Guidance.from_teacher(teacher, head_width=16, head_depth=1, exact=True)
    assert guidance.backbone.tokenizer is guidance.tokenizer is teacher.tokenizer
    x = torch.randn(2, teacher.num_tokens, teacher.dimension)
    features = guidance.features(x, LABELS)
    torch.testing.assert_close(teacher.head(features), teacher.logits(x, LABELS))
    assert not any("tokenizer" in name for name in guidance.state_dict())


@FAMILY
def test_a_token_reads_noise_of_earlier_steps_and_its_own(family: str) -> None:
    generator = tiny_generator(family)
    noise = torch.randn(2, generator.num_tokens, generator.dimension)
    x = generator(noise, LABELS)
    third = TEACHERS[family]().steps[2]
    changed = noise.clone()
    changed[:, third] += 1
    difference = (generator(changed, LABELS) - x).abs().amax((0, 2))
    assert difference[: third.start].max() == 0 and difference[third].min() > 0.1
    assert difference[third.stop :].min() > 0


@FAMILY
def test_a_cast_generator_samples(family: str) -> None:
    generator = tiny_generator(family)
    wanted = Sampler(generator)([3, 7], output="latent")
    low = Sampler(generator, dtype=torch.bfloat16)([3, 7], output="latent")
    assert low.isfinite().all()
    assert (low - wanted).norm() < 0.1 * wanted.norm()
    assert Sampler(generator)([3, 7]).isfinite().all()


@pytest.mark.parametrize(("depth", "millions"), [(16, 329), (20, 619), (24, 1040)])
def test_sizes_are_the_papers(depth: int, millions: float) -> None:
    """Parameters of the generator within 2% of the paper's table."""
    with torch.device("meta"):
        teacher = VARTeacher(patch_nums=PATCH_NUMS, width=64 * depth, layers=depth, heads=depth)
        network = DD2Generator(
            family="var", head_depth=4, head_width=1024, **teacher.backbone_config
        )
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("network", [DD2Generator, DD2Guidance])
def test_llamagen_l_is_of_the_papers_size(network: type[DD2Generator]) -> None:
    """From a teacher that is adapted as `adapt` does by default, with a unit a code of its own."""
    with torch.device("meta"):
        sizes = dict(width=1024, layers=24, heads=16, hidden=2816)
        teacher = LlamaGenTeacher(**sizes, adapter_width=1024, adapter_codes=True)
        counts = [
            sum(p.numel() for p in network.from_teacher(teacher, exact=exact).parameters())
            for exact in (False, True)
        ]
    assert counts[0] / 1e6 == pytest.approx(335, rel=0.02)
    assert counts[1] - counts[0] == 16384 * (8 + 1 + 1 + 1024)


def test_an_exact_adapter_stays_with_the_teacher(tmp_path: Path) -> None:
    """All else is copied; a network that wants the units of codes too is saved with them."""
    teacher = llamagen_teacher()
    sizes = dict(head_width=16, head_depth=1)
    plain, exact = (DD2Guidance.from_teacher(teacher, **sizes, exact=e) for e in (False, True))
    own = set(teacher.state_dict()) - {"output.weight"}
    left = own - set(plain.backbone.state_dict())
    assert {name.rsplit(".", 1)[0] for name in left} == {
        "tok_embeddings.code_units",
        "tok_embeddings.code_output",
    }
    assert own == set(exact.backbone.state_dict())
    for name, value in plain.backbone.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]), name
    save(tmp_path / "g.safetensors", exact)
    again = load(tmp_path / "g.safetensors")
    assert again.config == exact.config and again.config["adapter_codes"]
    assert list(again.state_dict()) == list(exact.state_dict())


@FAMILY
def test_a_saved_generator_samples_the_same_images(family: str, tmp_path: Path) -> None:
    generator = tiny_generator(family)
    save(tmp_path / "g.safetensors", generator)
    again = load(tmp_path / "g.safetensors", tokenizer=generator.tokenizer)
    images = sample(again, [1, 2, 3], seed=4)
    assert (
        images.shape[:2] == (3, 3) and images.shape[2] == images.shape[3] > generator.backbone.grid
    )
    # Not bit by bit: a file's tensors are mapped where they lie, and products round by alignment.
    torch.testing.assert_close(images, sample(generator, [1, 2, 3], seed=4), atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="expected a one-step generator with a tokenizer"):
        sample(load(tmp_path / "g.safetensors"), [1])


@FAMILY
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_teacher_refines_whatever_the_batch(family: str, batch_size: int) -> None:
    """The last steps are the teacher's: drawn greedily they are its likeliest given the rest."""
    generator = tiny_generator(family)
    generator.teacher = teacher = TEACHERS[family]()
    labels = [1, 2, 3, 4, 5]
    whole = Sampler(generator, teacher_steps=3, cfg=1.5, top_k=20)
    parts = Sampler(generator, teacher_steps=3, cfg=1.5, top_k=20, batch_size=batch_size)
    tokens = whole(labels, seed=2, output="tokens")
    assert torch.equal(parts(labels, seed=2, output="tokens"), tokens)
    first = teacher.steps[-2].start
    one_step = sample(generator, labels, seed=2, output="tokens")
    assert torch.equal(tokens[:, :first], one_step[:, :first])
    assert not torch.equal(tokens[:, first:], one_step[:, first:])
    greedy = Sampler(generator, teacher_steps=2, top_k=1)(labels, seed=2, output="tokens")
    last = teacher.steps[-1]
    likeliest = teacher.logits(greedy, torch.tensor(labels))[:, last].argmax(-1)
    assert torch.equal(greedy[:, last], likeliest)


@FAMILY
def test_losses_reach_every_parameter(family: str) -> None:
    """Stage 1 and stage 2 of one batch, with VAR's guidance a token."""
    teacher = TEACHERS[family]().requires_grad_(False)
    guidance = DD2Guidance.from_teacher(teacher, head_width=16, head_depth=1)
    generator = DD2Generator.from_guidance(guidance)
    for network in (guidance, generator):
        torch.nn.init.normal_(network.head.output.weight, std=0.1)
        torch.nn.init.normal_(network.head.modulation.weight, std=0.1)
    score, rng = TeacherScore(teacher, cfg=2.0, top_k=32), ImageRandom(0, torch.arange(2))
    times = TimeDistribution(0.02)
    tokens = teacher.sample(LABELS, cfg=1.5, top_k=32)
    x_t, t, _ = draw_noisy(teacher.codebook[tokens], 2, times, rng)
    velocity = guidance.head(x_t, t, guidance.features(teacher.codebook[tokens], LABELS))
    gts_loss(velocity, x_t, t, score(tokens, LABELS)).mean().backward()
    x = generator(torch.randn(2, teacher.num_tokens, teacher.dimension), LABELS)
    x_t, t, _ = draw_noisy(x, 2, times, rng)
    fake = guidance.x0(x_t, t, guidance.features(x.detach(), LABELS).detach())
    csd_loss(x, x_t, t, fake, score(x.detach(), LABELS)).mean().backward()
    for network in (guidance, generator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


STUDENTS = {
    "var": var_models.student,
    "llamagen": lambda: attach(llamagen_models.make_student(), llamagen_models.make_tokenizer()),
}


def attach(student: torch.nn.Module, tokenizer: torch.nn.Module) -> torch.nn.Module:
    student.tokenizer = tokenizer
    return student


@pytest.mark.parametrize("family", STUDENTS)
def test_students_take_one_step_or_two(family: str) -> None:
    student = STUDENTS[family]()
    latents = [Sampler(student, steps=k)([1, 2], seed=3, output="latent") for k in (1, 2)]
    noise = image_noise(3, torch.arange(2), (student.num_tokens, student.dimension))
    for steps, latent in enumerate(latents, 1):
        torch.testing.assert_close(latent, student(noise, torch.tensor([1, 2]), steps=steps))
    assert not torch.equal(*latents)
    with pytest.raises(ValueError, match="steps: expected 1 or 2 for a DD1"):
        Sampler(student, steps=3)
    with pytest.raises(ValueError, match="steps: expected 1 for a DD2Generator, got 2"):
        Sampler(tiny_generator(family), steps=2)


def test_a_token_table_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher: .* got one with a token table; .*adapt"):
        DD2Generator.from_teacher(llamagen_models.make_teacher())


def test_a_teacher_of_no_family_is_refused() -> None:
    with pytest.raises(TypeError, match="teacher: expected one with a backbone of causal, var"):
        DD2Generator.from_teacher(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="family: expected one of causal, var.*got 'gpt'"):
        DD2Generator(family="gpt")
