"""`dd2-fast tune`: the study and its processes, the space, what is written, and real trials."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forked, run_forked
from optional import require
from PIL import Image
from training.test_distil import config as tiny
from training.test_image_recipe import config as image_recipe
from training.test_image_recipe import written

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.cli.train import configuration
from dd2_fast.ops.philox import image_normal
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.recipes import distil, images, running
from dd2_fast.training.recipes.digits import DigitsConfig
from dd2_fast.training.recipes.distil import DistilConfig
from dd2_fast.training.recipes.images import ImagesConfig
from dd2_fast.training.recipes.running import Made
from dd2_fast.training.settings import configure, flatten
from dd2_fast.training.tuning.judge import FEATURES, Judge, classifier_beside
from dd2_fast.training.tuning.report import finish, toml_of
from dd2_fast.training.tuning.space import (
    Searched,
    default_space,
    late_stages,
    own_values,
    parse_search,
    replaced,
    trial_config,
)
from dd2_fast.training.tuning.study import JOURNAL, Study
from dd2_fast.training.tuning.trial import BASE, FORK, parts_between
from dd2_fast.training.tuning.tuner import PARTS, Report, Task, tune

DD2 = configure(DistilConfig(), {"source": {"teacher": "digits"}})
LOGITS = configure(DD2, {"method": "logits"})
DD1 = configure(DD2, {"method": "dd1", "regression": {"steps": 1000}})
RATES = {
    "distill.generator_rate": Searched(1e-4, 1e-2, log=True),
    "distill.batch": Searched(choices=(32, 64, 128)),
}


def task(space: Any = None, config: Any = DD2) -> Task:
    return Task("distil", config, space or RATES, FEATURES, {"samples": 100})


def distance(config: Any) -> float:
    """Smallest at a rate of 2e-3; the batch hardly counts."""
    rate, batch = config.distill.generator_rate, config.distill.batch
    return abs(math.log(rate / 2e-3)) + 1e-4 * batch


def evaluate(config: Any, number: int, report: Report) -> Mapping[str, float]:
    for part in range(len(PARTS)):
        report(part, {FEATURES: distance(config) * (2 - PARTS[part])})
    return {FEATURES: distance(config)}


def quietly(text: str) -> None:
    """Nobody reads it."""


def work(out: Path, trials: int, with_: Any = evaluate, of: Task | None = None) -> Study:
    require("optuna")
    return tune(of or task(), out, with_, trials=trials, say=quietly)


def told(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "trials.json").read_text())
    for trial in found["trials"]:
        del trial["cpu_seconds"]
    return found


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """And ends as one that was made at once: its randomness is a function of the trials."""
    work(tmp_path / "parts", 3)
    early = told(tmp_path / "parts")["trials"]
    assert [t["number"] for t in early] == [0, 1, 2] and early[0]["own"]
    assert early[0]["settings"]["distill.generator_rate"] == DD2.distill.generator_rate
    work(tmp_path / "parts", 3)
    assert told(tmp_path / "parts")["trials"] == early
    work(tmp_path / "parts", 12)
    work(tmp_path / "whole", 12)
    parts, whole = told(tmp_path / "parts"), told(tmp_path / "whole")
    assert parts == whole and len(whole["trials"]) == 12
    values = [t["value"] for t in whole["trials"] if t["value"] is not None]
    assert whole["trials"][whole["best"]]["value"] == min(values) < values[0] / 3


def test_trials_that_are_worse_on_their_way_are_given_up(tmp_path: Path) -> None:
    work(tmp_path, 12)
    trials = told(tmp_path)["trials"]
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert 3 <= len(pruned) <= 9 and trials[0] not in pruned
    assert all(t["value"] is None and "of the last stage" in t["ended"] for t in pruned)
    # Halving: at the first report a trial goes on while it is among the better half so far.
    firsts: list[float] = []
    for trial in trials:
        first = trial["reports"]["1"]
        firsts.append(first)
        stays = sorted(firsts).index(first) < max(len(firsts) // 2, 1)
        assert (list(trial["reports"]) == ["1"]) == (not stays and not trial["own"])


def test_one_that_diverges_is_given_up(tmp_path: Path) -> None:
    def diverges(config: Any, number: int, report: Report) -> Mapping[str, float]:
        if number == 1:
            raise FloatingPointError("stage distill, step 3: expected a finite 'csd', got nan")
        return evaluate(config, number, report)

    work(tmp_path, 3, diverges)
    trials = told(tmp_path)["trials"]
    assert [t["number"] for t in trials] == [0, 1, 2]
    assert trials[1]["state"] == "pruned" and "expected a finite 'csd'" in trials[1]["ended"]


def test_an_interruption_loses_the_running_trial_alone(tmp_path: Path) -> None:
    seen: list[Any] = []

    def stopped(config: Any, number: int, report: Report) -> Mapping[str, float]:
        seen.append(config.distill)
        if number in (0, 2):
            raise KeyboardInterrupt
        return evaluate(config, number, report)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path, 4, stopped)
    work(tmp_path, 4, stopped)
    trials = told(tmp_path)["trials"]
    assert [t["number"] for t in trials] == [1, 3, 4, 5] and trials[0]["own"]
    assert seen[1] == seen[0] == DD2.distill and seen[3] == seen[2]  # tried again


def test_an_error_is_not_hidden_and_not_repeated(tmp_path: Path) -> None:
    def fails(config: Any, number: int, report: Report) -> Mapping[str, float]:
        if number == 0:
            raise ValueError("source.teacher: no such file")
        return evaluate(config, number, report)

    with pytest.raises(ValueError, match="no such file"):
        work(tmp_path, 2, fails)
    work(tmp_path, 2, fails)
    assert [t["number"] for t in told(tmp_path)["trials"]] == [1, 2]


def test_minutes_are_of_a_process(tmp_path: Path) -> None:
    require("optuna")
    for minutes, most in ((1e-9, 0), (0.002, 40)):
        tune(task(), tmp_path, evaluate, trials=10_000, minutes=minutes, say=quietly)
        path = tmp_path / "trials.json"
        assert 0 < len(told(tmp_path)["trials"]) <= most if most else not path.exists()


def slowly(config: Any, number: int, report: Report) -> Mapping[str, float]:
    """Some time, in which another process begins a trial."""
    time.sleep(0.1)
    return evaluate(config, number, report)


def one_of_two(out: str, trials: int) -> None:
    study = work(Path(out), trials, slowly)
    print(json.dumps(len(study.trials)))


def killed_in_a_trial(out: str) -> None:
    def dies(config: Any, number: int, report: Report) -> Mapping[str, float]:
        if number == 2:
            (Path(out) / "trial-0002").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(config, number, report)

    work(Path(out), 4, dies)


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Together they make as many trials as are wanted, each once, and of different values."""
    folder = tmp_path / "place"
    folder.mkdir()
    both = [
        Forked(one_of_two, str(tmp_path / "study"), 9, folder=folder, log=f"log{i}")
        for i in range(2)
    ]
    assert [process.end().code for process in both] == [0, 0], both[0].output() + both[1].output()
    found = told(tmp_path / "study")
    assert [t["number"] for t in found["trials"]] == list(range(9))
    rates = {t["settings"]["distill.generator_rate"] for t in found["trials"]}
    assert len(rates) == 9
    assert not list((tmp_path / "study").glob(".*lock"))


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_made_again(tmp_path: Path) -> None:
    require("optuna")
    folder = tmp_path / "place"
    folder.mkdir()
    out = tmp_path / "study"
    assert run_forked(killed_in_a_trial, str(out), folder=folder).code == -signal.SIGKILL
    with open(out / JOURNAL, "ab") as file:
        file.write(b'{"op_code": 5, "wor')  # half a line, as a kill leaves it
    study = work(out, 4)
    assert [t["number"] for t in told(out)["trials"]] == [0, 1, 3, 4]
    assert study.trials[3].params == study.trials[2].params
    assert not (out / "trial-0002").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (task({**RATES, "distill.batch": Searched(choices=(32, 64))}), r"search.distill.batch"),
        (task({"distill.batch": RATES["distill.batch"]}), "search.distill.generator_rate .there "),
        (task(config=replaced(DD2, {"distill.steps": 7})), r"distill.steps .there 1800, now 7."),
        (Task("distil", DD2, RATES, "fd_pixel", {"samples": 100}), "objective .there 'fd'"),
        (Task("distil", DD2, RATES, FEATURES, {"samples": 200}), "judged.samples .there 100"),
    ],
)
def test_another_study_is_refused(tmp_path: Path, other: Task, message: str) -> None:
    work(tmp_path, 1)
    with pytest.raises(ValueError, match=f"the study there; different: .*{message}"):
        work(tmp_path, 2, of=other)
    free = replaced(DD2, {"watch.images": 9, "device": "cpu"})  # they change no result
    assert len(work(tmp_path, 2, of=task(config=free)).trials) == 2


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    work(tmp_path, 1)
    text = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text("{" + text)
    with pytest.raises(ValueError, match=f"{JOURNAL}: expected the journal of a study"):
        work(tmp_path, 2)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (DD2, "generator_rate guidance_rate batch weight_power guidance_updates"),
        (DigitsConfig(), "generator_rate guidance_rate batch weight_power guidance_updates "
         "auxiliary"),
        (ImagesConfig(), "generator_rate guidance_rate batch weight_power guidance_updates"),
        (LOGITS, "pair_rate rate batch ema_decay temperature"),
        (DD1, "rate batch ema_decay"),
    ],
    ids=["dd2", "digits", "images", "logits", "dd1"],
)  # fmt: skip
def test_every_default_trial_has_the_same_budget(config: Any, names: str) -> None:
    """Images of each stage, and of CSD those of all K + 1 networks' updates."""
    space = default_space(config)
    assert [name.partition(".")[2] for name in space] == names.split()
    own = own_values(space, config)
    assert own is not None and trial_config(config, own) == config
    rng = np.random.default_rng(0)

    def budget(of: Any) -> dict[str, float]:
        csd, logits, dd1 = of.distill, getattr(of, "logits", None), of.regression
        found = {
            "guidance": csd.guidance_start * csd.batch,
            "csd": csd.steps * csd.batch * (1 + csd.guidance_updates),
            "regression": dd1.steps * dd1.batch,
        }
        if logits is not None:
            found |= {"pairs": logits.pair_steps * logits.batch, "own": logits.steps * logits.batch}
        return found

    for _ in range(40):
        values = {
            name: one.choices[rng.integers(len(one.choices))]
            if one.choices
            else float(one.low + (one.high - one.low) * rng.random())
            for name, one in space.items()
        }
        found = trial_config(config, values)
        assert {name: flatten(found)[name] for name in values} == values
        assert budget(found) == pytest.approx(budget(config), rel=0.02)


def test_steps_that_are_searched_are_not_traded() -> None:
    found = trial_config(DD2, {"distill.batch": 32, "distill.steps": 100})
    assert (found.distill.steps, found.distill.guidance_start) == (100, 200)


def test_where_trials_begin_to_differ() -> None:
    def first(*names: str, config: Any = DD2) -> str:
        space = parse_search([f"{name}=1,2" for name in names], config)
        return (late_stages(space, config) or ("",))[0]

    assert first("distill.batch", "distill.steps") == "guidance"
    assert first("distill.batch", "regression.batch") == "regression"
    assert first("distill.batch", "stage1.draws") == "stage1"
    assert first("logits.rate", config=LOGITS) == "logits"
    assert first("logits.rate", "logits.batch", config=LOGITS) == "logits_start"
    # What changes the pairs, the networks or the first stage changes all.
    for name in ("logits.pairs", "network.head_depth", "samples.top_k", "ode_steps"):
        assert first(name, "distill.batch", config=LOGITS) == ""
    assert first("tokenizer.batch", "distill.batch", config=DigitsConfig()) == ""


def test_searches_of_ones_own() -> None:
    texts = ["distill.generator_rate=1e-4:1e-2:log", "distill.steps=10:20"]
    texts += ["distill.objective=sid,dmd", "score.cfg=none,1.5", "distill.auxiliary=0:1"]
    assert parse_search(texts, DD2) == {
        "distill.generator_rate": Searched(1e-4, 1e-2, True),
        "distill.steps": Searched(10, 20),
        "distill.objective": Searched(choices=("sid", "dmd")),
        "score.cfg": Searched(choices=(None, 1.5)),
        "distill.auxiliary": Searched(0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill.rate=1:2", "expected one of the fields .*distill.steps.*; got 'distill.rate'"),
        ("seed=1,2", "expected one of the fields .*; got 'seed'"),
        ("distill.batch", "expected FIELD=LOW:HIGH, .*, got 'distill.batch'"),
        ("distill.batch=8:4", "--search distill.batch: expected LOW below HIGH, got '8:4'"),
        ("distill.batch=1.5:4", "--search distill.batch: expected an integer, got '1.5'"),
        ("distill.batch=0:4", "--search distill.batch: .*expected a positive number, got 0"),
        ("distill.auxiliary=0:1:log", "auxiliary: expected LOW above 0 for log, got '0:1:log'"),
        ("distill.auxiliary=0:1:lin", "expected LOW:HIGH or LOW:HIGH:log, got '0:1:lin'"),
        ("distill.auxiliary=0", "expected at least two different values, got '0'"),
        ("distill.auxiliary=-1,1", "--search distill.auxiliary: .*zero or more, got -1"),
        ("distill.objective=sid:dmd", "values separated by commas for a field that is no number"),
        ("distill.objective=sid,kl", "distill.objective: .*expected one of .*got 'kl'"),
        ("distill.betas=0.1,0.2", "distill.betas: expected a field of one value"),
    ],
)
def test_searches_that_do_not_fit_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_search([text], DD2)
    with pytest.raises(ValueError, match="each field once, got distill.steps twice"):
        parse_search(["distill.steps=1:2", "distill.steps=1,2"], DD2)


def read(path: Path) -> Any:
    """What ``dd2-fast train`` makes of a file."""
    from dd2_fast.cli.main import build_parser

    return configuration(build_parser().parse_args(["train", str(path)]))[1]


def test_the_best_configuration_is_one_of_train(tmp_path: Path, capsys: Any) -> None:
    config = replaced(DD2, {"score.cfg": 1.5, "distill.betas": (0.5, 0.9), "start": "a b:stage1"})
    study = work(tmp_path, 6, of=task(config=config))
    best = study.best()
    wanted = trial_config(config, dict(best.params))
    assert wanted != config and read(tmp_path / "best.toml") == wanted
    assert main(["train", str(tmp_path / "best.toml"), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"distill.generator_rate={best.params['distill.generator_rate']}" in lines


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        ("digits", replaced(DigitsConfig(), {"distill.batch": 32, "pairs.count": 100})),
        ("images", configure(ImagesConfig(), {"source": {"data": 'a "b"'}, "family": "llamagen"})),
        ("distil", replaced(tiny("llamagen"), {"method": "logits", "logits.rate": 1.25e-05})),
    ],
    ids=["digits", "images", "distil"],
)  # fmt: skip
def test_configurations_survive_toml(tmp_path: Path, recipe: str, config: Any) -> None:
    (tmp_path / "a.toml").write_text(toml_of(recipe, config))
    assert read(tmp_path / "a.toml") == config


def test_the_picture_shows_what_mattered(tmp_path: Path) -> None:
    """fANOVA's shares of a distance that depends on the rate alone."""
    require("matplotlib")
    require("sklearn")
    study = work(tmp_path, 3)
    assert not finish(tmp_path, task(), study)  # too few
    study = work(tmp_path, 16)
    assert finish(tmp_path, task(), study)
    shares = told(tmp_path)["importances"]
    assert shares.keys() == {"final", "early"}
    for share in shares.values():
        assert share["distill.generator_rate"] > 0.7 > 0.3 > share["distill.batch"]
    pixels = np.asarray(Image.open(tmp_path / "importances.png").convert("L"))
    assert pixels.shape[0] > 250 and 0.5 < (pixels == 255).mean() < 0.99


def test_parts_of_a_stage() -> None:
    assert [list(parts_between(i, i + 1, 8)) for i in range(8)] == [
        [],
        [0],
        [],
        [1],
        [],
        [],
        [],
        [2],
    ]
    assert list(parts_between(0, 1, 1)) == [0, 1, 2] and list(parts_between(1, 7, 8)) == [0, 1]


def test_without_optuna(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "tiny_digits", "--out", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'dd2-fast[tune]'" in error and error.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["toy"], "CONFIG: expected a recipe that makes images, got toy"),
        (["tiny_digits", "--minutes", "0"], "--minutes: expected a positive number, got '0'"),
        (["tiny_digits", "--trials", "0"], "--trials: expected an integer in 1.."),
        (["tiny_digits", "--search", "distill.batch=x,y"], "--search distill.batch: expected an"),
        (["images_var", "--set", "last=teacher"], "CONFIG: expected one that makes a generator"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, capsys: Any, argv: Any, message: str) -> None:
    require("optuna")
    assert main(["tune", *argv, "--out", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_distances_of_the_judge() -> None:
    """By NumPy in float64, of images that were made one class at a time."""
    require("scipy")
    from scipy.linalg import sqrtm

    bundle = checkpoints.load_bundle(bundled_path("digits"))
    found = classifier_beside("digits")
    judge = Judge(200, {"cfg": None}, found)
    made = Made({}, lambda done: [], dict, bundle.generator, teacher=bundle.teacher)
    told = judge(made)
    assert judge(made) == told and judge.floor(made)["fd"] > 0
    index = torch.arange(200)
    labels = index % 10
    with torch.no_grad():
        noise = image_normal(0, index, (16, 8), stream=7)
        tokens = bundle.teacher.sample(labels, cfg=None, seed=21)
        pairs = []
        for make in (
            lambda c: bundle.generator(noise[c], labels[c]),
            lambda c: bundle.tokenizer.embed(tokens[c]),
        ):
            images = [bundle.tokenizer.decode(make(labels == c)) for c in range(10)]
            pairs.append(bundle.classifier.eval().features(torch.cat(images)).double().numpy())
    means = [f.mean(0) for f in pairs]
    spreads = [np.cov(f.T) for f in pairs]
    root = sqrtm(spreads[0] @ spreads[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert told["fd"] == pytest.approx(expected, rel=1e-4)
    assert classifier_beside("random-var") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"stage1.head_steps": 2, "stage1.steps": 6, "distill.guidance_start": 2,
         "distill.steps": 8, "distill.warmup": 2},
        {"method": "logits", "logits.pairs": 200, "logits.pair_steps": 4, "logits.steps": 8},
    ],
    ids=["dd2", "logits"],
)  # fmt: skip
def test_trials_end_as_a_training_by_the_best_configuration(
    tmp_path: Path, capsys: Any, settings: dict[str, Any]
) -> None:
    """Which trains what came before from the start: the distance is the same number."""
    require("optuna")
    argv = ["tiny_digits", "--quiet", "--set", "watch.tensorboard=false"]
    argv += [part for n, v in settings.items() for part in ("--set", f"{n}={v}")]
    out = tmp_path / "study"
    study = ["tune", *argv, "--samples", "200", "--out", str(out)]
    assert main([*study, "--trials", "1"]) == 0
    kept = (out / BASE / FORK).stat().st_mtime_ns
    assert main([*study, "--trials", "2"]) == 0
    text = capsys.readouterr().out
    assert "trial 0: " in text and "(own values)" in text and "trial 1: " in text
    assert (out / BASE / FORK).stat().st_mtime_ns == kept
    found = told(out)
    assert found["objective"] == "fd" and found["teacher"]["fd"] > 0
    assert not list(out.glob("trial-*")) and not list(out.glob(".*lock"))
    run = tmp_path / "run"
    assert main(["train", str(out / "best.toml"), "--out", str(run), "--quiet"]) == 0
    generator = checkpoints.load(run / "generator.safetensors")
    bundle = checkpoints.load_bundle(bundled_path("digits"))
    generator.tokenizer = bundle.tokenizer
    made = Made({}, lambda done: [], dict, generator, teacher=bundle.teacher)
    judge = Judge(200, {"cfg": None, "top_k": 0, "top_p": 1.0}, classifier_beside("digits"))
    best = next(t for t in found["trials"] if t["number"] == found["best"])
    assert judge(made)["fd"] == pytest.approx(best["value"], rel=1e-6)


@pytest.mark.slow
def test_without_a_classifier_pixels_are_compared(tmp_path: Path, capsys: Any) -> None:
    """A LlamaGen of random weights, whose teacher stage 0 trains for all trials at once."""
    require("optuna")
    (tmp_path / "tiny.toml").write_text(toml_of("distil", tiny("llamagen")))
    argv = ["tune", str(tmp_path / "tiny.toml"), "--samples", "100", "--trials", "2", "--quiet"]
    argv += ["--search", "distill.generator_rate=1e-4:1e-3:log", "--out", str(tmp_path / "study")]
    assert main(argv) == 0
    assert "images are compared in pixels" in capsys.readouterr().out
    found = told(tmp_path / "study")
    assert found["objective"] == "fd_pixel" and found["trials"][0]["distances"].keys() == {
        "fd_pixel"
    }
    assert distil.run(read(tmp_path / "study" / "best.toml"), tmp_path / "run", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("start", [False, True], ids=["whole", "from"])
def test_trials_over_images_share_what_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bool
) -> None:
    """Each takes no step of a stage before the first that differs, and the classifier is theirs."""
    require("optuna")
    config = image_recipe(written(tmp_path), watch={"images_every": 0})
    more: list[str] = []
    if start:
        run = images.run(config, tmp_path / "run", progress=False)
        more = ["--from", f"{run}:stage1"]
    (tmp_path / "tiny.toml").write_text(toml_of("images", config))
    ran: list[list[str]] = []
    real = running.run_stages

    def counted(stages: Any, state: Any, **settings: Any) -> None:
        ran.append([stage.name for stage in stages if stage.name not in state.done])
        real(stages, state, **settings)

    monkeypatch.setattr(running, "run_stages", counted)
    out = tmp_path / "study"
    argv = ["tune", str(tmp_path / "tiny.toml"), "--samples", "100", "--trials", "2", "--quiet"]
    argv += ["--search", "distill.generator_rate=1e-4,1e-3,1e-5", "--out", str(out), *more]
    assert main(argv) == 0
    late = ["guidance", "distill"]
    before = [] if start else ["tokenizer", "classifier", "teacher", "stage1"]
    assert ran == [[*before, "dd1"], late, late]
    assert told(out)["objective"] == "fd"
    assert read(out / "best.toml").start == (more[1] if start else "")
