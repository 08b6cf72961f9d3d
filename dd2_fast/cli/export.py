"""`dd2-fast export`: a generator and its decoder as one file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .inspect import size_of
from .settings import add_model_options, check_new, integer, one_step_model


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a model as ONNX, or for torch alone",
        description="Write a one-step generator and its decoder as one file that runs without this "
        "package: noise and labels in, images out. OUT ends in .onnx (pip install "
        "'dd2-fast[export]'), in .pt2, for torch.export.load, or in .aoti, compiled for this kind "
        "of processor.",
    )
    add_model_options(parser, "model")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    parser.add_argument(
        "--batch", type=integer(1), help="images a call; without it the file takes any number"
    )
    parser.add_argument(
        "--teacher-steps", type=integer(0), default=0, help="refused above 1, with the reason"
    )
    parser.add_argument(
        "--uint8", action="store_true", help="images as uint8 [B, H, W, c], not float32 in [0, 1]"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load MODEL and write OUT."""
    from ..checkpoints.locks import locked
    from ..sampling.exporting import check_one_pass, export, writer

    out = arguments.out
    check_one_pass(arguments.teacher_steps)
    writer(out)
    check_new(out, arguments.force)
    model = one_step_model(arguments.model, arguments.tokenizer, arguments.config)
    with locked(out):
        try:
            export(model, out, batch=arguments.batch, steps=arguments.steps, uint8=arguments.uint8)
        except TypeError as error:  # a model of the wrong kind
            raise ValueError(str(error)) from error
    print(f"wrote {out}: {size_of(out)}")
    return 0
