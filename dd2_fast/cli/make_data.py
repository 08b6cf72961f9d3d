"""`dd2-fast make-data`: a teacher's own samples, on which stage 1 trains, as shards on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .settings import MOST, SEEDS, add_config_option, device_here, integer, load_model


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "make-data",
        help="write a teacher's samples as training data",
        description="Write samples of a teacher, or with --pairs the tokens to which DD1's flow "
        "carries noise, as shards with checksums. Run again, a killed job goes on where it "
        "stopped, and damaged shards are made anew. Under torchrun every process makes its share. "
        "The paper's settings are, for VAR, --cfg 1.5 --top-k 900 --top-p 0.95; for LlamaGen, "
        "--cfg 2 --top-k 8000.",
    )
    parser.add_argument(
        "teacher",
        metavar="TEACHER",
        help="checkpoint, bundle, bundled name, or random-causal, random-var and random-llamagen, "
        "small networks whose weights follow from the seed",
    )
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer's checkpoint")
    add_config_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--num", type=integer(1, MOST), required=True, help="how many samples")
    parser.add_argument(
        "--seed", type=integer(*SEEDS), default=0, help="of the whole job (default 0)"
    )
    parser.add_argument(
        "--labels",
        choices=("balanced", "uniform"),
        default="balanced",
        help="go round the classes, or draw them (default balanced)",
    )
    parser.add_argument("--cfg", type=float, help="guidance of the teacher (default: none)")
    parser.add_argument(
        "--top-k", type=integer(0), default=0, help="logits to keep (default 0: all)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="mass to keep (default 1)")
    parser.add_argument(
        "--pairs", action="store_true", help="DD1's pairs of noise and tokens, not plain samples"
    )
    parser.add_argument(
        "--ode-steps", type=integer(1), help="Heun steps of the pairs' flow (default 20)"
    )
    parser.add_argument(
        "--batch-size",
        type=integer(1),
        default=64,
        help="images a pass (default 64); changes speed only",
    )
    parser.add_argument(
        "--shard-size",
        type=integer(1),
        default=4096,
        help="images a file (default 4096); a kill loses at most one file a process",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run, shared=True)


def run(arguments: argparse.Namespace) -> int:
    """Make the shards."""
    from ..sampling import process_group
    from ..training.samples.make_shards import make_shards
    from ..training.samples.shards import shard_ranges

    if arguments.ode_steps is not None and not arguments.pairs:
        raise ValueError("--ode-steps: expected with --pairs only")
    ode_steps = 20 if arguments.ode_steps is None else arguments.ode_steps
    with process_group() as (rank, device):
        make_shards(
            _score(arguments, device),
            arguments.out,
            num=arguments.num,
            seed=arguments.seed,
            ode_steps=ode_steps if arguments.pairs else None,
            labels=arguments.labels,
            batch_size=arguments.batch_size,
            shard_size=arguments.shard_size,
            made_by={
                "teacher_file": Path(arguments.teacher).name,
                "tokenizer_file": arguments.tokenizer and arguments.tokenizer.name,
            },
            progress=not arguments.quiet,
        )
    if rank == 0:
        shards = len(shard_ranges(arguments.num, arguments.shard_size))
        what = "pairs" if arguments.pairs else "samples"
        print(f"wrote {arguments.num} {what} in {shards} shards to {arguments.out}")
    return 0


def _score(arguments: argparse.Namespace, device: Any) -> Any:
    """The teacher that the arguments name, with its sampling settings."""
    from ..losses import TeacherScore
    from ..sampling import resolve_path
    from ..training.recipes.teachers import RANDOM, load_teacher

    teacher: Any
    if arguments.teacher in RANDOM:
        for name in ("tokenizer", "config"):
            if getattr(arguments, name):
                raise ValueError(f"--{name}: {arguments.teacher} has its own")
        teacher = load_teacher(arguments.teacher, seed=arguments.seed)
    else:
        path = resolve_path(arguments.teacher)
        model = load_model(path, arguments.tokenizer, arguments.config)
        teacher = getattr(model, "teacher", None) or model  # a bundle is loaded as its generator
        if not hasattr(teacher, "generate"):
            raise ValueError(
                f"TEACHER: expected a teacher, got a {type(teacher).__name__} in {path}"
            )
    device = device_here(device)
    teacher.to(device)
    if getattr(teacher, "tokenizer", None) is not None:
        teacher.tokenizer.to(device)
    return TeacherScore(teacher, arguments.cfg, arguments.top_k, arguments.top_p)
