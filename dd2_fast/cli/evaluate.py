"""`dd2-fast evaluate`: how good a run's networks are on a user's images."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..reading import read_json
from .settings import THREADS, add_config_option, apply_settings, integer
from .table import evaluation_table

FILE = "evaluation.json"


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="judge a run on images that were held out",
        description="Compare what the networks of a run make with held-out images and with the "
        "teacher's own draws: a table, the same as RUN/evaluation.json, and a picture of each way "
        "to make images in RUN/pictures. A run of `dd2-fast train images_var`, or images_llamagen, "
        "ends with it.",
    )
    parser.add_argument(
        "folder", metavar="RUN", help="folder of a run or a bundle, or a bundled name"
    )
    parser.add_argument("--data", required=True, help="images, as of dd2-fast train images_var")
    parser.add_argument("--teacher", help="checkpoint of the teacher, where the run has none")
    parser.add_argument("--tokenizer", help="checkpoint of the teacher's tokenizer")
    add_config_option(parser)
    parser.add_argument("--out", type=Path, help="folder to write (default: the run's own)")
    parser.add_argument("--seed", type=integer(0, 1 << 62), default=0, help="of every draw")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="override settings of data, evaluation, classifier or score, as in "
        "evaluation.samples=1000; may be repeated",
    )
    parser.add_argument("--device", default="auto", help="default: CUDA where there is one")
    parser.add_argument(
        "--threads", type=integer(*THREADS), help="threads of torch (default: all cores)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge, print the table, and write it and the pictures."""
    import torch

    from ..checkpoints.files import check_writable, write_atomic
    from ..checkpoints.locks import locked
    from ..sampling import resolve_path
    from ..sampling.sources import bundled_names
    from ..training.parallel import Parallel
    from ..training.recipes.distil import choose_device
    from ..training.recipes.image_evaluation import (
        PICTURES,
        judge,
        load_judged,
        train_classifier,
    )
    from ..training.recipes.teachers import load_teacher
    from ..training.samples.image_batches import ImageData
    from ..training.settings import parse_config

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    folder = resolve_path(arguments.folder)
    if arguments.out is None and arguments.folder in bundled_names():
        raise ValueError(f"--out: expected a folder for the bundled '{arguments.folder}', got none")
    out = arguments.out or folder
    check_writable(out)
    device = choose_device(arguments.device)
    teacher = None
    if arguments.teacher:
        settings = parse_config(arguments.config)
        teacher = load_teacher(arguments.teacher, arguments.tokenizer or "", 0, settings)
    found = load_judged(folder, device, teacher)
    config = _settings(folder, found.tokenizer, arguments.set)
    data = ImageData.open(arguments.data, config.data, Parallel(device=device))
    if found.classifier is None and config.classifier.steps:
        parallel = Parallel(device=device)
        found.classifier = train_classifier(data, config.classifier, parallel, arguments.seed)
    sampling = dataclasses.asdict(config.score)
    with locked(out):
        told = judge(found, out / PICTURES, data, config.evaluation, sampling, arguments.seed)
        text = json.dumps({**told, "data": data.report()}, indent=2, sort_keys=True) + "\n"
        write_atomic(out / FILE, text.encode())
    print(evaluation_table(told))
    print(f"wrote {out / FILE} and {out / PICTURES}")
    return 0


def _settings(folder: Path, tokenizer: Any, assignments: list[str]) -> Any:
    """The run's settings of data, evaluation and score; of a run of loaded teachers the tokenizer
    tells the images' size."""
    from ..training.recipes.images import ImagesConfig
    from ..training.settings import configure

    config = ImagesConfig()
    path = folder / "run.json"
    report = read_json(path, "a run's settings") if path.is_file() else {}
    settings = report.get("settings", {})
    if report.get("recipe") == "images":
        kept = ("data", "evaluation", "classifier", "score")
        config = configure(config, {name: settings[name] for name in kept})
    else:
        table: dict[str, Any] = {"data": {"channels": getattr(tokenizer, "image_channels", 3)}}
        if tokenizer.image_size is not None:  # else --set data.size=
            table["data"]["size"] = tokenizer.image_size
        if isinstance(settings.get("score"), dict):
            table["score"] = settings["score"]
        config = configure(config, table)
    return apply_settings(config, assignments)
