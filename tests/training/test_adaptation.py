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


def test_bad_arguments():
    teacher = parity.make_teacher()
    with pytest.raises(ValueError, match="teacher: expected one of .*adapt, got one with a token"):
        AdaptationStage(teacher, LiveSamples(TeacherScore(teacher)), CONFIG)
    with pytest.raises(ValueError, match="batch: expected a positive number, got 0"):
        AdaptationConfig(batch=0)
