"""`dd2-fast edit` against `Sampler.edit` and `teacher.edit`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from snippets import snippet

from dd2_fast.checkpoints import load
from dd2_fast.cli import main
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.sources import bundled_path

SIZE = 8  # of the digits
FILES = ("a.png", "b.png")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Two digits, saved as FILES."""
    monkeypatch.chdir(tmp_path)
    images = Sampler("digits")([3, 1], seed=5, output="np")
    for name, image in zip(FILES, images, strict=True):
        Image.fromarray(image).save(name)
    return images


def box(*corners: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    left, top, right, bottom = corners
    mask[top:bottom, left:right] = True
    return mask


def edit(*argv: Any) -> None:
    assert main(["edit", *map(str, argv)]) == 0


def read(*names: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(name)) for name in names])


def test_a_folder_gets_each_image_under_its_name(given: np.ndarray, capsys) -> None:
    options = ["--teacher-steps", 3, "--cfg", 2, "--top-k", 20, "--top-p", 0.9]
    argv = ["digits", *FILES, "--box", "4,0,8,8", "--labels", "3,1", "--seed", 2]
    edit(*argv, *options, "--out", "out")
    assert capsys.readouterr().out == "wrote 2 images to out\n"
    sampler = Sampler("digits", teacher_steps=3, cfg=2, top_k=20, top_p=0.9)
    expected = sampler.edit(given, box(4, 0, 8, 8), [3, 1], seed=2, output="np")
    assert np.array_equal(read("out/a.png", "out/b.png"), expected)
    assert (expected != given)[:, :, 4:].any((1, 2, 3)).all()


def test_several_draws_of_each_image(given: np.ndarray) -> None:
    """Whatever the batch; in one picture they are rows."""
    argv = ["digits", *FILES, "--box", "4,0,8,8", "--labels", 7, "--num", 3, "--start-index", 6]
    edit(*argv, "--batch-size", 2, "--keep-pixels", "--out", "out")
    where = {"start_index": 6, "keep_pixels": True, "output": "np"}
    expected = Sampler("digits").edit(given.repeat(3, 0), box(4, 0, 8, 8), [7] * 6, **where)
    assert np.array_equal(read(*(f"out/{n}_{i}.png" for n in "ab" for i in range(3))), expected)
    assert np.array_equal(expected[:, :, :4], given.repeat(3, 0)[:, :, :4])
    edit(*argv, "--keep-pixels", "--scale", 2, "--out", "all.png")
    picture = read("all.png")[0]
    assert picture.shape == (2 * 16 + 3, 3 * 16 + 2 * 3, 3)
    assert np.array_equal(picture[19:35:2, 19:35:2], expected[4])


def test_masks_and_boxes_say_the_same(given: np.ndarray) -> None:
    """White and see-through pixels of a mask are drawn; each image may have its own."""
    mask = box(0, 0, 4, 8) | box(6, 0, 8, 2)
    grey = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    grey.save("mask.png")
    clear = Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 255))
    clear.paste((0, 0, 0, 0), mask=grey)
    clear.save("clear.png")
    Image.fromarray(~mask.numpy()).save("rest.png")  # of one bit
    common = ["digits", *FILES, "--labels", "3,1"]
    edit(*common, "--box", "0,0,4,8", "--box", "6,0,8,2", "--out", "boxes")
    expected = Sampler("digits").edit(given, mask, [3, 1], output="np")
    for i, chosen in enumerate(
        (["mask.png"], ["clear.png"], ["mask.png", "clear.png"], ["rest.png", "--invert"])
    ):
        masks = [word for name in chosen[:2] for word in ("--mask", name)]
        if "--invert" in chosen:
            masks = ["--mask", "rest.png", "--invert"]
        edit(*common, *masks, "--out", str(i))
        assert np.array_equal(read(f"{i}/a.png", f"{i}/b.png"), expected)
    assert np.array_equal(read("boxes/a.png", "boxes/b.png"), expected)


def test_a_photograph_is_cut_as_its_box_is(given: np.ndarray) -> None:
    """Wider than high, twice as large and lying on its side, as cameras save them; the box is in
    the pixels that a viewer shows."""
    wide = np.zeros((2 * SIZE, 4 * SIZE, 3), np.uint8)
    wide[:, SIZE : 3 * SIZE] = given[0].repeat(2, 0).repeat(2, 1)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by a quarter, against the clock
    turned = Image.fromarray(wide).transpose(Image.Transpose.ROTATE_270)
    turned.save("photo.png", exif=exif)
    edit("digits", "photo.png", "--box", f"{2 * SIZE},0,{3 * SIZE},{2 * SIZE}", "--labels", 3,
         "--keep-pixels", "--out", "out.png")  # fmt: skip
    smaller = Image.fromarray(wide).resize((2 * SIZE, SIZE), Image.Resampling.BICUBIC)
    seen = np.asarray(smaller.crop((SIZE // 2, 0, SIZE * 3 // 2, SIZE)))[None]
    where = {"keep_pixels": True, "output": "np"}
    expected = Sampler("digits").edit(seen, box(4, 0, 8, 8), [3], **where)
    assert np.array_equal(read("out.png"), expected)


def test_a_teacher_s_checkpoint_draws_by_itself(given: np.ndarray) -> None:
    folder = bundled_path("digits")
    parts = folder / "teacher.safetensors", "--tokenizer", folder / "tokenizer.safetensors"
    argv = [*parts, *FILES, "--box", "4,0,8,8", "--labels", "3,1", "--top-k", 9, "--cfg", 1.5]
    edit(*argv, "--num", 2, "--batch-size", 3, "--start-index", 4, "--out", "out")
    teacher = load(parts[0], tokenizer=parts[2])
    images = torch.from_numpy(given.repeat(2, 0)).permute(0, 3, 1, 2).float() / 255
    made = teacher.edit(
        images,
        box(4, 0, 8, 8),
        torch.tensor([3, 3, 1, 1]),
        top_k=9,
        cfg=1.5,
        index=torch.arange(4, 8),
    )
    expected = (made.permute(0, 2, 3, 1) * 255).round().numpy()
    found = read(*(f"out/{n}_{i}.png" for n in "ab" for i in range(2)))
    assert np.abs(found - expected).max() <= 1


@pytest.mark.slow
def test_the_commands_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boot, bag = Sampler("fashion")([9, 8], seed=1, output="pil")
    boot.save("boot.png")
    bag.save("bag.png")
    mask = np.zeros((28, 28), bool)
    mask[4:24, 4:24] = True
    Image.fromarray(mask).save("mask.png")
    for line in snippet("dd2_fast/sampling/README.md", "edit_command").splitlines():
        program, *argv = shlex.split(line)
        assert program == "dd2-fast" and main(argv) == 0
    assert len(list(Path("edited").iterdir())) == 12
    assert Image.open("edited/bag_5.png").mode == "L"  # as the model's images are
    around = read("around.png")[0][4:24, 4:24]
    assert np.array_equal(around[..., 0], np.asarray(boot)[4:24, 4:24])


def test_errors_name_the_argument(given: np.ndarray, tmp_path: Path, capsys) -> None:
    Image.new("L", (5, 5)).save("small.png")
    Image.new("I;16", (8, 8)).save("deep.png")
    Path("text.png").write_text("no image")
    Path("more").mkdir()
    Image.new("L", (8, 8)).save("more/a.png")
    teacher = str(bundled_path("digits") / "teacher.safetensors")
    good = ["digits", "a.png", "--box", "0,0,4,4", "--labels", "3", "--out", "out"]
    where = {name: good.index(name) for name in good}

    def changed(**values: str) -> list[str]:
        argv = list(good)
        for name, value in values.items():
            argv[where[name] if name in where else where[f"--{name}"] + 1] = value
        return argv

    before = sorted(tmp_path.rglob("*"))
    for argv, message in (
        (changed(**{"a.png": "none.png"}), "IMAGE: no file at 'none.png'"),
        (changed(**{"a.png": "text.png"}), "IMAGE: expected an image in text.png, got"),
        (changed(**{"a.png": "more"}), "IMAGE: expected an image in more, got"),
        (changed(**{"a.png": "deep.png"}), "IMAGE: expected 8 bits a channel in deep.png"),
        ([*good, "--mask", "a.png"], "expected either --mask or --box, got both"),
        ([*good[:2], *good[4:]], "expected either --mask or --box, got neither"),
        ([*changed(box="0,0,9,4")], "--box: expected to end within 8,8, the size of a.png, got"),
        (changed(box="4,0,4,4"), "--box: expected four integers X0,Y0,X1,Y1"),
        (changed(box="0,0,4"), "--box: expected four integers X0,Y0,X1,Y1"),
        (changed(box="0,0,8,8") + ["--invert"], "--box: expected something to draw in the 8 x 8"),
        ([*good[:2], "--mask", "small.png", *good[4:]], "--mask: expected 8 x 8 pixels, those of"),
        ([*good[:2], "--mask", "text.png", *good[4:]], "--mask: expected an image in text.png"),
        ([*good[:2], *["--mask", "a.png"] * 2, *good[4:]], "--mask: expected one, or 1, one an"),
        (changed(labels="3,1"), "--labels: expected one, or 1, one an image, got 2"),
        (changed(labels="x"), "--labels: expected integers separated by commas, got x"),
        (changed(labels="10"), "labels: expected values in 0..9, got 10"),
        (changed(out="a.jpg"), "--out: expected a folder or a .png file, got a.jpg"),
        (changed(out="a.png"), "--out: expected another file than those given, got a.png"),
        (changed(out="."), "--out: expected another file than those given, got a.png"),
        ([*good[:2], "more/a.png", *good[2:]], "IMAGE: expected files of different names"),
        ([*good, "--cfg", "2"], "cfg: expected with teacher_steps of at least 2"),
        ([*good, f"--start-index={2**63 - 1}"], "--start-index: expected at most"),
        ([*good, "--device", "abacus"], "device: expected a torch device, got 'abacus'"),
        (changed(digits=teacher), "--tokenizer: expected the checkpoint of its tokenizer for the"),
        (
            [*changed(digits=teacher), "--teacher-steps", "3", "--tokenizer",
             str(bundled_path("digits") / "tokenizer.safetensors")],
            "--teacher-steps: expected none with",
        ),
        (changed(digits="nonesuch"), "model: expected a bundled name"),
    ):  # fmt: skip
        assert main(["edit", *argv]) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("dd2-fast: error: ") and message in error, (argv, error)
        assert error.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before, argv
