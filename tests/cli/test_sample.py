"""`dd2-fast sample` against the sampler itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import var_models
from parity.synth import synth_tensors
from PIL import Image

from dd2_fast.cli import main
from dd2_fast.sampling import Sampler


def test_a_folder_gets_one_file_an_image(tmp_path: Path, capsys) -> None:
    out = tmp_path / "images"
    argv = ["sample", "--num", "12", "--seed", "4", "--start-index", "3", "--teacher-steps", "3"]
    assert main([*argv, "--out", str(out), "--batch-size", "5", "--quiet"]) == 0
    assert capsys.readouterr().out == f"wrote 12 images to {out}\n"
    files = sorted(out.glob("*.png"))
    labels = [i % 10 for i in range(12)]
    assert [f.name for f in files] == [f"{3 + i:06d}_{y}.png" for i, y in enumerate(labels)]
    sampler = Sampler("digits", teacher_steps=3)
    expected = sampler(labels, seed=4, start_index=3, output="np")
    for file, image in zip(files, expected, strict=True):
        difference = np.asarray(Image.open(file)).astype(int) - image
        assert np.abs(difference).max() <= 1


def test_one_picture_holds_all(tmp_path: Path) -> None:
    out = tmp_path / "all.png"
    argv = ["sample", "--labels", "0, 1,2", "--scale", "2", "--out", str(out), "--quiet"]
    assert main(argv) == 0
    assert Image.open(out).size == (3 * 16 + 2 * 3, 16)


def test_classes_and_how_many_of_each(tmp_path: Path) -> None:
    """`--num` and `--per-class` go round those of `--labels`, or all."""
    for i, (wanted, labels) in enumerate(
        (
            (["--labels", "3", "--num", "4"], [3] * 4),
            (["--labels", "5,2", "--num", "3"], [5, 2, 5]),
            (["--labels", "7,1,1", "--per-class", "2"], [7, 1, 1] * 2),
            (["--per-class", "2"], [*range(10)] * 2),
        )
    ):
        out = tmp_path / str(i)
        assert main(["sample", *wanted, "--out", str(out), "--quiet"]) == 0
        found = [f.stem for f in sorted(out.glob("*.png"))]
        assert found == [f"{n:06d}_{label}" for n, label in enumerate(labels)]
    out = tmp_path / "a.npz"
    assert main(["sample", "--per-class", "3", "--labels", "4,8", "--out", str(out)]) == 0
    with np.load(out) as archive:
        drawn = archive["arr_0"]
    order = [4, 8] * 3
    shuffled = [order[i] for i in np.random.default_rng(0).permutation(6)]
    expected = Sampler("digits")(shuffled, output="np")
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_grid_shows_images_of_the_job(tmp_path: Path, capsys) -> None:
    out, grid = tmp_path / "images", tmp_path / "grid.png"
    argv = ["sample", "--out", str(out), "--grid", str(grid), "--quiet", "--start-index", "5"]
    assert main([*argv, "--num", "24", "--seed", "3"]) == 0
    files = sorted(out.glob("*.png"))
    picture = np.asarray(Image.open(grid)).astype(int)
    assert picture.shape == (10 * 11 - 3, 2 * 11 - 3, 3)  # two of each class, 8 pixels and a gap
    for i in (0, 13, 19):  # image i is of class i % 10
        row, column = i % 10, i // 10
        cell = picture[row * 11 : row * 11 + 8, column * 11 : column * 11 + 8]
        assert np.abs(cell - np.asarray(Image.open(files[i]))).max() <= 1
    one = [*argv[:-2], "--labels", "6", "--num", "13"]
    one[2] = str(tmp_path / "a.npz")
    assert main(one) == 0
    assert Image.open(grid).size == (10 * 11 - 3, 2 * 11 - 3)
    capsys.readouterr()
    assert main(["sample", "--num", "1", "--out", str(out), "--grid", "grid.jpg"]) == 2
    assert "--grid: expected a name that ends in .png" in capsys.readouterr().err
    assert main(["sample", "--out", str(out)]) == 2
    assert "expected --labels, --num or --per-class, got none" in capsys.readouterr().err


def test_a_released_student_with_its_tokenizer(tmp_path: Path, capsys) -> None:
    manifests = var_models.fixture("dd1_var_tiny")
    for name, part in (("dd1.pth", "dd"), ("vae.pth", "vqvae")):
        torch.save(synth_tensors(manifests[part]), tmp_path / name)
    argv = ["sample", "--model", str(tmp_path / "dd1.pth"), "--labels", "1,2,3", "--quiet"]
    config = ["--config", "patch_nums=1,2,3,4", "split=2"]
    tokenizer = ["--tokenizer", str(tmp_path / "vae.pth")]
    out = tmp_path / "a.npz"
    assert main([*argv, *config, *tokenizer, "--steps", "2", "--out", str(out)]) == 0
    expected = Sampler(var_models.student(), steps=2)([1, 2, 3], output="np")
    with np.load(out) as archive:
        assert np.abs(archive["arr_0"].astype(int) - expected).max() <= 1
    capsys.readouterr()
    assert main([*argv, *config, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "error: --tokenizer: expected the checkpoint of its tokenizer" in error
    assert str(tmp_path / "dd1.pth") in error


def test_a_folder_takes_one_job_which_may_grow(tmp_path: Path, capsys) -> None:
    argv = ["sample", "--out", str(tmp_path / "m"), "--quiet", "--num"]
    assert main([*argv, "8", "--seed", "9"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    capsys.readouterr()
    for others, named in (
        (
            ["2", "--seed", "0"],
            "labels (there of 8 images, now of 2 images), seed (there 9, now 0)",
        ),
        (["8", "--seed", "0"], "seed (there 9, now 0);"),
        (["9", "--seed", "9", "--scale", "2"], "scale (there 1, now 2);"),
    ):
        assert main([*argv, *others]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'm'} holds another job" in error and named in error
        assert {path: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert main([*argv, "12", "--seed", "9"]) == 0
    names = [path.name for path in (tmp_path / "m").glob("*.png")]
    assert sorted(names) == [f"{i:06d}_{i % 10}.png" for i in range(12)]
    (tmp_path / "m" / ".job.json").unlink()
    assert main([*argv, "12", "--seed", "9"]) == 2
    assert "holds images of no known job" in capsys.readouterr().err


def test_what_looks_like_another_file_becomes_no_folder(tmp_path: Path, capsys) -> None:
    assert main(["sample", "--num", "2", "--out", str(tmp_path / "y.JPG"), "--quiet"]) == 2
    assert "--out: expected a folder, a .png or a .npz file, got" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--labels", "0,x"], "argument --labels: expected integers separated by commas"),
        (["--labels", "11"], "labels: expected values in 0..9, got 11"),
        (["--num", "0"], "--num: expected an integer in 1.."),
        (["--num", "2", "--scale", "0"], "--scale: expected an integer in 1..1024, got 0"),
        (["--num", "2", "--batch-size", "0"], "--batch-size: expected an integer in 1.."),
        (["--num", "2", "--teacher-steps", "99"], "teacher_steps: expected 0 to 17"),
        (["--num", "2", "--model", "x/y"], "model: no file or folder at 'x/y'"),
        (["--num", "2", "--per-class", "1"], "not allowed with argument"),
        (["--num", "2", "--steps", "2"], "steps: expected 1 for a DD2Generator, got 2"),
        (["--num", "2", "--config", "split"], "--config: expected key=value, got 'split'"),
        (["--num", "2", "--teacher-steps", "2", "--cfg", "nan"], "cfg: expected a finite number"),
        (
            ["--num", "2", "--top-k", "5"],
            "top_k: expected with teacher_steps of at least 2 or jacobi alone",
        ),
        (["--num", str(10**15)], "Unable to allocate"),
        (["--num", "2", "--seed", str(2**64)], "--seed: expected an integer in -9223"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, argv, message) -> None:
    assert main(["sample", *argv, "--out", str(tmp_path / "a.png"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("dd2-fast: error: ") and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_a_gpu_is_taken_where_there_is_one(tmp_path: Path, monkeypatch) -> None:
    class Made(Exception):
        pass

    def sampler(*args, device, **settings):
        raise Made(device)

    monkeypatch.setattr("dd2_fast.sampling.Sampler", sampler)
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr("dd2_fast.sampling.arguments.check_device", lambda device: None)
        with pytest.raises(Made, match=wanted):
            main(["sample", "--num", "1", "--out", str(tmp_path / "a.png")])
