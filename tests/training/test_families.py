"""The contract of the trainer: every stage, over every family's small random network, trains what
it says, all of it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.losses import TeacherScore
from dd2_fast.models import DD2Generator, DD2Guidance, LogitStudent
from dd2_fast.models.families import FAMILIES
from dd2_fast.training import stages
from dd2_fast.training.config import (
    AdaptationConfig,
    CsdConfig,
    LogitsConfig,
    RegressionConfig,
    Stage1Config,
)
from dd2_fast.training.loop import Stage
from dd2_fast.training.samples.draws import LivePairs, LiveSamples
from dd2_fast.training.samples.pool import PairPool
from dd2_fast.training.stages import (
    AdaptationStage,
    CsdStage,
    GroundTruthScoreStage,
    GuidanceStage,
    LogitStage,
    PairsStage,
    RegressionStage,
)

BATCH, STEPS = 4, 3
ODE_STEPS = 2
CSD = CsdConfig(steps=STEPS, batch=BATCH, warmup=0, guidance_updates=2, generator_rate=1e-3)
# These train what the small family alone has, from images; test_stages.py is theirs.
OF_IMAGES = {
    "TeacherStage",
    "TokenizerStage",
    "ImageTokenizerStage",
    "ImageTeacherStage",
    "ImageClassifierStage",
}


class Setup:
    """A family's networks as a run has them; ``modules`` are all that a stage could change."""

    def __init__(self, family: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            source = FAMILIES[family].random()
            for name, parameter in source.named_parameters():  # zero would stop gradients
                if "ada_lin" in name:
                    nn.init.normal_(parameter, std=0.1)
            source.eval().requires_grad_(False)
            self.source: Any = source
            self.teacher: Any = FAMILIES[family].adapt(source, 0).eval().requires_grad_(False)
            self.guidance = DD2Guidance.from_teacher(self.teacher, head_width=8, head_depth=1)
            nn.init.normal_(self.guidance.head.output.weight, std=0.1)
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        self.student = LogitStudent.from_teacher(self.teacher).requires_grad_()
        self.student_ema = LogitStudent.from_teacher(self.teacher).requires_grad_(False)
        self.samples = TeacherScore(source, cfg=2.0, top_k=40)
        self.score = TeacherScore(self.teacher, cfg=2.0, top_k=40)
        self.pool = PairPool(6, self.teacher.num_tokens, self.teacher.codebook.shape[1])
        self.modules: dict[str, nn.Module] = {
            "source": self.source,
            "tokenizer": self.source.tokenizer,
            "guidance": self.guidance,
            "generator": self.generator,
            "ema": self.ema,
            "student": self.student,
            "student_ema": self.student_ema,
            "pool": self.pool,
        }
        if self.teacher is not source:
            self.modules["teacher"] = self.teacher
        self.live = LiveSamples(self.samples)
        self.pairs = LivePairs(self.samples, ode_steps=ODE_STEPS)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value.clone()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }


@dataclass(frozen=True)
class Case:
    """A stage: how it is made, and the beginnings of the names of what it changes."""

    make: Callable[[Setup], Stage]
    changes: tuple[str, ...]
    losses: frozenset[str] = field(default_factory=frozenset)


def adaptation(setup: Setup) -> Stage:
    config = AdaptationConfig(steps=STEPS, batch=BATCH, warmup=0, rate=1e-3)
    return AdaptationStage(setup.teacher, setup.live, config)


def stage1(setup: Setup, **steps: int) -> Stage:
    config = Stage1Config(batch=BATCH, warmup=0, **{"head_steps": 0, "steps": 0, **steps})
    return GroundTruthScoreStage(setup.guidance, setup.score, setup.live, config)


def regression(setup: Setup, ema: Any = None) -> Stage:
    config = RegressionConfig(steps=STEPS, batch=BATCH, warmup=0)
    networks = (setup.generator, setup.samples, setup.pairs)
    return RegressionStage(*networks, config, ema=ema, ema_decay=0.5)


def csd(setup: Setup, pool: Any = None, **changes: Any) -> Stage:
    networks = (setup.generator, setup.guidance, setup.ema, setup.score)
    return CsdStage("distill", STEPS, *networks, pool, CsdConfig(**{**vars(CSD), **changes}))


def logits(setup: Setup, pool: Any = None) -> Stage:
    """The teacher that is learnt from is the source, which may read codes only."""
    config = LogitsConfig(batch=BATCH, warmup=0, ema_decay=0.5)
    networks = (setup.student, setup.student_ema, setup.samples)
    return LogitStage("logits", STEPS, 1e-3, *networks, pool, config)


CASES = {
    "adaptation": Case(adaptation, ("teacher.",), frozenset({"nll", "teacher_norm"})),
    "pairs": Case(
        lambda s: PairsStage(s.pool, s.samples, batch=2, ode_steps=ODE_STEPS), ("pool.",)
    ),
    "gts_head": Case(
        lambda s: stage1(s, head_steps=STEPS),
        ("guidance.head.",),
        frozenset({"gts", "guidance_norm"}),
    ),
    "gts": Case(
        lambda s: stage1(s, steps=STEPS), ("guidance.",), frozenset({"gts", "guidance_norm"})
    ),
    "regression": Case(regression, ("generator.",), frozenset({"dd1", "generator_norm"})),
    "dd1": Case(
        lambda s: regression(s, s.ema),
        ("generator.", "ema."),
        frozenset({"dd1", "generator_norm"}),
    ),
    "guidance": Case(
        lambda s: GuidanceStage("guidance", STEPS, s.generator, s.guidance, CSD),
        ("guidance.",),
        frozenset({"fcs", "guidance_norm"}),
    ),
    **{
        objective: Case(
            lambda s, objective=objective: csd(s, objective=objective),  # type: ignore[misc]
            ("guidance.", "generator.", "ema."),
            frozenset({"csd", "fcs", "generator_norm", "guidance_norm"}),
        )
        for objective in ("sid", "dmd")
    },
    "logits_pairs": Case(
        lambda s: logits(s, s.pairs),
        ("student.", "student_ema."),
        frozenset({"kl", "generator_norm"}),
    ),
    "logits": Case(logits, ("student.", "student_ema."), frozenset({"kl", "generator_norm"})),
    "auxiliary": Case(
        lambda s: csd(s, s.pairs, auxiliary=0.5),
        ("guidance.", "generator.", "ema."),
        frozenset({"csd", "dd1", "fcs", "generator_norm", "guidance_norm"}),
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[tuple[str, Setup, dict[str, Tensor]]]:
    setup = Setup(request.param)
    yield request.param, setup, setup.state()


@pytest.mark.parametrize("name", CASES)
def test_a_stage_trains_what_it_says(
    family: tuple[str, Setup, dict[str, Tensor]], name: str
) -> None:
    _, setup, start = family
    case = CASES[name]
    if name == "adaptation" and setup.teacher is setup.source:
        pytest.skip("it reads any vector as it is")
    for key, module in setup.modules.items():
        own = {k.removeprefix(f"{key}."): v for k, v in start.items() if k.startswith(f"{key}.")}
        module.load_state_dict(own)
        module.requires_grad_(key in ("guidance", "generator", "student"))
        module.zero_grad()
    stage = case.make(setup)
    rng = torch.Generator().manual_seed(1)
    stage.prepare()
    losses = [stage.step(i, rng) for i in range(stage.steps)]
    stage.finish()
    assert len(losses) == STEPS and stage.first_bad() is None
    for loss in losses:
        assert set(loss) - {"gap"} == case.losses
        assert all(torch.as_tensor(value).isfinite() for value in loss.values())
    end = setup.state()
    changed = {key for key, value in end.items() if not torch.equal(value, start[key])}
    trained = {key for key in start if key.startswith(case.changes) and not is_constant(setup, key)}
    assert changed == trained
    for key, module in setup.modules.items():
        if not any(prefix.startswith(key) for prefix in case.changes):
            assert all(p.grad is None for p in module.parameters()), f"gradients of {key}"
    for parameters in (setup.guidance.parameters(), setup.generator.parameters()):
        assert all(p.requires_grad for p in parameters), "as the next stage finds them"


def is_constant(setup: Setup, key: str) -> bool:
    """Whether a tensor of a state is no weight: a codebook, a rotary table."""
    module, _, name = key.partition(".")
    return module != "pool" and name not in dict(setup.modules[module].named_parameters())


def test_every_stage_is_looked_at(family: tuple[str, Setup, dict[str, Tensor]]) -> None:
    if family[0] != "llamagen":
        pytest.skip("the family that has all of them tells")
    made = {type(case.make(family[1])).__name__ for case in CASES.values()}
    assert made | OF_IMAGES == set(stages.__all__)
