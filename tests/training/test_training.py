"""The loop: resume, interruption, bad losses; stages on tables small enough to check."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forked, run_forked
from pairwise import slow_except
from training.test_distil import config as small_run

from dd2_fast import checkpoints
from dd2_fast.training import loop
from dd2_fast.training.config import (
    CsdConfig,
    PairsConfig,
    RegressionConfig,
    Stage1Config,
    TeacherConfig,
    TokenizerConfig,
)
from dd2_fast.training.loop import Interrupted, Stage, run_stages
from dd2_fast.training.recipes import digits, distil, toy
from dd2_fast.training.recipes.watching import WatchConfig
from dd2_fast.training.schedule import ramp, update_ema
from dd2_fast.training.settings import flatten
from dd2_fast.training.state import RunState
from dd2_fast.training.watch import read_log

TINY = digits.DigitsConfig(
    tokenizer=TokenizerConfig(vocabulary=8, dimension=3, width=8, continuous_steps=4, steps=8),
    teacher=TeacherConfig(width=16, layers=1, heads=2, steps=4, batch=16),
    pairs=PairsConfig(count=40, batch=16, ode_steps=2),
    stage1=Stage1Config(head_steps=2, steps=3, batch=8),
    regression=RegressionConfig(steps=3, batch=8),
    distill=CsdConfig(
        steps=5,
        guidance_start=2,
        guidance_updates=2,
        batch=8,
        warmup=2,
        align_steps=2,
        aligned_steps=2,
    ),
    classifier_epochs=1,
    evaluation_samples=500,
    watch=WatchConfig(tensorboard=False),
)
TINY_TOY = toy.ToyConfig(
    network=toy.ToyNetworkConfig(width=16, layers=1, heads=2, head_width=8, head_depth=1),
    pairs=PairsConfig(count=64, batch=32, ode_steps=2),
    stage1=Stage1Config(head_steps=2, steps=3, batch=8),
    regression=RegressionConfig(steps=2, batch=8),
    distill=CsdConfig(steps=6, guidance_start=2, guidance_updates=2, batch=8, objective="sid"),
    evaluation_samples=500,
    watch=WatchConfig(tensorboard=False),
)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, value in checkpoints.load(path).state_dict().items():
            found[f"{path.stem}.{name}"] = value
    return found


def assert_same(a: Path, b: Path) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys() and left
    assert all(torch.equal(left[name], right[name]) for name in left)
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (a, b))
    assert first["losses"] == second["losses"] and first["metrics"] == second["metrics"]


def logged(folder: Path) -> list[tuple]:
    """What a run's log says, but when and how fast."""
    return [
        (line.stage, line.step, line.values)
        for line in read_log(folder / "log.jsonl")
        if "images_per_second" not in line.values
    ]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """SIGTERM to this process at the given call of any stage's step."""
    count = 0
    report = loop._report

    def counting(*arguments):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return report(*arguments)

    monkeypatch.setattr(loop, "_report", counting)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = torch.random.get_rng_state()
    folder = digits.run(TINY, tmp_path_factory.mktemp("digits") / "whole", progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    yield folder
    torch.set_num_threads(threads)


def test_digits_writes_a_bundle_and_its_log(whole: Path):
    bundle = checkpoints.load_bundle(whole)
    assert sorted(path.name for path in whole.iterdir()) == [
        "classifier.safetensors",
        "generator.safetensors",
        "log.jsonl",
        "run.json",
        "samples",
        "stage1.safetensors",
        "teacher.safetensors",
        "tokenizer.safetensors",
    ]
    assert bundle.settings["settings"]["distill"]["align_steps"] == 2
    assert {"distill", "aligned", "stage1", "teacher"} <= bundle.settings["losses"].keys()
    assert str(whole.parent) not in (whole / "run.json").read_text()
    assert torch.equal(bundle.teacher.codebook, bundle.tokenizer.codebook)
    images = bundle.tokenizer.decode(bundle.generator(torch.zeros(2, 16, 3), torch.tensor([0, 9])))
    assert images.shape == (2, 3, 8, 8)


def test_digits_and_toy_log_like_every_run(whole: Path, tmp_path: Path):
    """A learning rate is that of a network in a step that updates it."""
    lines = read_log(whole / "log.jsonl")
    seen = {stage: set() for stage in dict.fromkeys(line.stage for line in lines)}
    for line in lines:
        seen[line.stage] |= line.values.keys()
    assert list(seen) == ["tokenizer", "teacher", "pairs", "stage1", "regression"] + [
        *("guidance", "distill", "align", "aligned")
    ]
    assert seen["stage1"] == {"gts", "grad/guidance", "lr/head", "lr/all", "images_per_second"}
    assert {"fcs", "csd", "lr/guidance", "lr/generator", "grad/generator"} <= seen["distill"]
    rates = [
        (line.step, name, value)
        for line in lines
        for name, value in line.values.items()
        if line.stage == "stage1" and name.startswith("lr/")
    ]
    assert [(step, name) for step, name, _ in rates] == [
        *((step, "lr/head") for step in (1, 2)),
        *((step, "lr/all") for step in (3, 4, 5)),
    ]
    assert all(0 < rate <= TINY.stage1.rate for *_, rate in rates)
    pictures = sorted(path.name for path in (whole / "samples").iterdir())
    assert pictures == [f"{n}.png" for n in ("aligned-0000002", "distill-0000005")] + [
        "regression-0000003.png"
    ]
    out = toy.run(TINY_TOY, tmp_path, progress=False)
    assert {line.stage for line in read_log(out / "log.jsonl")} >= {"stage1", "distill"}
    assert not (out / "samples").exists()


def test_every_step_is_logged_at_its_own_rate(tmp_path: Path):
    """Also where the losses of several steps are read together."""
    logs = []
    for every in (1, 4):
        head = {"head_steps": 3, "steps": 6, "warmup": 3}
        settings = {"execution": {"report_every": every}, "stage1": head}
        distil.run(small_run("var", **settings), tmp_path / f"{every}", progress=False)
        rates = []
        for line in read_log(tmp_path / f"{every}/log.jsonl"):
            rates += [(line.stage, line.step, n, v) for n, v in line.values.items() if "lr/" in n]
        logs.append(rates)
    assert logs[0] == logs[1] and len({rate for *_, rate in logs[0]}) > 5
    assert max(rate for *_, rate in logs[0]) < 0.1


# The calls of step: tokenizer 1-8, classifier 9, teacher 10-13, pairs 14-16, stage 1 17-21,
# regression 22-24, guidance 25-26, distill 27-31, align 32-33, aligned 34-35.
@pytest.mark.parametrize("call", slow_except([6, 11, 15, 20, 24, 29, 35], 15, 29))
def test_interrupted_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt_at(patch, call)
        with pytest.raises(Interrupted, match="stopped in"):
            digits.run(TINY, tmp_path, progress=False)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert {path.name for path in tmp_path.iterdir()} - {"samples"} == {"log.jsonl", "state.pt"}
    digits.run(TINY, tmp_path, progress=False)
    assert_same(whole, tmp_path)
    assert logged(tmp_path) == logged(whole)


def test_resume_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            digits.run(TINY, tmp_path, progress=False)
    other = dataclasses.replace(TINY, seed=1, teacher=dataclasses.replace(TINY.teacher, steps=9))
    message = r"seed \(saved 0, now 1\), teacher\.steps \(saved 4.* or --set overwrite=true"
    with pytest.raises(ValueError, match=message):
        digits.run(other, tmp_path, progress=False)
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state\.pt: expected a saved training state"):
        digits.run(TINY, tmp_path, progress=False)


def test_finished_folder_is_not_overwritten_silently(whole: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="found a finished one; .*--set overwrite=true"):
        digits.run(TINY, whole, progress=False)
    toy.run(TINY_TOY, tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="found a finished one"):
        toy.run(TINY_TOY, tmp_path, progress=False)
    toy.run(dataclasses.replace(TINY_TOY, overwrite=True), tmp_path, progress=False)


def test_interrupted_overwriting_run_resumes_and_ignores_a_foreign_state(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    again = dataclasses.replace(TINY, overwrite=True)
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(Interrupted, match="stopped in stage1 at step 4"):
            digits.run(again, tmp_path, progress=False)
    monkeypatch.setattr(digits.TokenizerStage, "step", lambda *_: pytest.fail("started anew"))
    digits.run(again, tmp_path, progress=False)
    assert_same(whole, tmp_path)


def test_unwritable_folder_fails_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(digits, "load_digits", lambda: pytest.fail("work was done"))
    with pytest.raises(OSError, match="cannot write to the folder"):
        digits.run(TINY, tmp_path / "file" / "out", progress=False)


def run_toy(folder: str, hangs: bool) -> None:
    """A toy run that saves at every step, and may stop for a minute at the second."""
    RunState.due = lambda self: True  # type: ignore[method-assign]
    step = toy.RegressionStage.step

    def slow(self: Any, index: int, rng: Any) -> Any:
        if index == 1 and hangs:
            print("here", flush=True)
            time.sleep(60)
        return step(self, index, rng)

    toy.RegressionStage.step = slow  # type: ignore[method-assign]
    toy.run(TINY_TOY, Path(folder), progress=False)


def test_killed_process_resumes_from_its_last_save(tmp_path: Path):
    """SIGKILL in the middle: what the periodic save wrote is enough to end with the same run."""
    process = Forked(run_toy, "cut", True, folder=tmp_path, log="log")
    while "here" not in process.output():
        assert process.process.is_alive(), process.output()
        time.sleep(0.1)
    process.kill()
    assert not (tmp_path / "cut" / "run.json").exists()
    for folder in ("cut", "whole"):
        ended = run_forked(run_toy, folder, False, folder=tmp_path)
        assert ended.code == 0, ended.output
    assert_same(tmp_path / "whole", tmp_path / "cut")


class Counter(Stage):
    """A stage whose loss is given by a list."""

    def __init__(self, values):
        super().__init__("counter", len(values))
        self.values = values

    def step(self, index, rng):
        return {"fine": 0.0, "bad": torch.tensor(self.values[index])}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_loss_stops_with_stage_step_and_term(tmp_path: Path, value: float):
    state = RunState(tmp_path, {}, {}, seed=0)
    with pytest.raises(FloatingPointError, match="stage counter, step 2: .*'bad'"):
        run_stages([Counter([1.0, 2.0, value, 3.0])], state, progress=False)


def test_state_is_saved_when_due(tmp_path: Path):
    state = RunState(tmp_path, {"m": torch.nn.Linear(1, 1)}, {"a": 1}, seed=0, every=0.02)

    class Slow(Counter):
        def step(self, index, rng):
            if index == 3:
                saved = torch.load(tmp_path / "state.pt", weights_only=True)
                assert saved["stage"] == "counter" and saved["step"] in (1, 2, 3)
            time.sleep(0.03)
            return super().step(index, rng)

    run_stages([Slow([0.0] * 4)], state, progress=False)
    assert state.done == ["counter"]


def test_ema_follows_its_decay():
    average, module = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    want = average.weight.detach().clone()
    for iteration in range(30):
        with torch.no_grad():
            module.weight.add_(1.0)
        rate = min(0.5, (iteration + 1) / (iteration + 10))
        want = rate * want + (1 - rate) * module.weight.detach()
        update_ema(average, module, iteration, 0.5)
    torch.testing.assert_close(average.weight.detach(), want)


def test_ramp():
    assert ramp(0, 100, warmup=10) == 0.1 and ramp(30, 100, warmup=10) == 1.0
    assert abs(ramp(75, 100, hold=0.5, floor=0.2) - 0.6) < 1e-12
    assert abs(ramp(100, 100, floor=0.05) - 0.05) < 1e-12


def test_flatten_names_every_setting():
    flat = flatten(digits.DigitsConfig())
    assert flat["distill.betas"] == list(digits.DigitsConfig().distill.betas)
    assert flat["seed"] == 0 and "teacher.width" in flat
    assert json.loads(json.dumps(flat)) == flat


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CsdConfig(objective="kl"), "objective: expected one of sid, dmd, got 'kl'"),
        (lambda: CsdConfig(batch=0), "batch: expected a positive number, got 0"),
        (lambda: CsdConfig(generator_rate=-1.0), "generator_rate: expected zero or more"),
        (lambda: CsdConfig(guidance_time_low=2.0), "low, high: expected 0 < low"),
        (lambda: TokenizerConfig(steps=5, continuous_steps=5), "continuous_steps: expected fewer"),
        (lambda: PairsConfig(count=0), "count: expected a positive number"),
        (lambda: digits.DigitsConfig(evaluation_samples=10), "evaluation_samples: expected at"),
        (lambda: toy.ToyConfig(kind="triple"), "kind: expected one of pair, random"),
    ],
)
def test_bad_settings_are_refused_before_any_work(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_set_prediction_is_the_product_of_marginals():
    joint = torch.tensor([[0.5, 0.0], [0.1, 0.4]], dtype=torch.float64)
    want = torch.tensor([[0.3, 0.2], [0.3, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(toy.set_prediction(joint), want)
    assert abs(toy.total_variation(joint, want) - 0.4) < 1e-12


def test_digits_split_is_fixed_and_stratified():
    from dd2_fast.training.samples.digits import load_digits

    data, again = load_digits(), load_digits()
    assert data.train_images.shape == (1297, 3, 8, 8) and data.test_images.shape == (500, 3, 8, 8)
    assert torch.equal(data.test_images, again.test_images)
    assert data.train_images.dtype == torch.float32 and float(data.train_images.max()) == 1.0
    assert float(data.train_images.min()) == 0.0
    assert 48 <= int(data.test_labels.bincount().min()) <= int(data.test_labels.bincount().max())
    assert int(data.test_labels.bincount().max()) <= 52


@pytest.mark.slow
def test_two_token_teacher_is_matched_in_one_step(tmp_path: Path):
    """{(0,0),(1,1)}: total variation below 0.05 where set prediction has 0.5."""
    config = toy.ToyConfig()
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, steps=200))
    folder = toy.run(config, tmp_path, progress=False)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert abs(metrics["set_prediction"] - 0.5) < 1e-6
    assert metrics["one_step"] < 0.05
