"""`dd2-fast sample`: images from labels, as PNG files or one archive."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .picture import check_png, tile, write_png
from .settings import MOST, SEEDS, add_model_options, integer, one_step_model

_LARGEST_SCALE = 1 << 10
# What would be taken for a file and become a folder.
_OTHER_FILES = (
    *(".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".h5"),
    *(".zip", ".tar", ".gz", ".pt", ".pth", ".safetensors"),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "sample",
        help="draw images with a model",
        description="Draw images: one picture with all of them if --out ends in .png; ADM's "
        "archive, labels shuffled, if in .npz; else a folder with one PNG an image, named by index "
        "and label. Run again, a killed job goes on where it stopped; a larger --num extends a "
        "folder. Under torchrun every process draws its share.",
    )
    add_model_options(parser, "--model")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--labels", type=_labels, help="classes, for example 0,1,2")
    wanted.add_argument(
        "--num", type=integer(1, MOST), help="how many images, going round the classes"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, .png or .npz file")
    parser.add_argument(
        "--seed", type=integer(*SEEDS), default=0, help="of the whole job (default 0)"
    )
    parser.add_argument(
        "--start-index",
        type=integer(0, MOST),
        default=0,
        help="index of the first image (default 0)",
    )
    parser.add_argument(
        "--teacher-steps",
        type=integer(0),
        default=0,
        help="k > 1 draws the last k - 1 steps anew from the teacher (default 0: one step)",
    )
    parser.add_argument("--cfg", type=float, help="guidance of the teacher's steps")
    parser.add_argument(
        "--top-k", type=integer(0), default=0, help="logits they keep (default 0: all)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="mass they keep (default 1)")
    parser.add_argument("--batch-size", type=integer(1), help="images a pass; does not change them")
    parser.add_argument(
        "--scale",
        type=integer(1, _LARGEST_SCALE),
        default=1,
        help="enlarge each pixel this many times (default 1)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run, shared=True)


def run(arguments: argparse.Namespace) -> int:
    """Draw the images and write them."""
    from ..sampling import process_group

    suffix = arguments.out.suffix.lower()
    if suffix in _OTHER_FILES and not arguments.out.is_dir():
        raise ValueError(f"--out: expected a folder, a .png or a .npz file, got {arguments.out}")
    if suffix == ".npz" and arguments.scale > 1:
        raise ValueError(f"--scale: expected 1 for a .npz file, got {arguments.scale}")
    if suffix == ".png":
        check_png(arguments.out)
    with process_group() as (rank, device):
        count = _draw(arguments, suffix, device)
    if rank == 0:
        print(f"wrote {count} images to {arguments.out}")
    return 0


def _draw(arguments: argparse.Namespace, suffix: str, device: Any) -> int:
    """Draw the images to where the suffix says, and return how many."""
    from ..checkpoints.locks import agreed, locked
    from ..sampling import NpzFile, PngFolder, Sampler, balanced_labels, run_job

    try:
        sampler = Sampler(
            one_step_model(arguments.model, arguments.tokenizer, arguments.config),
            steps=arguments.steps,
            teacher_steps=arguments.teacher_steps,
            batch_size=arguments.batch_size,
            cfg=arguments.cfg,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            device=device,
        )
    except TypeError as error:  # a model or a setting of the wrong kind
        raise ValueError(str(error)) from error
    labels = arguments.labels or balanced_labels(
        arguments.num,
        sampler.num_classes,
        shuffled_by=arguments.seed if suffix == ".npz" else None,
    )
    where = {"seed": arguments.seed, "start_index": arguments.start_index}
    if suffix == ".png":
        columns = min(len(labels), 10)

        def draw() -> None:
            images = sampler(labels, **where, output="np", progress=not arguments.quiet)
            picture = tile(images, columns=columns, scale=arguments.scale)
            write_png(arguments.out, picture)

        with locked(arguments.out):
            agreed(draw)
        return len(labels)
    sampler.check_labels(labels)
    npz = suffix == ".npz"
    sink = NpzFile(arguments.out) if npz else PngFolder(arguments.out, arguments.scale)
    names = ("steps", "teacher_steps", "cfg", "top_k", "top_p", "scale")
    settings = {name: str(getattr(arguments, name)) for name in names}
    run_job(sampler, labels, sink, **where, settings=settings, progress=not arguments.quiet)
    return len(labels)


def _labels(text: str) -> list[int]:
    """Return the classes of a comma-separated list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, got {text!r}"
        ) from None
