"""What each stage changes, what it leaves alone, and that it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from dd2_fast.losses import TeacherScore
from dd2_fast.models import ARTeacher, DD2Generator, DD2Guidance, TableTeacher, VQTokenizer
from dd2_fast.training.config import (
    CsdConfig,
    RegressionConfig,
    Stage1Config,
    TeacherConfig,
    TokenizerConfig,
)
from dd2_fast.training.samples.pool import PairPool
from dd2_fast.training.stages import (
    CsdStage,
    GroundTruthScoreStage,
    GuidanceStage,
    RegressionStage,
)
from dd2_fast.training.stages.pairs import PairsStage
from dd2_fast.training.stages.teacher import TeacherStage
from dd2_fast.training.stages.tokenizer import TokenizerStage

SIZES = dict(num_tokens=2, dimension=1, num_classes=1, width=16, layers=1, heads=2)
CONFIG = CsdConfig(steps=10, batch=16, warmup=1, guidance_start=3)


class Setup:
    """A table teacher of two tokens with a filled pool and fresh networks."""

    def __init__(self) -> None:
        self.teacher = TableTeacher(
            num_tokens=2,
            vocabulary=2,
            dimension=1,
            joint=torch.eye(2),
            codebook=torch.tensor([[-1.0], [1.0]]),
        )
        self.score = TeacherScore(self.teacher)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.guidance = DD2Guidance(head_width=16, head_depth=1, **SIZES)
        nn.init.normal_(
            self.guidance.head.output.weight, std=0.1, generator=torch.Generator().manual_seed(1)
        )
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance)
        self.pool = PairPool(500, 2, 1)
        self.rng = torch.Generator().manual_seed(2)
        stage = PairsStage(self.pool, self.score, batch=200, ode_steps=10)
        assert stage.steps == 3
        run(stage, self.rng)


def run(stage, rng: torch.Generator, steps: int | None = None) -> list[dict]:
    stage.prepare()
    losses = [stage.step(i, rng) for i in range(stage.steps if steps is None else steps)]
    stage.finish()
    return losses


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_pool_holds_teacher_samples(setup: Setup):
    assert torch.equal(setup.pool.tokens[:, 0], setup.pool.tokens[:, 1])
    assert 0.4 < float(setup.pool.tokens.float().mean()) < 0.6
    follows = (setup.pool.noise[:, 0, 0] > 0) == (setup.pool.tokens[:, 0] > 0)
    assert float(follows.float().mean()) > 0.98


def test_stage1_trains_the_head_first_and_reaches_the_analytic_velocity(setup: Setup):
    config = Stage1Config(head_steps=5, steps=150, batch=64, rate=5e-3)
    stage = GroundTruthScoreStage(setup.guidance, setup.score, setup.pool, config)
    backbone, head = weights(setup.guidance.backbone), weights(setup.guidance.head)
    for i in range(5):
        stage.step(i, setup.rng)
    assert torch.equal(weights(setup.guidance.backbone), backbone)
    assert not torch.equal(weights(setup.guidance.head), head)
    losses = [float(stage.step(i, setup.rng)["gts"]) for i in range(5, stage.steps)]
    assert not torch.equal(weights(setup.guidance.backbone), backbone)
    assert sum(losses[-20:]) < 0.4 * sum(losses[:20])


def test_regression_learns_the_pairs(setup: Setup):
    config = RegressionConfig(steps=200, batch=64, rate=5e-3)
    losses = run(RegressionStage(setup.generator, setup.score, setup.pool, config), setup.rng)
    first, last = (sum(float(v["dd1"]) for v in part) for part in (losses[:20], losses[-20:]))
    assert last < 0.3 * first


def distill(setup: Setup, pool: PairPool | None = None, **changes) -> CsdStage:
    config = dataclasses.replace(CONFIG, **changes)
    return CsdStage(
        "distill",
        config.steps,
        setup.generator,
        setup.guidance,
        setup.ema,
        setup.score,
        pool,
        config,
    )


@pytest.mark.parametrize("objective", ["sid", "dmd"])
def test_each_network_is_moved_by_its_own_loss_only(setup: Setup, objective: str):
    generator, guidance = weights(setup.generator), weights(setup.guidance)
    losses = distill(setup, guidance_rate=0.0, objective=objective).step(0, setup.rng)
    assert set(losses) == {"csd", "fcs", "gap", "generator_norm", "guidance_norm"}
    assert torch.equal(weights(setup.guidance), guidance)
    assert not torch.equal(weights(setup.generator), generator)
    assert all(p.requires_grad for p in setup.guidance.parameters())
    moved = weights(setup.generator)
    distill(setup, generator_rate=0.0, objective=objective).step(0, setup.rng)
    assert torch.equal(weights(setup.generator), moved)
    assert not torch.equal(weights(setup.guidance), guidance)


def test_ema_moves_towards_the_generator(setup: Setup):
    stage, before = distill(setup), weights(setup.ema)
    stage.step(0, setup.rng)
    want = before + (1 - 1 / 10) * (weights(setup.generator) - before)
    torch.testing.assert_close(weights(setup.ema), want)


def test_auxiliary_regression_is_there_only_when_asked_for(setup: Setup):
    assert "dd1" in distill(setup, setup.pool, auxiliary=0.5).step(0, setup.rng)
    assert "dd1" not in distill(setup, setup.pool, auxiliary=0.0).step(0, setup.rng)


def test_guidance_updates_count(setup: Setup):
    stage = distill(setup, guidance_updates=3)
    stage.step(0, setup.rng)
    state = next(iter(stage.trained["guidance"].optimizer.state.values()))
    assert int(state["step"]) == 3
    state = next(iter(stage.trained["generator"].optimizer.state.values()))
    assert int(state["step"]) == 1


def test_guidance_stage_trains_the_guidance_alone(setup: Setup):
    generator, guidance = weights(setup.generator), weights(setup.guidance)
    copied = []
    stage = GuidanceStage(
        "align", 3, setup.generator, setup.guidance, CONFIG, lambda: copied.append(1)
    )
    run(stage, setup.rng)
    assert copied == [1]
    assert torch.equal(weights(setup.generator), generator)
    assert not torch.equal(weights(setup.guidance), guidance)


def test_tokenizer_stage_learns_codes_that_reconstruct():
    rng = torch.Generator().manual_seed(0)
    patterns = torch.rand(6, 1, 4, 4, generator=rng)
    images = patterns[torch.randint(6, (200,), generator=rng)].expand(-1, 3, -1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQTokenizer(image_size=4, vocabulary=16, dimension=3, width=16)
    config = TokenizerConfig(continuous_steps=60, steps=160, batch=64, rate=5e-3)
    run(TokenizerStage(tokenizer, images, config), rng)
    tokens = tokenizer.encode(images)
    error = (tokenizer.decode(tokenizer.embed(tokens)) - images).square().mean()
    assert float(error.detach()) < 0.2 * float(patterns.var())
    torch.testing.assert_close(tokenizer.codebook.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_teacher_stage_learns_the_tokens_of_each_class():
    """Class 0 is always one image, class 1 another; the null class is their mixture."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQTokenizer(image_size=4, vocabulary=8, dimension=3, width=8)
        teacher = ARTeacher(
            num_tokens=4, vocabulary=8, dimension=3, num_classes=2, width=16, layers=1, heads=2
        )
    images = torch.rand(2, 3, 4, 4, generator=rng)
    labels = torch.tensor([0, 1])
    tokenizer.requires_grad_(False)
    tokenizer.set_raw_codebook(tokenizer.latents(images).flatten(0, 1))
    tokens = tokenizer.encode(images)
    assert tokens.unique().numel() == 8
    config = TeacherConfig(steps=150, batch=32, rate=1e-2, label_dropout=0.2)
    run(TeacherStage(teacher, tokenizer, images, labels, config), rng)
    drawn = teacher.sample(torch.tensor([0, 1]).repeat(50), seed=0)
    agree = (drawn == tokens.repeat(50, 1)).all(1).float().mean()
    assert float(agree) > 0.9
    null = torch.full((200,), 2)
    share = (teacher.sample(null, seed=1) == tokens[0]).all(1).float().mean()
    assert 0.25 < float(share) < 0.75
