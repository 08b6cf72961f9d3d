"""`dd2-fast demo`: one step beside the teacher's, in pictures, milliseconds and distances."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .picture import Panel, check_png, draw_panels, stack, text_chunk, write_png
from .settings import SEEDS, integer
from .table import NAMES, quality_table

_CLASSES = 10
_HEIGHT = 56  # of an image in a grid, a multiple of 8 and of 28
_ROWS = 5  # of a grid
_RUNS = 15
_MOST_SAMPLES = 1_000_000  # they are held in memory
_BATCHES = (1, 10, 80)
_SPEED_NOTE = """\
one step saves the passes that wait for one another, not arithmetic: a CPU core, which a large batch
fills, gains in the latency of small batches"""
_NOTES = """\
real, tokenized: held-out digits through the tokenizer, as good as any model of tokens can be
teacher: the autoregressive model, one token after the other
one step: the distilled generator, all tokens in one pass
set prediction: tokens drawn independently, each from the teacher's own marginal
stage 1, one step: the generator before score distillation
accuracy: share that a classifier trained on real digits recognises; says little about variety
FD: Fréchet distance of classifier features to held-out real digits; lower is better
FD class: its mean inside each class, which sees lost variety; FD pixel: the same on pixels
NLL: nats a token under the teacher; sees lost dependencies, and tokens between two codes"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "demo",
        help="the bundled models: teacher and one step, side by side",
        description="Draw the same labels with the teacher, step by step, and with the distilled "
        "generator in one pass, of the digits and of Fashion-MNIST; write both as a picture and "
        "print speed and, of the digits, quality. "
        "Needs scikit-learn for the real digits: pip install 'dd2-fast[demo]'.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo.png"), help="picture to write (default demo.png)"
    )
    parser.add_argument("--seed", type=integer(*SEEDS), default=0, help="of every draw (default 0)")
    parser.add_argument(
        "--samples",
        type=integer(2 * _CLASSES, _MOST_SAMPLES),
        default=5000,
        help="images a row of the table (default 5000)",
    )
    parser.add_argument("--model", default="digits", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture and print the tables."""
    check_png(arguments.out)
    from ..checkpoints.locks import locked

    with locked(arguments.out):
        return _show(arguments)


def _show(arguments: argparse.Namespace) -> int:
    from ..checkpoints import load_bundle
    from ..metrics import evaluate
    from ..sampling import resolve_path
    from ..training.samples.digits import load_digits

    data = load_digits()
    bundle = load_bundle(resolve_path(arguments.model))
    bundles = {arguments.model: bundle}
    if arguments.model == "digits":
        bundles["fashion"] = load_bundle(resolve_path("fashion"))
    with _one_thread():
        print("speed: milliseconds an image with decoding, on one thread, both in turn")
        times = [_speed(name, each, arguments.seed) for name, each in bundles.items()]
        print(f"{_SPEED_NOTE}\n")
        _write_picture(list(bundles.values()), arguments.out, arguments.seed, times)
        real = len(data.test_labels)
        print(f"\nquality of {arguments.samples} digits against {real} held-out real ones")
        rows = evaluate(bundle, data, num_samples=arguments.samples, seed=arguments.seed)
    print(quality_table(rows))
    print(f"\n{_NOTES}")
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread.

    The networks are so small that a second one gains little, and where another process holds its
    core, it makes every operation wait.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _speed(model: str, bundle: Any, seed: int) -> dict[str, float]:
    """Print steps, passes and milliseconds an image; return the latter for one image alone."""
    labels = _labels(max(_BATCHES) // _CLASSES)
    draws = {"teacher": _teacher(bundle, seed), "one_step": _one_step(bundle, seed)}
    measured = [_milliseconds(draws, labels[:batch]) for batch in _BATCHES]
    times = {name: [values[name] for values in measured] for name in draws}
    batches = "".join(f"{f'batch {batch}':>10}" for batch in _BATCHES)
    print(f"{Path(model).name[:19]:<20}{'steps':>7}{'passes':>8}{batches}")
    for name, count in (("teacher", len(bundle.teacher.steps)), ("one_step", 1)):
        row = "".join(f"{value:>10.3f}" for value in times[name])
        print(f"{NAMES[name]:<20}{count:>7}{count:>8}{row}")
    pairs = zip(times["teacher"], times["one_step"], strict=True)
    print(f"{'speed-up':<35}" + "".join(f"{f'{slow / fast:.1f}x':>10}" for slow, fast in pairs))
    return {name: row[0] for name, row in times.items()}


def _write_picture(bundles: list[Any], out: Path, seed: int, times: list[dict[str, float]]) -> None:
    rows = [_panels(*each, seed) for each in zip(bundles, times, strict=True)]
    said = "\n".join(panel.subtitle for row in rows for panel in row)
    picture = stack([draw_panels(row, columns=_CLASSES, height=_HEIGHT) for row in rows])
    write_png(out, picture, pnginfo=text_chunk(said))
    print(f"wrote {out}")


def _panels(bundle: Any, times: dict[str, float], seed: int) -> list[Panel]:
    """The grids of one model with their captions."""
    from ..metrics import shuffle_within_class, teacher_sampling
    from ..sampling.outputs import to_uint8

    labels = _labels(_ROWS)
    steps = len(bundle.teacher.steps)
    pool = torch.arange(_CLASSES).repeat(100)
    drawn = bundle.teacher.sample(pool, seed=seed, **teacher_sampling(bundle))
    independent = shuffle_within_class(drawn, pool, seed=seed)[: len(labels)]
    with torch.inference_mode():
        grids = {
            "teacher": _teacher(bundle, seed)(labels),
            "one_step": _one_step(bundle, seed)(labels),
            "set_prediction": bundle.tokenizer.decode(bundle.tokenizer.embed(independent)),
        }
    gain = times["teacher"] / times["one_step"]
    captions = {
        "teacher": ("Teacher", f"{steps} steps, {times['teacher']:.1f} ms for one image"),
        "one_step": (
            "Distilled, one step",
            f"1 step, {times['one_step']:.1f} ms for one image, {gain:.1f}x faster",
        ),
        "set_prediction": ("Set prediction", "1 step, every token on its own"),
    }
    return [Panel(*captions[name], to_uint8(images).numpy()) for name, images in grids.items()]


def _labels(rows: int) -> Tensor:
    """Return the labels of a grid: one class a column."""
    return torch.arange(_CLASSES).repeat(rows)


def _teacher(bundle: Any, seed: int) -> Callable[[Tensor], Tensor]:
    from ..metrics import teacher_sampling

    options = teacher_sampling(bundle)

    @torch.inference_mode()
    def draw(labels: Tensor) -> Tensor:
        tokens = bundle.teacher.sample(labels, seed=seed, **options)
        return bundle.tokenizer.decode(bundle.tokenizer.embed(tokens))

    return draw


def _one_step(bundle: Any, seed: int) -> Callable[[Tensor], Tensor]:
    from ..sampling import Sampler

    sampler = Sampler(bundle)
    return lambda labels: sampler(labels, seed=seed)


def _milliseconds(draws: dict[str, Callable[[Tensor], Tensor]], labels: Tensor) -> dict[str, float]:
    """Return the median milliseconds an image of each draw, in turn, after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(_RUNS + 2):
        for name, draw in draws.items():
            start = time.perf_counter()
            draw(labels)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: 1e3 * statistics.median(values[2:]) / len(labels) for name, values in seconds.items()
    }
