"""From images to a one-step generator: the whole recipe, stopped, resumed and on processes."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from forks import run_together
from torch import nn
from training.image_files import shapes, write_npz

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.checkpoints.bundle import shrink_bundle
from dd2_fast.cli import main
from dd2_fast.metrics.image_report import COLUMNS
from dd2_fast.training.loop import Interrupted
from dd2_fast.training.recipes import images
from dd2_fast.training.recipes.image_evaluation import load_judged
from dd2_fast.training.recipes.images import ImagesConfig
from dd2_fast.training.settings import configure
from dd2_fast.training.stages import ImageTeacherStage, ImageTokenizerStage

SHORT = {
    "data": {"size": 8, "flip": False, "held_out": 0.3},
    "tokenizer": {
        **{"patch_nums": (1, 2), "vocabulary": 12, "dimension": 3, "channels": 4},
        **{"multipliers": (1, 2, 2), "groups": 2, "continuous_steps": 2, "steps": 5, "batch": 8},
        **{"start_images": 20, "restart_every": 2},
    },
    "classifier": {"width": 4, "features": 4, "steps": 2, "batch": 8},
    "teacher": {"width": 16, "layers": 1, "heads": 2, "steps": 4, "batch": 8},
    "network": {"head_width": 8, "head_depth": 1},
    "stage1": {"head_steps": 1, "steps": 2, "batch": 8},
    "dd1": {"steps": 2, "batch": 8},
    "distill": {"guidance_start": 1, "steps": 3, "batch": 8},
    "evaluation": {"samples": 24, "teacher_steps": (2, 3), "grid": 9, "batch": 10},
    "watch": {"images_every": 2, "images": 4, "save_every": 1e-9, "tensorboard": False},
}


def config(path: Path, **changes) -> ImagesConfig:
    base = configure(ImagesConfig(), {**SHORT, "source": {"data": str(path)}})
    return configure(base, changes)


def written(folder: Path) -> Path:
    return write_npz(folder / "set.npz", *shapes(60, size=8))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.stem}.{k}": v
        for path in sorted(folder.glob("*.safetensors"))
        if path.stem != "pairs"
        for k, v in checkpoints.load(path).state_dict().items()
    }


def run_with_a_stop(
    settings: ImagesConfig, out: Path, monkeypatch: pytest.MonkeyPatch, stage, step: int
) -> None:
    """The recipe, stopped before a step of a stage and then gone on with."""
    own = stage.step

    def stops(self, index, rng):
        if index == step:
            raise Interrupted("stopped")
        return own(self, index, rng)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "step", stops)
        with pytest.raises(Interrupted):
            images.run(settings, out, progress=False)
    images.run(settings, out, progress=False)


def trained(folder: Path, config: Callable[[Path], ImagesConfig]) -> tuple[Path, Path]:
    """Images in a folder, and the folder of a run over them."""
    data = written(folder)
    return data, images.run(config(data), folder / "run", progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("images"), config)


def test_writes_a_model_and_its_report(whole: tuple[Path, Path]) -> None:
    _, out = whole
    report = json.loads((out / "run.json").read_text())
    assert report["data"]["classes"] == ["0", "1", "2"] and report["data"]["left_out"] == []
    assert list(report["losses"]) and set(report["losses"]) == {
        *("tokenizer", "classifier", "teacher", "stage1", "dd1", "guidance", "distill")
    }
    told = report["evaluation"]
    rows = told["rows"]
    assert set(rows) == {
        *("real", "reconstruction", "teacher", "set_prediction", "stage1"),
        *("one_step", "one_step_2", "one_step_3", "dd1"),
    }
    assert set(rows["one_step"]) == set(COLUMNS)
    assert told["held_out_nll"] == rows["reconstruction"]["nll"] > 0
    assert 0 < told["codes_used"] <= 1 and told["reconstruction_mse"] > 0
    pictures = {path.stem for path in (out / "pictures").glob("*.png")}
    assert pictures == set(rows)
    found = dd2_fast.sample(out, [0, 1, 2], seed=4)
    assert found.shape == (3, 3, 8, 8)
    refined = dd2_fast.sample(out, [0, 1, 2], seed=4, teacher_steps=2)
    assert not torch.equal(found, refined)
    bundle = checkpoints.load_bundle(out)
    assert torch.allclose(bundle.tokenizer.codebook.std(0, correction=0), torch.ones(3))


def test_a_smaller_bundle_makes_the_same_pictures(whole: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = whole
    shrink_bundle(out, tmp_path / "small")
    sizes = [(d / "generator.safetensors").stat().st_size for d in (out, tmp_path / "small")]
    assert sizes[1] < 0.75 * sizes[0]
    small = checkpoints.load_bundle(tmp_path / "small")
    assert {p.dtype for p in small.generator.parameters()} == {torch.float32}
    expected, found = (dd2_fast.sample(d, [0, 1, 2], seed=4) for d in (out, tmp_path / "small"))
    assert float((expected - found).square().mean()) < 1e-5  # 50 dB


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        pytest.param(ImageTokenizerStage, 4, id="codes"),
        pytest.param(ImageTeacherStage, 2, id="teacher", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage, step: int
) -> None:
    data, expected = whole
    settings = config(data, last="teacher", evaluation={"samples": 0})
    run_with_a_stop(settings, tmp_path / "run", monkeypatch, stage, step)
    left, right = weights(tmp_path / "run"), weights(expected)
    assert {name.partition(".")[0] for name in left} == {"tokenizer", "classifier", "teacher"}
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_networks_of_the_users_own(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """A perceptual extractor and a discriminator, given by a program."""
    torch.manual_seed(0)
    extractor = nn.Conv2d(3, 2, 3).requires_grad_(False)
    options = dict(features=extractor, discriminator=nn.Conv2d(3, 1, 3), progress=False)
    out = images.run(config(whole[0], last="tokenizer"), tmp_path / "run", **options)
    losses = json.loads((out / "run.json").read_text())["losses"]["tokenizer"]
    assert {"perceptual", "adversarial", "discriminator"} <= set(losses)


def check_two_processes(out: Path, expected: Path, names: Iterable[str]) -> None:
    left, right = weights(out), weights(expected)
    for name in names:
        torch.testing.assert_close(left[name], right[name], atol=1e-4, rtol=1e-3)
    assert json.loads((out / "run.json").read_text())["processes"] == 2


def run_here(data: Path) -> None:
    images.run(config(data), Path("run"), progress=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, expected = whole
    run_together(run_here, data, folder=tmp_path)
    names = ("tokenizer.encoder.conv_in.weight", "teacher.word_embed.weight")
    check_two_processes(tmp_path / "run", expected, names)


@pytest.mark.slow
def test_first_stages_alone_and_what_follows_from_their_files(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train tokenizer`, then a teacher over its file, then that teacher fine-tuned."""
    data, _ = whole
    flat = {
        f"{section}.{name}": ",".join(map(str, v)) if isinstance(v, tuple) else v
        for section, table in SHORT.items()
        for name, v in table.items()
    }
    common = [arg for k, v in flat.items() for arg in ("--set", f"{k}={v}")]
    common += ["--data", str(data), "--quiet"]
    first, second, third = (str(tmp_path / name) for name in ("a", "b", "c"))
    assert main(["train", "tokenizer", "--out", first, *common]) == 0
    assert {p.name for p in (tmp_path / "a").glob("*.safetensors")} == {
        *("tokenizer.safetensors", "classifier.safetensors")
    }
    assert "reconstruction MSE" in capsys.readouterr().out
    tokenizer = ["--tokenizer", f"{first}/tokenizer.safetensors"]
    assert main(["train", "teacher", "--out", second, *common, *tokenizer]) == 0
    kept = checkpoints.load(tmp_path / "b" / "tokenizer.safetensors").state_dict()
    frozen = checkpoints.load(tmp_path / "a" / "tokenizer.safetensors").state_dict()
    assert all(torch.equal(kept[name], frozen[name]) for name in frozen)
    teacher = ["--teacher", f"{second}/teacher.safetensors", *tokenizer]
    out = ["--set", "teacher.rate=0", "--set", "teacher.weight_decay=0"]
    assert main(["train", "teacher", "--out", third, *common, *teacher, *out]) == 0
    before, after = (checkpoints.load(tmp_path / d / "teacher.safetensors") for d in "bc")
    assert all(
        torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True)
    )


@pytest.mark.slow
def test_stage_1_of_another_run(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """The same networks, and no stage before them."""
    data, other = whole
    settings = config(data, start=f"{other}:stage1", evaluation={"samples": 0})
    out = images.run(settings, tmp_path / "run", progress=False)
    left, right = weights(out), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert set(json.loads((out / "run.json").read_text())["losses"]) == {
        *("dd1", "guidance", "distill")
    }


def test_evaluate_repeats_the_runs_own_table(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = whole
    folder = str(tmp_path / "told")
    assert main(["evaluate", str(out), "--data", str(data), "--out", folder]) == 0
    printed = capsys.readouterr().out
    assert "one step + 2 teacher's" in printed and "to the teacher" in printed
    again = json.loads((tmp_path / "told" / "evaluation.json").read_text())
    once = json.loads((out / "run.json").read_text())["evaluation"]
    for name, row in once["rows"].items():
        same = {k: v for k, v in row.items() if k != "ms"}
        assert {k: v for k, v in again["rows"][name].items() if k != "ms"} == pytest.approx(same)


@torch.no_grad()
def test_what_the_variety_tool_says(whole: tuple[Path, Path], monkeypatch, capsys) -> None:
    """Of the reference itself nothing; of one token everywhere no entropy; a row a generator."""
    tool = Path(__file__).parents[2] / "bench" / "tools" / "variety.py"
    if not tool.is_file():
        pytest.skip("the benchmarks are not here")
    variety = runpy.run_path(str(tool))
    data, out = whole
    found = load_judged(out, torch.device("cpu"))
    labels, book = torch.arange(30) % 3, found.tokenizer.codebook
    tokens = found.teacher.sample(labels, cfg=0.0, seed=1)
    compared = variety["Variety"](found, labels)
    reference, entropy = compared.seen(book[tokens]), compared.entropy(tokens)
    one = tokens[labels == 0, 0].bincount().double() / 10
    two, three = (tokens[labels == i, 0].bincount().double() / 10 for i in (1, 2))
    wanted = sum(float(torch.special.entr(p).sum()) for p in (one, two, three)) / 3
    assert float(entropy[0]) == pytest.approx(wanted)
    same = compared.compare(book[tokens], reference, entropy)
    assert same["variance"] == same["pixels"] == 1 and same["mean"] == 0
    assert same["fd"] == pytest.approx(0, abs=1e-6) and same["entropy"] == [1.0] * 4
    assert same["off"] == [0.0] * 4
    flat = compared.compare(book[torch.zeros_like(tokens)], reference, entropy)
    assert flat["entropy"] == [0.0] * 4 and flat["pixels"] == pytest.approx(0, abs=1e-9)
    assert flat["fd"] == pytest.approx(flat["mean"] + flat["spread"])
    for options, rows in (
        ([], {"teacher", "set prediction", "one_step", "one_step, nearest codes"}),
        (["--sampling", "cfg=1.5", "top_k=3"], {"real images, tokenised", "cfg=1.5", "top_k=3"}),
    ):
        argv = ["variety.py", str(out), "--data", str(data), "--samples", "18", *options]
        monkeypatch.setattr("sys.argv", argv)
        variety["main"]()
        assert rows <= {json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"data": ""}}, "source.data: expected a folder of images"),
        ({"last": "all"}, "last: expected one of tokenizer, teacher, generator"),
        ({"data": {"size": 9}}, "data.size: expected the tokenizer's 8 .* got 9"),
        ({"teacher": {"steps": 0}}, "teacher.steps: expected at least 1 without source.teacher"),
        ({"source": {"teacher": "random-llamagen"}}, "of the family var, got llamagen's Llama"),
        ({"family": "causal"}, "family: expected one of var, llamagen, got 'causal'"),
    ],
)
def test_bad_settings(whole: tuple[Path, Path], tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.run(config(whole[0], **changes), tmp_path / "run", progress=False)


def test_a_configuration_of_an_unknown_recipe(tmp_path: Path, capsys) -> None:
    path = tmp_path / "own.toml"
    path.write_text('recipe = "sounds"\n')
    assert main(["train", str(path)]) == 2
    assert (
        "expected a recipe of distil, images, digits, toy, got 'sounds'" in capsys.readouterr().err
    )
