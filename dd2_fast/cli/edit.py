"""`dd2-fast edit`: images with what a mask covers drawn anew."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .picture import check_png, tile, write_png
from .settings import (
    MOST,
    SEEDS,
    add_model_options,
    class_list,
    device_here,
    image_size,
    integer,
    one_step_model,
)

_BATCH = 64
_LARGEST_SCALE = 1 << 10
_COLUMNS = 10  # of a picture of several images, each drawn once
_DRAWN = 127  # grey above which a mask's pixel is drawn


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "edit",
        help="draw a part of images anew",
        description="Draw anew what a mask covers: in- and out-painting, and of another class by "
        "--labels, without training. The tokens outside the mask are the image's own, so there the "
        "result is the tokenizer's reconstruction, or with --keep-pixels the image itself. An "
        "image of another size is made smaller or larger, and a square is cut from its middle; "
        "mask and boxes are in the pixels of the image as it was.",
    )
    add_model_options(parser, "model")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--mask",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="image of the same size, white or see-through where to draw; given once, or once an "
        "image",
    )
    parser.add_argument(
        "--box",
        type=_box,
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="draw the pixels from X0, Y0 up to X1, Y1, from the left and the top; may be repeated",
    )
    parser.add_argument(
        "--invert", action="store_true", help="draw what the mask or the boxes leave out"
    )
    parser.add_argument(
        "--labels", type=class_list, required=True, help="a class, or one an image, as in 0,1,2"
    )
    parser.add_argument(
        "--num", type=integer(1), default=1, help="how often each image is drawn (default 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for NAME.png, or NAME_0.png and so on with --num; or one .png file with all, "
        "a row an image with --num",
    )
    parser.add_argument(
        "--keep-pixels", action="store_true", help="put the given pixels outside the mask"
    )
    parser.add_argument("--seed", type=integer(*SEEDS), default=0, help="of all draws (default 0)")
    parser.add_argument(
        "--start-index", type=integer(0, MOST), default=0, help="index of the first (default 0)"
    )
    parser.add_argument(
        "--teacher-steps",
        type=integer(0),
        help="k > 1 draws the last k - 1 steps anew from the teacher, given all that is known "
        "(default 0: one step; of a teacher's checkpoint all are its own)",
    )
    parser.add_argument("--cfg", type=float, help="guidance of the teacher's steps")
    parser.add_argument(
        "--top-k", type=integer(0), default=0, help="logits they keep (default 0: all)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="mass they keep (default 1)")
    parser.add_argument(
        "--batch-size",
        type=integer(1),
        default=_BATCH,
        help="images a pass; does not change them",
    )
    parser.add_argument(
        "--scale",
        type=integer(1, _LARGEST_SCALE),
        default=1,
        help="enlarge each pixel this many times (default 1)",
    )
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Draw the masked parts and write the images."""
    import torch

    from ..checkpoints.files import check_writable
    from ..checkpoints.locks import locked
    from ..sampling.outputs import to_pil

    given, out = arguments.images, arguments.out
    if bool(arguments.mask) == bool(arguments.box):
        both = "both" if arguments.mask else "neither"
        arguments.refuse(f"expected either --mask or --box, got {both}")
    for name, values in (("--mask", arguments.mask), ("--labels", arguments.labels)):
        if len(values) not in (0, 1, len(given)):
            raise ValueError(
                f"{name}: expected one, or {len(given)}, one an image, got {len(values)}"
            )
    count = len(given) * arguments.num
    if arguments.start_index > MOST - count:
        raise ValueError(
            f"--start-index: expected at most {MOST - count} for {count} images, "
            f"got {arguments.start_index}"
        )
    one_file = out.suffix.lower() == ".png"
    if one_file:
        check_png(out)
    elif out.suffix and not out.is_dir():
        raise ValueError(f"--out: expected a folder or a .png file, got {out}")
    files = [out] if one_file else _names(out, given, arguments.num)
    for path in (*given, *arguments.mask):
        if any(file.exists() and path.exists() and file.samefile(path) for file in files):
            raise ValueError(f"--out: expected another file than those given, got {path}")
    model, size, channels = _model(arguments)
    images, masks = _read(arguments, size, channels)
    model.condition.read(arguments.labels)
    if not one_file:
        check_writable(out)
    with locked(out):
        drawn = _draw(arguments, model, images, masks)
        if one_file:
            columns = arguments.num if arguments.num > 1 else min(len(drawn), _COLUMNS)
            write_png(out, tile(drawn, columns=columns, scale=arguments.scale))
        else:
            larger = drawn.repeat(arguments.scale, 1).repeat(arguments.scale, 2)
            for file, picture in zip(files, to_pil(torch.from_numpy(larger)), strict=True):
                write_png(file, picture)
    print(f"wrote {len(drawn)} images to {out}")
    return 0


def _names(folder: Path, images: list[Path], num: int) -> list[Path]:
    """A file for every draw; ValueError where two would have one name."""
    names = [
        folder / (f"{path.stem}.png" if num == 1 else f"{path.stem}_{i}.png")
        for path in images
        for i in range(num)
    ]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(
                f"IMAGE: expected files of different names, as each becomes one in {folder}, got "
                f"{name.name} twice"
            )
    return names


def _model(arguments: argparse.Namespace) -> tuple[Any, int, int]:
    """A sampler, or the model where it is a teacher; pixels along a side, and channels."""
    from ..sampling import Sampler

    device = device_here(arguments.device)
    model = one_step_model(arguments.model, arguments.tokenizer, arguments.config)
    if hasattr(model, "logits"):
        if getattr(model, "tokenizer", None) is None or not hasattr(model, "edit"):
            raise ValueError(
                "--tokenizer: expected the checkpoint of its tokenizer for the teacher "
                f"{arguments.model}, got nothing"
            )
        for option, got in (
            ("--teacher-steps", arguments.teacher_steps),
            ("--steps", arguments.steps if arguments.steps > 1 else None),
        ):
            if got is not None:
                raise ValueError(
                    f"{option}: expected none with {arguments.model}, a teacher, which takes all "
                    f"of its own, got {got}"
                )
        for network in (model, model.tokenizer):
            network.to(device)
    else:
        try:
            model = Sampler(
                model,
                steps=arguments.steps,
                teacher_steps=arguments.teacher_steps or 0,
                batch_size=arguments.batch_size,
                cfg=arguments.cfg,
                top_k=arguments.top_k,
                top_p=arguments.top_p,
                device=device,
            )
        except TypeError as error:  # a model of the wrong kind
            raise ValueError(str(error)) from error
    return model, image_size(model), getattr(model.tokenizer, "image_channels", 3)


def _read(arguments: argparse.Namespace, size: int, channels: int) -> tuple[Any, Any]:
    """Images uint8 [N, size, size, c] and masks bool [N, 1, size, size]."""
    images, masks = [], []
    for i, path in enumerate(arguments.images):
        picture = _opened("IMAGE", path)
        images.append(_square(picture, size, channels))
        width, height = picture.size
        if arguments.mask:
            where = arguments.mask[i % len(arguments.mask)]
            mask = _opened("--mask", where)
            if mask.size not in ((width, height), (size, size)):
                raise ValueError(
                    f"--mask: expected {width} x {height} pixels, those of {path}, or "
                    f"{size} x {size}, the model's, got {mask.width} x {mask.height} in {where}"
                )
        else:
            mask = _of_boxes(arguments.box, path, width, height)
        drawn = _square(mask, size, 1)[..., 0] > _DRAWN
        masks.append(~drawn if arguments.invert else drawn)
        if not masks[-1].any():
            option = "--mask" if arguments.mask else "--box"
            raise ValueError(
                f"{option}: expected something to draw in the {size} x {size} pixels that the "
                f"model sees of {path}, got nothing"
            )
    return np.stack(images), np.stack(masks)[:, None]


def _square(picture: Any, size: int, channels: int) -> np.ndarray:
    """uint8 [size, size, c] of a picture, as training cuts it."""
    from ..training.image_config import DataConfig
    from ..training.samples.image_batches import cut

    return cut(picture, DataConfig(size=size, channels=channels)).transpose(1, 2, 0)


def _opened(argument: str, path: Path) -> Any:
    """The picture in a file, upright."""
    from PIL import Image, ImageOps

    if not path.exists():
        raise FileNotFoundError(f"{argument}: no file at '{path}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise ValueError(f"{argument}: expected an image in {path}, got {error}") from error
    if upright.mode.startswith(("I", "F")):
        raise ValueError(
            f"{argument}: expected 8 bits a channel in {path}, got mode {upright.mode}"
        )
    return upright


def _of_boxes(boxes: list[tuple[int, ...]], path: Path, width: int, height: int) -> Any:
    from PIL import Image

    mask = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in boxes:
        if right > width or bottom > height:
            raise ValueError(
                f"--box: expected to end within {width},{height}, the size of {path}, got "
                f"{left},{top},{right},{bottom}"
            )
        mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def _draw(arguments: argparse.Namespace, model: Any, images: Any, masks: Any) -> Any:
    """uint8 [N num, H, W, c], the draws of an image one after the other."""
    import torch

    from ..sampling.outputs import to_uint8

    num, count = arguments.num, len(images) * arguments.num
    labels = [arguments.labels[i % len(arguments.labels)] for i in range(len(images))]
    rows = torch.arange(len(images)).repeat_interleave(num)
    each = torch.tensor(labels)[rows]
    start = arguments.start_index
    drawn = []
    for first in range(0, count, arguments.batch_size):
        part = rows[first : first + arguments.batch_size].numpy()
        here = slice(first, first + len(part))
        where = {"keep_pixels": arguments.keep_pixels, "seed": arguments.seed}
        if not hasattr(model, "logits"):
            made = model.edit(
                images[part],
                masks[part],
                each[here],
                start_index=start + first,
                output="np",
                **where,
            )
            drawn.append(made)
            continue
        device = model.tokenizer.codebook.device
        floats = torch.from_numpy(images[part]).permute(0, 3, 1, 2).float() / 255
        made = model.edit(
            floats.to(device),
            torch.from_numpy(masks[part]).to(device),
            each[here].to(device),
            index=torch.arange(start + first, start + here.stop),
            cfg=arguments.cfg,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            **where,
        )
        drawn.append(to_uint8(made).numpy())
    return np.concatenate(drawn)


def _box(text: str) -> tuple[int, ...]:
    """Return the four sides of a box that has pixels."""
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError:
        left, top, right, bottom = 0, 0, 0, 0
    if not (0 <= left < right and 0 <= top < bottom):
        raise argparse.ArgumentTypeError(
            f"expected four integers X0,Y0,X1,Y1 with 0 <= X0 < X1 and 0 <= Y0 < Y1, got {text!r}"
        )
    return left, top, right, bottom
