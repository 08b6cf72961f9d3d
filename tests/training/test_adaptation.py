"""Stage 0: the loss of an adapted teacher falls towards its teacher's, and resuming is exact."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from parity import llamagen_models as parity
from torch.nn import functional as F

from dd2_fast.losses import TeacherScore
from dd2_fast.models.llamagen import LlamaGenTeacher, adapt
from dd2_fast.training import loop
from dd2_fast.training.config import AdaptationConfig
from dd2_fast.training.loop import Interrupted, run_stages
from dd2_fast.training.samples.draws import LiveSamples
from dd2_fast.training.stages.adaptation import AdaptationStage
from dd2_fast.training.state import RunState

CONFIG = AdaptationConfig(steps=80, batch=16, rate=2e-3, warmup=5, label_dropout=0.1)


def make_run(folder: Path, config: AdaptationConfig = CONFIG):
    """A teacher, its coarsely adapted copy, and the stage that fine-tunes the copy."""
    teacher = parity.make_teacher().requires_grad_(False)
    adapted, _ = adapt(teacher, smooth=4, exact=False)
    state = RunState(folder, {"adapted": adapted}, {}, seed=3)
    return (
        teacher,
        adapted,
        state,
        AdaptationStage(adapted, LiveSamples(TeacherScore(teacher)), config),
    )


@torch.no_grad()
def nll(model: LlamaGenTeacher, teacher: LlamaGenTeacher) -> float:
    """Of 96 samples of the teacher that training does not draw."""
    labels = torch.arange(96) % teacher.num_classes
    tokens = teacher.sample(labels, seed=12345)
    logits = model.logits(tokens, labels)
    return float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    teacher, adapted, state, stage = make_run(tmp_path_factory.mktemp("whole"))
    before = [parameter.clone() for parameter in teacher.parameters()]
    start = adapt(teacher, smooth=4, exact=False)[0]
    run_stages([stage], state, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))
    return teacher, start, adapted


@pytest.mark.slow
def test_the_loss_falls_to_the_teachers(whole):
    teacher, start, adapted = whole
    first, last, floor = (nll(model, teacher) for model in (start, adapted, teacher))
    assert floor < first and last < first - 0.35 * (first - floor)  # the adapter has four units


@pytest.mark.parametrize("call", [2, 20])
@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(
    whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    count = 0
    accumulate = loop._accumulate

    def counting(*arguments):
        nonlocal count
        count += 1
        if count == call:
            signal.raise_signal(signal.SIGTERM)
        return accumulate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_accumulate", counting)
        _, _, state, stage = make_run(tmp_path)
        with pytest.raises(Interrupted):
            run_stages([stage], state, progress=False)
    _, adapted, state, stage = make_run(tmp_path)
    assert state.resume()
    run_stages([stage], state, progress=False)
    for name, value in whole[2].state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name


def test_given_tokens_noise_and_dropped_labels(tmp_path: Path):
    teacher = parity.make_teacher()
    adapted, _ = adapt(teacher, smooth=4)
    config = AdaptationConfig(steps=2, batch=8, label_dropout=1.0, embedding_noise=0.5)
    seen = []
    logits = adapted.logits
    adapted.logits = lambda x, y: (seen.append((x, y)), logits(x, y))[1]
    stage = AdaptationStage(adapted, LiveSamples(TeacherScore(teacher)), config)
    losses = stage.step(0, torch.Generator().manual_seed(0))
    assert losses["nll"].isfinite()
    x, y = seen[0]
    assert (y == adapted.num_classes).all()
    distance = torch.cdist(x.detach(), adapted.codebook).amin(-1)
    assert 0.3 < float(distance.mean()) < 2


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_divergence_from_the_teacher(noise: float):
    """Of what it reads, by its definition in float64; nothing where the copy is exact."""
    teacher = parity.make_teacher()
    adapted, _ = adapt(teacher, smooth=4)
    config = AdaptationConfig(steps=2, batch=8, embedding_noise=noise, target="teacher")
    read, given = [], []
    own, logits = adapted.logits, teacher.logits
    adapted.logits = lambda x, y: (read.append((x, y)), own(x, y))[1]
    samples = LiveSamples(TeacherScore(teacher, cfg=3.0))
    stage = AdaptationStage(adapted, samples, config, source=teacher)
    teacher.logits = lambda x, y: (given.append((x, y)), logits(x, y))[1]
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    losses = stage.step(0, torch.Generator().manual_seed(0))
    assert set(losses) == {"kl", "teacher_norm"}
    x, labels = read[0]
    tokens, same = given[-1]
    assert torch.equal(labels, same) and (labels == adapted.num_classes).any()
    adapted.load_state_dict(before)
    with torch.no_grad():
        p = logits(tokens, labels).double().log_softmax(-1)
        q = own(x, labels).double().log_softmax(-1)
    wanted = float((p.exp() * (p - q)).sum(-1).mean())
    assert float(losses["kl"]) == pytest.approx(wanted, abs=1e-6)
    assert wanted > 1e-3 if noise else abs(wanted) < 1e-9


@torch.no_grad()
def divergence(model: LlamaGenTeacher, teacher: LlamaGenTeacher) -> float:
    """KL(teacher | model) a token, of codes that a uniform law draws."""
    labels = torch.arange(64) % teacher.num_classes
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(len(teacher.codebook), (64, teacher.num_tokens), generator=generator)
    p, q = (m.logits(tokens, labels).double().log_softmax(-1) for m in (teacher, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_guided_samples_teach_guidance_unless_the_teacher_is_the_target():
    teacher = parity.make_teacher().requires_grad_(False)
    samples = LiveSamples(TeacherScore(teacher, cfg=6.0))
    left = {}
    for target in ("sample", "teacher"):
        adapted, _ = adapt(teacher, smooth=4)
        config = AdaptationConfig(steps=8, batch=16, rate=1e-3, warmup=2, target=target)
        stage = AdaptationStage(adapted, samples, config, source=teacher)
        rng = torch.Generator().manual_seed(0)
        for index in range(stage.steps):
            stage.step(index, rng)
        left[target] = divergence(adapted, teacher)
    assert left["teacher"] < 0.01 and left["sample"] > 10 * left["teacher"]


def test_bad_arguments():
    teacher = parity.make_teacher()
    with pytest.raises(ValueError, match="teacher: expected one of .*adapt, got one with a token"):
        AdaptationStage(teacher, LiveSamples(TeacherScore(teacher)), CONFIG)
    adapted, config = adapt(teacher, smooth=4)[0], AdaptationConfig(target="teacher")
    with pytest.raises(ValueError, match="source: expected the teacher before adaptation"):
        AdaptationStage(adapted, LiveSamples(TeacherScore(teacher)), config)
    with pytest.raises(ValueError, match="target: expected one of sample, teacher, got 'codes'"):
        AdaptationConfig(target="codes")
    with pytest.raises(ValueError, match="batch: expected a positive number, got 0"):
        AdaptationConfig(batch=0)
