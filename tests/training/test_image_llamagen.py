"""From images to a one-step generator of LlamaGen's family: the whole recipe, stopped and resumed,
its files in the released form, and fine-tuning from such files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from forks import run_together
from training.test_image_recipe import (
    SHORT,
    check_two_processes,
    run_with_a_stop,
    trained,
    weights,
)

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.training.loop import Interrupted
from dd2_fast.training.recipes import images
from dd2_fast.training.recipes.images import ImagesConfig
from dd2_fast.training.settings import configure, flatten
from dd2_fast.training.stages import (
    AdaptationStage,
    CsdStage,
    GroundTruthScoreStage,
    ImageTeacherStage,
    ImageTokenizerStage,
    PairsStage,
)

LLAMAGEN = {
    "family": "llamagen",
    "tokenizer": {"latents": 6},
    "pairs": {"count": 20, "batch": 8},
    "adaptation": {"steps": 3, "batch": 8, "rate": 1e-3, "embedding_noise": 0.2},
    "regression": {"steps": 2, "batch": 8},
    "evaluation": {"teacher_steps": (3,)},
}


def config(path: Path, **changes) -> ImagesConfig:
    base = configure(ImagesConfig(), {**SHORT, "source": {"data": str(path)}})
    return configure(configure(base, LLAMAGEN), changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("images"), config)


def test_writes_a_model_and_its_report(whole: tuple[Path, Path]) -> None:
    out = whole[1]
    report = json.loads((out / "run.json").read_text())
    assert set(report["losses"]) == {
        *("tokenizer", "classifier", "teacher", "adaptation", "pairs", "stage1", "dd1"),
        *("regression", "guidance", "distill"),
    }
    rows = report["evaluation"]["rows"]
    assert {"teacher", "one_step", "one_step_3", "stage1", "dd1"} <= set(rows)
    assert {path.stem for path in (out / "pictures").glob("*.png")} == set(rows)
    found = dd2_fast.sample(out, [0, 1, 2], seed=4)
    assert found.shape == (3, 3, 8, 8)
    assert not torch.equal(found, dd2_fast.sample(out, [0, 1, 2], seed=4, teacher_steps=2))
    bundle = checkpoints.load_bundle(out)
    assert not bundle.teacher.adapted and bundle.teacher.num_tokens == 4
    codes = bundle.tokenizer.codebook
    torch.testing.assert_close(codes.square().mean(-1), torch.ones(12))


def test_files_in_the_released_form(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """As the public trainers write them, a state dict under "model", they make the same images."""
    _, out = whole
    bundle = checkpoints.load_bundle(out)
    files = {name: tmp_path / f"{name}.pt" for name in ("teacher", "tokenizer")}
    for name, path in files.items():
        torch.save({"model": getattr(bundle, name).state_dict()}, path)
    tokenizer = checkpoints.load(files["tokenizer"], groups=2)
    teacher = checkpoints.load(files["teacher"], grid=2, n_head=2, dimension=3)
    teacher.tokenizer = tokenizer
    assert tokenizer.code_length == 1 and tokenizer.config["groups"] == 2
    labels = torch.arange(3)
    tokens = bundle.teacher.sample(labels, seed=1)
    assert torch.equal(teacher.sample(labels, seed=1), tokens)
    wanted = bundle.tokenizer.decode(bundle.tokenizer.embed(tokens))
    torch.testing.assert_close(tokenizer.decode(tokenizer.embed(tokens)), wanted)
    longer = str(tmp_path / "longer.safetensors")
    settings = ["--config", "groups=2", "code_length=1.5"]
    assert main(["convert", str(files["tokenizer"]), longer, *settings]) == 0
    codes = checkpoints.load(longer).codebook
    torch.testing.assert_close(codes, 1.5 * tokenizer.codebook)


def test_the_adapted_teacher_is_the_trained_one_at_first(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of no steps of stage 0, what is distilled has the logits of the trained teacher at codes."""
    changes = {"adaptation": {"steps": 0}, "evaluation": {"samples": 0}, "dd1": {"steps": 0}}
    out = images.run(config(whole[0], **changes), tmp_path / "run", progress=False)
    bundle = checkpoints.load_bundle(out)
    reader = checkpoints.load(out / "reader.safetensors", tokenizer=out / "tokenizer.safetensors")
    tokens, labels = torch.randint(12, (3, 4)), torch.tensor([0, 2, 3])
    expected = bundle.teacher.logits(tokens, labels)
    torch.testing.assert_close(reader.logits(tokens, labels), expected, atol=1e-4, rtol=1e-3)
    assert reader.adapted and bundle.generator.backbone.adapted
    moved = checkpoints.load(whole[1] / "reader.safetensors")
    name = "layers.0.attention.wqkv.weight"
    left, right = (m.get_parameter(name) for m in (reader, bundle.teacher))
    assert torch.equal(left, right) and not torch.equal(left, moved.get_parameter(name))


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        pytest.param(ImageTokenizerStage, 4, id="codes", marks=pytest.mark.slow),
        pytest.param(PairsStage, 1, id="pairs", marks=pytest.mark.slow),
        pytest.param(AdaptationStage, 2, id="adaptation"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage, step: int
) -> None:
    data, expected = whole
    settings = config(data, evaluation={"samples": 0})
    run_with_a_stop(settings, tmp_path / "run", monkeypatch, stage, step)
    left, right = weights(tmp_path / "run"), weights(expected)
    assert {name.partition(".")[0] for name in left} == {
        *("tokenizer", "classifier", "teacher", "reader"),
        *("guidance", "generator", "stage1", "dd1"),
    }
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_stage_1_of_another_run(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends as a run that makes its own, also where it is stopped and the other is gone; and can be
    started from itself."""
    data, expected = whole
    other = Path(shutil.copytree(expected, tmp_path / "other"))
    for stage in (ImageTokenizerStage, ImageTeacherStage, PairsStage, GroundTruthScoreStage):
        monkeypatch.setattr(stage, "step", lambda *_: pytest.fail("it was made again"))
    later = {"evaluation": {"samples": 0}, "logits": {"steps": 7}}  # as nothing of it is of stage 1
    settings = config(data, start=f"{other}:stage1", **later)
    own = CsdStage.step

    def stops(self, index, rng):
        if index == 1 and other.exists():
            shutil.rmtree(other)
            raise Interrupted("stopped")
        return own(self, index, rng)

    monkeypatch.setattr(CsdStage, "step", stops)
    with pytest.raises(Interrupted):
        images.run(settings, tmp_path / "run", progress=False)
    images.run(settings, tmp_path / "run", progress=False)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(report["losses"]) == {"dd1", "regression", "guidance", "distill"}
    again = config(data, start=f"{tmp_path / 'run'}:stage1", evaluation={"samples": 0})
    images.run(again, tmp_path / "again", progress=False)
    for folder in ("run", "again"):
        left, right = weights(tmp_path / folder), weights(expected)
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        (
            {"stage1": {"rate": 1e-4}, "teacher": {"layers": 2}, "seed": 3},
            "",
            r"different: stage1\.rate \(there 0\.002, now 0\.0001\), teacher\.layers \(.* now 2\)",
        ),
        ({}, "pairs", "kept its stage 1, found no pairs.safetensors"),
        ({"last": "teacher"}, "", "start: expected nothing where teacher is last"),
    ],
)
def test_stage_1_must_be_what_this_run_would_make(
    whole: tuple[Path, Path], tmp_path: Path, changes, missing: str, message: str
) -> None:
    data, expected = whole
    other = Path(shutil.copytree(expected, tmp_path / "other"))
    if missing:
        (other / f"{missing}.safetensors").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        images.run(config(data, start=f"{other}:stage1", **changes), tmp_path / "a", progress=False)


def test_first_stages_alone(whole: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    """`train teacher CONFIG` ends with the teacher of a whole run."""
    data, expected = whole
    settings = config(data, evaluation={"samples": 0})
    assigned = {k: v for k, v in flatten(settings).items() if not k.startswith("source.")}
    for name in ("last", "family", "watch.tensorboard"):
        del assigned[name]
    common = ["--data", str(data), "--quiet", "--threads", "1"]
    for name, value in assigned.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        common += ["--set", f"{name}={text}"] if value is not None else []
    out = tmp_path / "run"
    own = tmp_path / "own.toml"  # what --teacher gives makes its settings fit each other
    own.write_text('recipe = "images"\nfamily = "llamagen"\n[teacher]\nsteps = 0\n')
    assert main(["train", str(own), "--teacher", "a.pt", "--list"]) == 0
    assert "source.teacher=a.pt" in capsys.readouterr().out
    assert main(["train", "teacher", "images_llamagen", "--out", str(out), *common]) == 0
    capsys.readouterr()
    left, right = weights(out), weights(expected)
    assert {name.partition(".")[0] for name in left} == {"tokenizer", "classifier", "teacher"}
    assert all(torch.equal(left[name], right[name]) for name in left)
    for argv, message in (
        (["teacher", "tiny_var"], "CONFIG: expected a configuration of images, got tiny_var"),
        (["tokenizer", "digits"], "CONFIG: expected a configuration of images, got digits"),
        (["fashion", "images_var"], "CONFIG: expected one after tokenizer or teacher only, got"),
    ):
        assert main(["train", *argv, "--data", str(data)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuned_from_released_files(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """A frozen tokenizer and a teacher of other classes, in the public trainers' form."""
    data, _ = whole
    torch.manual_seed(1)
    family = dd2_fast.models.families.FAMILIES["llamagen"]
    source = family.random()  # channels of 32, 4 x 4 tokens of 2 x 2 pixels, 10 classes
    files = {name: str(tmp_path / f"{name}.pt") for name in ("teacher", "tokenizer")}
    torch.save({"model": source.state_dict()}, files["teacher"])
    torch.save({"model": source.tokenizer.state_dict()}, files["tokenizer"])
    source_config = {**files, "config": "grid=4 n_head=2"}
    settings = config(
        data, source=source_config, pairs={"count": 0}, dd1={"steps": 0}, regression={"steps": 0}
    )
    out = images.run(settings, tmp_path / "run", progress=False)
    bundle = checkpoints.load_bundle(out)
    frozen = bundle.tokenizer.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in source.tokenizer.state_dict().items())
    assert bundle.tokenizer.code_length == 1 and bundle.teacher.num_classes == 3
    head = bundle.teacher.output.weight.detach()
    assert 0 < float((head - source.output.weight.detach()).abs().max()) < 0.05  # it began there
    assert dd2_fast.sample(out, [0, 1, 2]).shape == (3, 3, 8, 8)


def run_here(data: Path) -> None:
    images.run(config(data, evaluation={"samples": 0}), Path("run"), progress=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, expected = whole
    run_together(run_here, data, folder=tmp_path)
    names = ("tokenizer.encoder.conv_in.weight", "teacher.output.weight")
    check_two_processes(tmp_path / "run", expected, names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"size": 10}}, "data.size: expected a multiple of 4 .* got 10"),
        ({"source": {"teacher": "random-var"}}, "of the family llamagen, got var's VARTeacher"),
    ],
)
def test_bad_settings(whole: tuple[Path, Path], tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.run(config(whole[0], **changes), tmp_path / "run", progress=False)
