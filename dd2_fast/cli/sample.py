"""`dd2-fast sample`: images from labels, as PNG files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .picture import check_png, tile


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "sample",
        help="draw images with a model",
        description="Draw images and write them as PNG: one picture with all of them if --out "
        "ends in .png, else a folder with one file an image, named by index and label.",
    )
    parser.add_argument(
        "--model", default="digits", help="bundled name or path of a bundle (default digits)"
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--labels", type=_labels, help="classes, for example 0,1,2")
    wanted.add_argument("--num", type=int, help="how many images, going round the classes")
    parser.add_argument("--out", type=Path, required=True, help="folder, or picture ending in .png")
    parser.add_argument("--seed", type=int, default=0, help="of the whole job (default 0)")
    parser.add_argument(
        "--start-index", type=int, default=0, help="index of the first image (default 0)"
    )
    parser.add_argument(
        "--teacher-steps",
        type=int,
        default=0,
        help="k > 1 draws the last k - 1 tokens anew from the teacher (default 0: one step)",
    )
    parser.add_argument("--batch-size", type=int, help="images a pass; does not change them")
    parser.add_argument(
        "--scale", type=int, default=1, help="enlarge each pixel this many times (default 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the images and write them."""
    from ..checkpoints.files import check_writable
    from ..sampling import Sampler

    if arguments.num is not None and arguments.num < 1:
        raise ValueError(f"--num: expected at least 1, got {arguments.num}")
    if arguments.scale < 1:
        raise ValueError(f"--scale: expected at least 1, got {arguments.scale}")
    one_file = arguments.out.suffix.lower() == ".png"
    if one_file:
        check_png(arguments.out)
    sampler = Sampler(
        arguments.model,
        teacher_steps=arguments.teacher_steps,
        batch_size=arguments.batch_size,
    )
    if not one_file:
        check_writable(arguments.out)
    labels = arguments.labels or [i % sampler.num_classes for i in range(arguments.num)]
    images = sampler(
        labels,
        seed=arguments.seed,
        start_index=arguments.start_index,
        output="np",
        progress=not arguments.quiet,
    )
    if one_file:
        columns = min(len(labels), 10)
        tile(images, columns=columns, scale=arguments.scale).save(arguments.out)
    else:
        for i, (label, image) in enumerate(zip(labels, images, strict=True)):
            name = f"{arguments.start_index + i:06d}_{label}.png"
            picture = tile(image[None], columns=1, scale=arguments.scale)
            picture.save(arguments.out / name)
    print(f"wrote {len(labels)} images to {arguments.out}")
    return 0


def _labels(text: str) -> list[int]:
    """Return the classes of a comma-separated list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, got {text!r}"
        ) from None
