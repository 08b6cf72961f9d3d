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
from dd2_fast.training.adaptation import AdaptationStage, TeacherSamplesStage, TokenPool
from dd2_fast.training.config import AdaptationConfig
from dd2_fast.training.loop import Interrupted, run_stages
from dd2_fast.training.state import RunState

CONFIG = AdaptationConfig(steps=60, batch=16, rate=2e-3, warmup=5, label_dropout=0.1)


def make_run(folder: Path, config: AdaptationConfig = CONFIG):
    """A teacher, its coarsely adapted copy, and the stages that fine-tune the copy."""
    teacher = parity.make_teacher().requires_grad_(False)
    adapted, _ = adapt(teacher, smooth=4, exact=False)
    pool = TokenPool(96, teacher.num_tokens)
    state = RunState(folder, {"adapted": adapted, "pool": pool}, {}, seed=3)
    stages = [
        TeacherSamplesStage(pool, TeacherScore(teacher), batch=40),
        AdaptationStage(adapted, pool, config),
    ]
    assert stages[0].steps == 3
    return teacher, adapted, pool, state, stages


@torch.no_grad()
def nll(model: LlamaGenTeacher, pool: TokenPool) -> float:
    logits = model.logits(pool.tokens.long(), pool.labels)
    return float(F.cross_entropy(logits.flatten(0, 1), pool.tokens.long().flatten()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    teacher, adapted, pool, state, stages = make_run(tmp_path_factory.mktemp("whole"))
    before = [parameter.clone() for parameter in teacher.parameters()]
    start = adapt(teacher, smooth=4, exact=False)[0]
    run_stages(stages, state, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))
    return teacher, start, adapted, pool


def test_the_loss_falls_to_the_teachers(whole):
    teacher, start, adapted, pool = whole
    first, last, floor = (nll(model, pool) for model in (start, adapted, teacher))
    assert floor < first and last < first - 0.5 * (first - floor)


def test_the_pool_holds_samples_of_the_teacher(whole):
    teacher, _, _, pool = whole
    assert len({tuple(row.tolist()) for row in pool.tokens}) == 96
    assert int(pool.labels.min()) >= 0 and int(pool.labels.max()) < teacher.num_classes
    other = TokenPool.of(torch.randint(64, (96, 16)), pool.labels)
    assert nll(teacher, pool) < nll(teacher, other) - 0.1


@pytest.mark.parametrize("call", [2, 20])
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
        _, _, _, state, stages = make_run(tmp_path)
        with pytest.raises(Interrupted):
            run_stages(stages, state, progress=False)
    _, adapted, pool, state, stages = make_run(tmp_path)
    assert state.resume()
    run_stages(stages, state, progress=False)
    assert torch.equal(pool.tokens, whole[3].tokens)
    for name, value in whole[2].state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name


def test_given_tokens_noise_and_dropped_labels(tmp_path: Path):
    tokens, labels = torch.randint(64, (32, 16)), torch.randint(10, (32,))
    adapted, _ = adapt(parity.make_teacher(), smooth=4)
    config = AdaptationConfig(steps=2, batch=8, label_dropout=1.0, embedding_noise=0.5)
    seen = []
    logits = adapted.logits
    adapted.logits = lambda x, y: (seen.append((x, y)), logits(x, y))[1]
    stage = AdaptationStage(adapted, TokenPool.of(tokens, labels), config)
    losses = stage.step(0, torch.Generator().manual_seed(0))
    assert losses["nll"].isfinite()
    x, y = seen[0]
    assert (y == adapted.num_classes).all()
    distance = torch.cdist(x.detach(), adapted.codebook).amin(-1)
    assert 0.3 < float(distance.mean()) < 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="teacher: expected one of .*adapt, got one with a token"):
        AdaptationStage(parity.make_teacher(), TokenPool(1, 16), CONFIG)
    with pytest.raises(ValueError, match=r"tokens, labels: expected shapes .*\[3, 4\] and \[2\]"):
        TokenPool.of(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="batch: expected a positive number, got 0"):
        AdaptationConfig(batch=0)
