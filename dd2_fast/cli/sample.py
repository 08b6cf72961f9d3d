"""`dd2-fast sample`: images from labels, as PNG files or one archive."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .picture import check_png, tile, write_png
from .settings import (
    MOST,
    SEEDS,
    add_model_options,
    class_list,
    device_here,
    integer,
    one_step_model,
)

_LARGEST_SCALE = 1 << 10
_GRID = 10  # rows and columns
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
    parser.add_argument(
        "--labels",
        type=class_list,
        help="classes, for example 0,1,2: one image each, or those of --num and --per-class",
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "--num", type=integer(1, MOST), help="how many images, going round the classes"
    )
    wanted.add_argument("--per-class", type=integer(1, MOST), help="how many images of each class")
    parser.add_argument(
        "--grid",
        type=Path,
        metavar="FILE.png",
        help=f"also a picture of up to {_GRID} images of each of the first {_GRID} classes",
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
    parser.add_argument(
        "--jacobi",
        type=integer(0),
        default=0,
        metavar="K",
        help="passes of the teacher over all tokens at once, with the same noise (default 0)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="of a logit student's codes: below 1 likelier images, above 1 more variety (default: "
        "its own, 1 unless trained otherwise)",
    )
    parser.add_argument(
        "--teacher",
        help="the teacher of a model that comes without: a bundled name, a bundle or a checkpoint",
    )
    parser.add_argument("--cfg", type=float, help="guidance of the teacher's steps or passes")
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
    parser.set_defaults(run=run, shared=True, refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Draw the images and write them."""
    from ..sampling import process_group

    suffix = arguments.out.suffix.lower()
    if suffix in _OTHER_FILES and not arguments.out.is_dir():
        raise ValueError(f"--out: expected a folder, a .png or a .npz file, got {arguments.out}")
    if suffix == ".npz" and arguments.scale > 1:
        raise ValueError(f"--scale: expected 1 for a .npz file, got {arguments.scale}")
    if arguments.labels is None and arguments.num is None and arguments.per_class is None:
        arguments.refuse("expected --labels, --num or --per-class, got none of them")
    if suffix == ".png":
        check_png(arguments.out)
    if arguments.grid is not None:
        check_png(arguments.grid, "--grid")
    with process_group() as (rank, device):
        count = _draw(arguments, suffix, device)
    if rank == 0:
        print(f"wrote {count} images to {arguments.out}")
    return 0


def _draw(arguments: argparse.Namespace, suffix: str, device: Any) -> int:
    """Draw the images to where the suffix says, and return how many."""
    from ..checkpoints.locks import agreed, locked
    from ..sampling import NpzFile, PngFolder, Sampler, run_job

    try:
        model = one_step_model(arguments.model, arguments.tokenizer, arguments.config)
        if arguments.temperature is not None:
            model = _at_temperature(model, arguments.temperature)
        if arguments.teacher is not None:
            _attach_teacher(model, arguments.teacher)
        sampler = Sampler(
            model,
            steps=arguments.steps,
            teacher_steps=arguments.teacher_steps,
            jacobi=arguments.jacobi,
            batch_size=arguments.batch_size,
            cfg=arguments.cfg,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            device=device_here(device),
        )
    except TypeError as error:  # a model or a setting of the wrong kind
        raise ValueError(str(error)) from error
    labels = _wanted(arguments, sampler.num_classes, shuffled=suffix == ".npz")
    where = {"seed": arguments.seed, "start_index": arguments.start_index}
    if suffix == ".png":
        columns = min(len(labels), 10)

        def draw() -> None:
            images = sampler(labels, **where, output="np", progress=not arguments.quiet)
            picture = tile(images, columns=columns, scale=arguments.scale)
            write_png(arguments.out, picture)

        with locked(arguments.out):
            agreed(draw)
        _write_grid(arguments, sampler, labels)
        return len(labels)
    sampler.check_labels(labels)
    npz = suffix == ".npz"
    sink = NpzFile(arguments.out) if npz else PngFolder(arguments.out, arguments.scale)
    names = ("steps", "teacher_steps", "cfg", "top_k", "top_p", "scale")
    settings = {name: str(getattr(arguments, name)) for name in names}
    if arguments.jacobi:  # what came later counts where it is not what earlier versions did
        settings["jacobi"] = str(arguments.jacobi)
    run_job(sampler, labels, sink, **where, settings=settings, progress=not arguments.quiet)
    _write_grid(arguments, sampler, labels)
    return len(labels)


def _at_temperature(model: Any, temperature: float) -> Any:
    """A logit student at another temperature."""
    if not hasattr(model, "at_temperature"):
        kind = type(getattr(model, "generator", model)).__name__
        raise ValueError(f"--temperature: expected with a logit student, got a {kind}")
    return model.at_temperature(temperature)


def _attach_teacher(model: Any, source: str) -> None:
    """Give a one-step generator the teacher of a bundle or of a file; it takes the generator's
    tokenizer."""
    from .. import checkpoints
    from ..checkpoints.bundle import load_bundle
    from ..sampling import resolve_path

    if getattr(model, "teacher", None) is not None:
        raise ValueError("--teacher: expected a model without one, got a model that has its own")
    path = resolve_path(source)
    teacher = load_bundle(path).teacher if (path / "run.json").is_file() else checkpoints.load(path)
    if not hasattr(teacher, "logits"):
        raise ValueError(f"--teacher: expected a teacher, got a {type(teacher).__name__} in {path}")
    teacher.tokenizer = model.tokenizer
    model.teacher = teacher


def _wanted(arguments: argparse.Namespace, num_classes: int, *, shuffled: bool) -> list[int]:
    """The label of each image."""
    from ..sampling import balanced_labels

    given = arguments.labels
    if arguments.num is None and arguments.per_class is None:
        return list(given)
    classes = range(num_classes) if given is None else given
    count = arguments.num
    if count is None:
        count = arguments.per_class * len(classes)
        if count > MOST:
            raise ValueError(
                f"--per-class: expected at most {MOST // len(classes)} for {len(classes)} classes, "
                f"got {arguments.per_class}"
            )
    places = balanced_labels(count, len(classes), shuffled_by=arguments.seed if shuffled else None)
    return [classes[place] for place in places]


def _write_grid(arguments: argparse.Namespace, sampler: Any, labels: list[int]) -> None:
    """The picture of `--grid`: some of the job's images, drawn again, a row for each class."""
    from ..checkpoints.locks import agreed, locked

    if arguments.grid is None:
        return
    sampler.check_labels(labels)
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    rows = list(places.values())[:_GRID]
    columns = min(_GRID, *map(len, rows)) if len(rows) > 1 else min(_GRID, len(rows[0]))
    most = columns if len(rows) > 1 else _GRID * _GRID
    shown = [place for row in rows for place in row[:most]]

    def draw() -> None:
        images = sampler(
            [labels[place] for place in shown],
            seed=[arguments.seed] * len(shown),
            indices=[arguments.start_index + place for place in shown],
            output="np",
        )
        write_png(arguments.grid, tile(images, columns=columns, scale=arguments.scale))

    with locked(arguments.grid):
        agreed(draw)
