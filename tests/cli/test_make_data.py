"""`dd2-fast make-data`: from the command line to shards, in one process and in two."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import command, run_together
from parity import llamagen_models, var_models
from parity.synth import synth_tensors

from dd2_fast.checkpoints import load_bundle
from dd2_fast.cli import main
from dd2_fast.losses import TeacherScore, flow_pairs
from dd2_fast.sampling.sources import bundled_path
from dd2_fast.training.recipes.teachers import load_teacher
from dd2_fast.training.samples import make_shards as module
from dd2_fast.training.samples.shards import ShardedPairs, ShardedSamples


@pytest.fixture
def released(tmp_path: Path) -> list[str]:
    """The arguments for a released VAR teacher and its tokenizer."""
    manifests = var_models.fixture("var_tiny")
    for name, part in (("var.pth", "var"), ("vae.pth", "vqvae")):
        torch.save(synth_tensors(manifests[part]), tmp_path / name)
    tokenizer = ["--tokenizer", str(tmp_path / "vae.pth")]
    return [str(tmp_path / "var.pth"), *tokenizer, "--config", "patch_nums=1,2,3,4"]


def test_samples_of_a_released_teacher(released, tmp_path, capsys) -> None:
    out = tmp_path / "data"
    settings = ["--cfg", "2", "--top-k", "30", "--top-p", "0.9", "--seed", "6"]
    split = ["--batch-size", "4", "--shard-size", "5", "--quiet"]
    assert main(["make-data", *released, "--out", str(out), "--num", "12", *settings, *split]) == 0
    assert capsys.readouterr().out == f"wrote 12 samples in 3 shards to {out}\n"
    samples = ShardedSamples(out, verify=True)
    tokens, labels = samples.read(torch.arange(12))
    teacher = var_models.teacher()
    samples.check_teacher(teacher, weights=True)
    assert labels.tolist() == [i % teacher.num_classes for i in range(12)]
    expected = teacher.sample(labels, cfg=2.0, top_k=30, top_p=0.9, seed=6)
    assert torch.equal(tokens, expected)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["made_by"]["teacher_file"] == "var.pth"
    assert manifest["made_by"]["tokenizer_file"] == "vae.pth"
    assert manifest["settings"]["teacher"] == "VARTeacher" and manifest["settings"]["cfg"] == 2.0


def test_pairs_of_a_released_teacher_without_guidance(released, tmp_path, capsys) -> None:
    out = tmp_path / "data"
    argv = ["make-data", *released, "--pairs", "--ode-steps", "3", "--labels", "uniform", "--quiet"]
    assert main([*argv, "--out", str(out), "--num", "6"]) == 0
    assert capsys.readouterr().out == f"wrote 6 pairs in 1 shards to {out}\n"
    pairs = ShardedPairs(out, verify=True)
    noise, tokens, labels = pairs.take(pairs.draw(9, torch.Generator().manual_seed(0)))
    assert pairs.settings["cfg"] == 0.0 and pairs.settings["ode_steps"] == 3
    score = TeacherScore(var_models.teacher(), cfg=0.0)
    assert torch.equal(flow_pairs(noise, labels, score, 3), tokens)


def test_a_bundled_name_stands_for_its_teacher(tmp_path) -> None:
    argv = ["make-data", "digits", "--num", "20", "--quiet", "--out", str(tmp_path / "a")]
    assert main(argv) == 0
    samples = ShardedSamples(tmp_path / "a")
    teacher = load_bundle(bundled_path("digits")).teacher
    samples.check_teacher(teacher, weights=True)
    tokens, labels = samples.read(torch.arange(20))
    assert torch.equal(tokens, teacher.sample(labels))


def test_a_random_teacher_is_the_one_that_train_takes(tmp_path) -> None:
    argv = ["make-data", "random-var", "--num", "5", "--seed", "3", "--quiet", "--out"]
    assert main([*argv, str(tmp_path / "a"), "--cfg", "1.5", "--top-k", "40"]) == 0
    samples = ShardedSamples(tmp_path / "a")
    samples.check_teacher(load_teacher("random-var", seed=3), weights=True)


def test_the_settings_in_the_help_are_the_configurations(capsys) -> None:
    assert main(["make-data", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for family, names in (("VAR", ("var_d16", "var_d20", "var_d24")), ("LlamaGen", ["llamagen_l"])):
        stated = re.search(rf"for {family}, ([-.a-z0-9 ]+?\d)[;.](?: |$)", text)
        words = stated.group(1).replace("--", "").replace("top-", "top_").split()
        for name in names:
            assert main(["train", name, "--list"]) == 0
            listed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
            settings = {"cfg": 1.0, "top_k": 0, "top_p": 1.0}
            settings |= dict(zip(words[::2], map(float, words[1::2]), strict=True))
            assert settings == {key: float(listed[f"samples.{key}"]) for key in settings}


def counted(argv: list[str]) -> None:
    """The command, which notes in ``drawn-RANK`` how many samples its process drew."""
    make_shards = module.make_shards

    def counting(*arguments: Any, **settings: Any) -> int:
        drawn = make_shards(*arguments, **settings)
        Path(f"drawn-{os.environ['RANK']}").write_text(str(drawn))
        return drawn

    module.make_shards = counting
    command(argv)


def test_two_processes_share_the_shards(tmp_path) -> None:
    """As torchrun starts them: each draws its part, and the files are those of one process."""
    argv = ["make-data", "digits", "--num", "45", "--shard-size", "10", "--quiet", "--out"]
    out = tmp_path / "two"
    printed = run_together(counted, [*argv, str(out)], folder=tmp_path)
    assert printed == [f"wrote 45 samples in 5 shards to {out}\n", ""]
    assert [(tmp_path / f"drawn-{rank}").read_text() for rank in (0, 1)] == ["25", "20"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    manifests = [json.loads(files.pop("manifest.json")) for files in (one, two)]
    assert one == two and len(one) == 5
    assert manifests[0]["shards"] == manifests[1]["shards"]
    assert manifests[0]["settings"] == manifests[1]["settings"]


def test_run_again_with_other_settings(tmp_path, capsys) -> None:
    argv = ["make-data", "digits", "--num", "5", "--quiet", "--out", str(tmp_path / "a")]
    assert main(argv) == 0 and main(argv) == 0
    assert main([*argv, "--cfg", "1.5"]) == 2
    error = capsys.readouterr().err
    assert "different: cfg (there 1.0, now 1.5); give the same settings" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x/y", "--num", "1"], "no file or folder at 'x/y'"),
        (["digits", "--num", "0"], "--num: expected an integer in 1.."),
        (["digits", "--num", "1", "--ode-steps", "3"], "--ode-steps: expected with --pairs only"),
        (
            ["digits", "--num", "1", "--pairs", "--ode-steps", "0"],
            "--ode-steps: expected an integer in 1..",
        ),
        (
            ["digits", "--num", "1", "--top-p", "0"],
            "top_p: expected a probability in (0, 1], got 0.0",
        ),
        (["digits", "--num", "1", "--config", "a=1"], "config: our own checkpoints carry"),
        (["digits", "--num", "1", "--cfg", "nan"], "cfg: expected a finite number"),
        (["digits", "--num", "1", "--labels", "all"], "argument --labels: invalid choice: 'all'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, argv, message) -> None:
    assert main(["make-data", *argv, "--out", str(tmp_path / "a"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("dd2-fast: error: ") and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_what_is_no_teacher_or_lacks_its_tokenizer(released, tmp_path, capsys) -> None:
    out = ["--num", "1", "--out", str(tmp_path / "a"), "--quiet"]
    assert main(["make-data", str(tmp_path / "vae.pth"), *out]) == 2
    assert "TEACHER: expected a teacher, got a VARTokenizer in" in capsys.readouterr().err
    assert main(["make-data", released[0], *released[3:], *out]) == 2
    assert "VARTeacher needs VAR's tokenizer" in capsys.readouterr().err
    torch.save(llamagen_models.weights("llamagen_tiny", "gpt"), tmp_path / "gpt.pt")
    argv = ["make-data", str(tmp_path / "gpt.pt"), "--config", "n_head=2", "grid=4", *out]
    assert main(argv) == 2
    assert "LlamaGenTeacher has none; attach a tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
