"""`dd2-fast tune`: settings found by short trainings, and what mattered."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from .settings import THREADS, integer
from .train import add_configuration_options, configuration

_SAMPLES = (100, 1 << 20)


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "tune",
        help="search for the settings of a training",
        description="Train again and again by a configuration of dd2-fast train, with other "
        "settings each time, and write the best of them as OUT/best.toml, which dd2-fast train "
        "takes; all trials as OUT/trials.json; what mattered as OUT/importances.png. The objective "
        "is the Frechet distance to the teacher's draws. Every trial costs what the configuration "
        "does, so shorten it by --set; trials worse than others on their way are given up. The "
        "same command goes on, and may run several times at once.",
    )
    parser.add_argument("recipe", metavar="CONFIG", help="as of dd2-fast train")
    add_configuration_options(parser)
    parser.add_argument(
        "--trials", type=integer(1), default=40, help="of all processes together (default 40)"
    )
    parser.add_argument(
        "--minutes", type=_minutes, help="begin no trial after them, in this process"
    )
    parser.add_argument(
        "--search",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUES",
        help="settings to search and their values, LOW:HIGH, LOW:HIGH:log or A,B,C; may be "
        "repeated (default: rates, batch and what else the method has)",
    )
    parser.add_argument(
        "--samples",
        type=integer(*_SAMPLES),
        default=2000,
        help="images that a distance is measured by (default 2000)",
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        help="checkpoint of the classifier whose features are compared (default: the one beside "
        "the teacher or of the run; without any, pixels are)",
    )
    parser.add_argument("--out", type=Path, help="folder of the study (default runs/tune-CONFIG)")
    parser.add_argument(
        "--threads", type=integer(*THREADS), help="threads of torch (default: all cores)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, of=None)


def run(arguments: argparse.Namespace) -> int:
    """Work on the study and print what it found."""
    import torch

    from ..processes import place
    from ..training.tuning.report import BEST, PICTURE, TRIALS, finish
    from ..training.tuning.space import default_space, parse_search
    from ..training.tuning.study import import_optuna
    from ..training.tuning.trial import Trials
    from ..training.tuning.tuner import Task, tune

    if place()[1] > 1:
        raise ValueError("tune: expected no torchrun; start the command once for each process")
    module, config = configuration(arguments)
    recipe = module.__name__.rpartition(".")[2]
    import_optuna()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    judge, objective = _judge(arguments, recipe, config)
    searched = parse_search(arguments.search, config) or default_space(config)
    out = arguments.out or Path("runs") / f"tune-{Path(arguments.recipe).stem}"
    judged = {"samples": arguments.samples, "classifier": str(arguments.classifier or "")}
    task = Task(recipe, config, searched, objective, judged)
    print(f"searching {', '.join(f'{name}={values}' for name, values in searched.items())}")
    trials = Trials(module, config, searched, out, judge, progress=not arguments.quiet)
    try:
        study = tune(
            task,
            out,
            trials,
            trials=arguments.trials,
            minutes=arguments.minutes,
            say=lambda text: print(text, flush=True),
            floor=lambda: trials.floor,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on with {out}") from None
    best = study.best()
    drawn = finish(out, task, study)
    if best is None:
        print(f"no trial is complete; wrote {out / TRIALS}")
        return 0
    print(f"best: trial {best.number}, {objective} {best.value:.4f}")
    names = [BEST, TRIALS, *([PICTURE] if drawn else [])]
    print(f"wrote {', '.join(str(out / name) for name in names)}")
    return 0


def _judge(arguments: argparse.Namespace, recipe: str, config: Any) -> tuple[Any, str]:
    """What measures distances, and the name of the one that is to be small."""
    from ..training.tuning.judge import FEATURES, PIXELS, Judge, classifier_beside

    if not hasattr(config, "score"):
        raise ValueError(f"CONFIG: expected a recipe that makes images, got {recipe}")
    if getattr(config, "last", "generator") != "generator":
        raise ValueError(f"CONFIG: expected one that makes a generator, got {arguments.recipe}")
    given, makes_one = arguments.classifier, False
    if given is None and recipe == "distil":
        given = classifier_beside(config.source.teacher)
    elif given is None:
        makes_one = (
            config.classifier.steps if recipe == "images" else config.classifier_epochs
        ) > 0
    judge = Judge(arguments.samples, dataclasses.asdict(config.score), given, makes_one)
    if given is None and not makes_one:
        print("no classifier: images are compared in pixels; --classifier gives one")
        return judge, PIXELS
    return judge, FEATURES


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value
