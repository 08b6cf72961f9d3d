"""What editing makes of held-out Fashion-MNIST by the bundled VAR model, as a table and a picture.

    python bench/editing.py --data /usr/share/datasets/fashion-mnist --out editing.png

Every row is the same images with the same part drawn anew: pasted, the one-step draw of the label
put over the reconstruction; and edited, the last k - 1 of the teacher's steps in the mask. Accuracy
is that of a classifier of real images for the label asked for; FD the Fréchet distance of its
features to other held-out images; known error the mean squared error outside the mask over that of
the tokenizer's reconstruction; edge the mean step across the mask's edge over the reconstruction's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.cli.picture import Panel, draw_panels, write_png
from dd2_fast.metrics import frechet_distance
from dd2_fast.metrics.image_classifier import describe
from dd2_fast.sampling import Sampler, resolve_path
from dd2_fast.sampling.outputs import to_uint8
from dd2_fast.training.image_config import DataConfig
from dd2_fast.training.samples.image_batches import ImageData

SHOWN, CLASSES = 10, 10


def masks() -> dict[str, Tensor]:
    """Of 28 x 28 pixels, 7 x 7 tokens: three columns, a box of nine, and all around it."""
    right, centre = torch.zeros(2, 28, 28, dtype=torch.bool)
    right[:, 16:] = True
    centre[8:20, 8:20] = True
    return {"right half": right, "centre": centre, "border": ~centre}


def edge(images: Tensor, mask: Tensor) -> float:
    """Mean absolute step between neighbours of which one is masked."""
    across = (mask[:, 1:] != mask[:, :-1]), (mask[1:] != mask[:-1])
    steps = images.diff(dim=-1)[..., across[0]], images.diff(dim=-2)[..., across[1]]
    return float(torch.cat([step.flatten() for step in steps]).abs().mean())


class Judge:
    """The columns of a row."""

    def __init__(self, bundle: Any, real: Tensor, others: Tensor) -> None:
        self.bundle, self.real = bundle, real
        tokenizer = bundle.tokenizer
        self.through = tokenizer.decode(tokenizer.embed(tokenizer.encode(real)))
        self.features = describe(bundle.classifier, others)[0]

    def row(self, name: str, images: Tensor, labels: Tensor, mask: Tensor) -> str:
        features, predicted = describe(self.bundle.classifier, images)
        known = [
            float((made - self.real)[..., ~mask].square().mean()) for made in (images, self.through)
        ]
        steps = edge(images, mask), edge(self.through, mask)
        accuracy = float((predicted == labels).double().mean())
        distance = frechet_distance(features, self.features)
        values = f"{accuracy:>10.3f}{distance:>8.2f}{known[0] / known[1]:>13.2f}"
        return f"{name:<22}{values}{steps[0] / steps[1]:>8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=Path("editing.png"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, help="guidance of the teacher's steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = ImageData.open(arguments.data, DataConfig(size=28, channels=1, flip=False))
    numbers = data.some_held_out(3 * arguments.images)
    real, labels = data.load(numbers[: arguments.images])
    bundle = load_bundle(resolve_path("fashion"))
    judge = Judge(bundle, real, data.load(numbers[arguments.images :])[0])
    sampler = Sampler(bundle, teacher_steps=2, cfg=arguments.cfg)
    one_step = Sampler(bundle)
    panels = [Panel("Held out", "through the tokenizer", shown(judge.through, labels))]
    for change, wanted in (("its own class", labels), ("the next class", (labels + 1) % CLASSES)):
        plain = one_step(wanted, seed=arguments.seed)
        for where, mask in masks().items():
            print(f"\n{where} drawn anew, {change}")
            print(f"{'':<22}{'accuracy':>10}{'FD':>8}{'known error':>13}{'edge':>8}")
            print(judge.row("reconstruction", judge.through, labels, mask))
            print(judge.row("pasted", plain.where(mask, judge.through), wanted, mask))
            for steps in (1, 2, 3, 4, 5):
                made = sampler.edit(real, mask, wanted, teacher_steps=steps, seed=arguments.seed)
                print(judge.row(f"edited, {steps} steps", made, wanted, mask), flush=True)
                if steps == 3 and (wanted is labels or where == "border"):
                    panels.append(Panel(where, f"{change}, {steps} steps", shown(made, labels)))
            kept = sampler.edit(
                real, mask, wanted, teacher_steps=3, seed=arguments.seed, keep_pixels=True
            )
            print(judge.row("keep_pixels, 3 steps", kept, wanted, mask))
    write_png(arguments.out, draw_panels(panels, columns=SHOWN, height=32))
    print(f"\nwrote {arguments.out}")


def shown(images: Tensor, labels: Tensor) -> Any:
    """Four rows of one image a class."""
    first: Callable[[int], Tensor] = lambda label: (labels == label).nonzero()[:4, 0]  # noqa: E731
    order = torch.stack([first(label) for label in range(CLASSES)], 1).flatten()
    return to_uint8(images[order]).numpy()


if __name__ == "__main__":
    main()
