"""From images to a logit student, in both families: the whole recipe, stopped and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from forks import run_together
from training.test_image_llamagen import LLAMAGEN
from training.test_image_recipe import (
    SHORT,
    check_two_processes,
    run_with_a_stop,
    trained,
    weights,
    written,
)

import dd2_fast
from dd2_fast import Sampler, checkpoints
from dd2_fast.cli import main
from dd2_fast.losses import TeacherScore, flow_pairs
from dd2_fast.models import LogitStudent
from dd2_fast.sampling.noise import image_noise
from dd2_fast.training.config import LogitsConfig
from dd2_fast.training.recipes import images
from dd2_fast.training.recipes.images import ImagesConfig
from dd2_fast.training.settings import configure
from dd2_fast.training.stages import LogitStage

LOGITS = {
    "method": "logits",
    "dd1": {"steps": 0},
    "pairs": {"count": 20, "batch": 8},
    "logits": {"pair_steps": 2, "steps": 3, "batch": 8, "flow_steps": 4},
    "evaluation": {"samples": 24, "teacher_steps": (2,), "jacobi": (1, 2)},
}


def config(path: Path, family: str = "var", **changes) -> ImagesConfig:
    base = configure(ImagesConfig(), {**SHORT, "source": {"data": str(path)}})
    base = configure(base, LLAMAGEN if family == "llamagen" else {})
    return configure(configure(base, LOGITS), changes)


@pytest.fixture(scope="module", params=["var", "llamagen"])
def whole(request, tmp_path_factory) -> tuple[Path, Path, str]:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    return (*trained(folder, lambda path: config(path, family)), family)


def test_writes_a_student_and_its_report(whole: tuple[Path, Path, str]) -> None:
    out = whole[1]
    report = json.loads((out / "run.json").read_text())
    assert set(report["losses"]) == {
        *("tokenizer", "classifier", "teacher", "pairs", "logits_start", "logits")
    }
    rows = report["evaluation"]["rows"]
    assert {key for key in rows if key.startswith(("one", "dd1", "stage1"))} == {
        *("one_step", "one_step_2", "one_step_jacobi_1", "one_step_jacobi_2")
    }
    assert {path.stem for path in (out / "pictures").glob("*.png")} == set(rows)
    assert {path.stem for path in out.glob("*.safetensors")} == {
        *("tokenizer", "classifier", "teacher", "generator")
    }
    bundle = checkpoints.load_bundle(out)
    assert isinstance(bundle.generator, LogitStudent) and bundle.generator.flow_steps == 4
    assert dd2_fast.sample(out, [0, 1, 2], seed=4).shape == (3, 3, 8, 8)
    # As many passes as the teacher has steps are DD1's map of the same noise.
    teacher, labels = bundle.teacher, torch.arange(3)
    exact = Sampler(out, jacobi=len(teacher.steps))(labels, seed=4, output="tokens")
    noise = image_noise(4, torch.arange(3), (teacher.num_tokens, teacher.codebook.shape[1]))
    assert torch.equal(exact, flow_pairs(noise, labels, TeacherScore(teacher), 4))


def test_starts_from_the_trained_teacher(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    """At learning rates of 0 the student reads noise as the teacher reads codes."""
    data, _, family = whole
    still = {"pair_rate": 0.0, "rate": 0.0}
    settings = config(data, family, logits=still, evaluation={"samples": 0})
    bundle = checkpoints.load_bundle(images.run(settings, tmp_path / "run", progress=False))
    teacher, labels = bundle.teacher, torch.tensor([0, 2, 1])
    tokens = torch.randint(len(teacher.codebook), (3, teacher.num_tokens))
    found = bundle.generator(teacher.codebook[tokens], labels, logits=True)
    torch.testing.assert_close(found, teacher.logits(tokens, labels), atol=1e-4, rtol=1e-3)
    moved = checkpoints.load_bundle(whole[1]).generator
    assert not torch.equal(moved.head.weight, bundle.generator.head.weight)


def test_over_a_teacher_that_is_there(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Of no steps it is taken as it is, frozen, with its tokenizer."""
    data, out, family = whole
    files = {name: str(out / f"{name}.safetensors") for name in ("teacher", "tokenizer")}
    changes = {"teacher": {"steps": 0}, "evaluation": {"samples": 0}, "pairs": {"count": 0}}
    settings = config(data, family, source=files, **changes)
    again = images.run(settings, tmp_path / "run", progress=False)
    left, right = weights(again), weights(out)
    kept = [name for name in left if name.startswith(("teacher.", "tokenizer."))]
    assert kept and all(torch.equal(left[name], right[name]) for name in kept)
    assert set(json.loads((again / "run.json").read_text())["losses"]) == {
        *("classifier", "logits_start", "logits")
    }


@pytest.mark.parametrize("step", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_weights(
    whole: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Stopped in the stage of pairs, or in the one after it."""
    data, expected, family = whole
    settings = config(data, family, evaluation={"samples": 0})
    run_with_a_stop(settings, tmp_path / "run", monkeypatch, LogitStage, step)
    left, right = weights(tmp_path / "run"), weights(expected)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def run_here(data: Path) -> None:
    images.run(config(data), Path("run"), progress=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    data, expected, family = whole
    if family != "var":
        pytest.skip("the same code")
    run_together(run_here, data, folder=tmp_path)
    names = ("teacher.word_embed.weight", "generator.head.weight")
    check_two_processes(tmp_path / "run", expected, names)


@pytest.mark.parametrize("name", ["images_var", "images_llamagen", "fashion", "fashion_llamagen"])
def test_every_configuration_of_images_has_settings_of_a_student(name: str, capsys) -> None:
    """Of its own size, whichever method it has by itself."""
    assert main(["train", name, "--list", "--set", "method=logits"]) == 0
    lines = set(capsys.readouterr().out.splitlines())
    assert "method=logits" in lines
    usual = LogitsConfig()
    assert not {f"logits.batch={usual.batch}", f"logits.steps={usual.steps}"} & lines


@pytest.mark.parametrize("name", ["images_llamagen", "fashion_llamagen"])
def test_a_start_fits_the_method_that_is_set(name: str, capsys) -> None:
    """Not the one that the file has."""
    argv = ["train", name, "--list", "--from", "run:stage1"]
    assert main([*argv, "--set", "method=dd2"]) == 0
    assert "start=run:stage1" in capsys.readouterr().out.splitlines()
    assert main(argv) == 2
    assert f"{name}: start: expected nothing for method logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dd1"}, "method: expected one of dd2, logits, got 'dd1'"),
        ({"start": "run:stage1"}, "start: expected nothing for method logits, got 'run:stage1'"),
        ({"dd1": {"steps": 4}}, "dd1.steps: expected 0 for method logits, got 4"),
        ({"logits": {"pairs": 9}}, "logits.pairs: expected 0 in this recipe, got 9; give pairs."),
        ({"evaluation": {"jacobi": (0,)}}, "jacobi: expected numbers of at least 1, got (0,)"),
    ],
)
def test_bad_settings(tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(written(tmp_path), **changes)
