"""Where a run's generators differ from the teacher's draws: in mean or in spread, at which tokens.

    python bench/tools/variety.py RUN --data IMAGES               a row for each generator
    python bench/tools/variety.py RUN --data IMAGES --sampling cfg=1.25 top_p=0.9,cfg=1.5

RUN is a folder of ``dd2-fast train images_var`` or ``images_llamagen``. With ``--sampling`` the
rows are the teacher's with those settings, compared with real images: what would be distilled.
Columns, means over the classes, in the classifier's features unless it says pixels:

* mean, spread: the terms of the Fréchet distance, ``|m - m'|^2``, ``tr(C + C' - 2 (C C')^1/2)``;
* variance, in pixels: the trace of the covariance over the reference's;
* entropy: of the (nearest) codes of a position, in nats, over the reference's; nll: under the
  teacher; prefix: the teacher's mean entropy after these tokens; off: root mean square distance to
  the nearest code a dimension; reader, where stage 0 has made one: ``KL(teacher | reader)`` of what
  the teacher says after the nearest codes and its copy after the vectors themselves. These by
  quarters of the positions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd2_fast import checkpoints
from dd2_fast.cli.evaluate import _settings
from dd2_fast.metrics.frechet import frechet_distance
from dd2_fast.metrics.image_report import Seen
from dd2_fast.metrics.report import shuffle_within_class
from dd2_fast.models.sampling import draw_tokens
from dd2_fast.ops import nearest_code
from dd2_fast.ops.philox import image_normal
from dd2_fast.training.parallel import Parallel
from dd2_fast.training.recipes.image_evaluation import load_judged
from dd2_fast.training.samples.image_batches import ImageData

_BATCH = 250


class Variety:
    """Images of one list of labels, compared class by class with reference images."""

    def __init__(self, found: Any, labels: Tensor, copy: Any = None) -> None:
        self.found, self.labels, self.copy = found, labels, copy
        self.book = found.tokenizer.codebook

    def seen(self, x: Tensor) -> Seen:
        """Of embeddings ``[N, n, C]``."""
        decode = self.found.tokenizer.decode
        return Seen(self.found.classifier, (decode(p) for p in x.split(_BATCH)), self.labels)

    def entropy(self, tokens: Tensor) -> Tensor:
        """``[n]``: of a position's codes inside the classes."""
        total = torch.zeros(tokens.shape[1])
        classes = self.labels.unique()
        for label in classes:
            inside = tokens[self.labels == label]
            for i in range(tokens.shape[1]):
                p = inside[:, i].bincount().double() / len(inside)
                total[i] += float(torch.special.entr(p).sum())
        return total / len(classes)

    def teacher(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[n]`` each: NLL, without guidance, and entropy at the prefixes."""
        nll, entropy = torch.zeros(2, tokens.shape[1]).double()
        for part, label in zip(tokens.split(_BATCH), self.labels.split(_BATCH), strict=True):
            log_p = self.found.teacher.logits(part, label).double().log_softmax(-1)
            nll -= log_p.gather(-1, part[..., None])[..., 0].sum(0)
            entropy += torch.special.entr(log_p.exp()).sum((0, 2))
        return nll / len(tokens), entropy / len(tokens)

    def reader(self, x: Tensor, tokens: Tensor, reader: Any) -> Tensor:
        """``[n]``: the divergence of stage 0's copy at vectors from the teacher at codes."""
        total = torch.zeros(tokens.shape[1]).double()
        for v, part, y in zip(*(a.split(_BATCH) for a in (x, tokens, self.labels)), strict=True):
            log_p = self.found.teacher.logits(part, y).double().log_softmax(-1)
            log_q = reader.logits(v, y).double().log_softmax(-1)
            total += (log_p.exp() * (log_p - log_q)).sum((0, 2))
        return total / len(tokens)

    def compare(self, x: Tensor, reference: Seen, wanted: Tensor) -> dict[str, Any]:
        """The row of embeddings, beside the reference and its entropies ``[n]``."""
        seen, tokens = self.seen(x), nearest_code(x, self.book)
        row: dict[str, Any] = {k: [] for k in ("fd", "mean", "spread", "variance", "pixels")}
        for label in self.labels.unique():
            a, b = (s.features[s.labels == label] for s in (seen, reference))
            mean = float((a.mean(0) - b.mean(0)).square().sum())
            fd = frechet_distance(a, b)
            pixels = [s.pixels[s.labels == label].var(0).sum() for s in (seen, reference)]
            values = fd, mean, fd - mean, a.var(0).sum() / b.var(0).sum(), pixels[0] / pixels[1]
            for name, value in zip(row, values, strict=True):
                row[name].append(float(value))
        row = {name: sum(values) / len(values) for name, values in row.items()}
        row["fd_all"] = frechet_distance(seen.features, reference.features)
        nll, prefix = self.teacher(tokens)
        off = (x - self.book[tokens]).square().mean((0, 2)).sqrt()
        by_position = {"entropy": self.entropy(tokens) / wanted, "nll": nll, "prefix": prefix}
        by_position["off"] = off
        if self.copy is not None:
            by_position["reader"] = self.reader(x, tokens, self.copy)
        for name, value in by_position.items():
            row[name] = [round(float(q.mean()), 3) for q in value.tensor_split(4)]
        return row


def show(name: str, row: dict[str, Any]) -> None:
    """Print a row as JSON."""
    text = {k: v if isinstance(v, list) else round(v, 3) for k, v in row.items()}
    print(json.dumps({"row": name, **text}), flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling", nargs="+", metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = load_judged(arguments.run, torch.device("cpu"))
    config = _settings(arguments.run, found.tokenizer, [])
    data = ImageData.open(arguments.data, config.data, Parallel(device=torch.device("cpu")))
    numbers = data.some_held_out(arguments.samples)
    labels = data.labels(numbers)
    file = arguments.run / "reader.safetensors"
    copy = checkpoints.load(file, tokenizer=found.tokenizer) if file.is_file() else None
    variety, book = Variety(found, labels, copy), found.tokenizer.codebook
    index = torch.arange(len(labels))

    def drawn(seed: int, **sampling: Any) -> Tensor:
        parts = zip(labels.split(_BATCH), index.split(_BATCH), strict=True)
        options = {"cfg": None, **sampling}
        return torch.cat(
            [draw_tokens(found.teacher, y, index=i, seed=seed, **options) for y, i in parts]
        )

    seed = arguments.seed
    if arguments.sampling:
        images = torch.cat(
            [data.load(part.numpy())[0] for part in torch.as_tensor(numbers).split(_BATCH)]
        )
        real = Seen(found.classifier, iter(images.split(_BATCH)), labels)
        codes = torch.cat([found.tokenizer.encode(part) for part in images.split(_BATCH)])
        wanted = variety.entropy(codes)
        show("real images, tokenised", variety.compare(book[codes], real, wanted))
        for text in arguments.sampling:
            pairs = dict(part.split("=") for part in text.split(","))
            sampling = {k: int(v) if k == "top_k" else float(v) for k, v in pairs.items()}
            show(text, variety.compare(book[drawn(seed, **sampling)], real, wanted))
        return
    sampling = {k: getattr(config.score, k) for k in ("cfg", "top_k", "top_p")}
    tokens = drawn(seed + 11, **sampling)
    reference, wanted = variety.seen(book[tokens]), variety.entropy(tokens)
    other = drawn(seed + 12, **sampling)
    show("teacher", variety.compare(book[other], reference, wanted))
    shuffled = shuffle_within_class(other, labels, seed=seed)
    show("set prediction", variety.compare(book[shuffled], reference, wanted))
    for name, generator in found.generators.items():
        shape = generator.num_tokens, book.shape[1]
        noise = image_normal(seed, index, shape, stream=7)
        x = torch.cat(
            [
                generator(e, y)
                for e, y in zip(noise.split(_BATCH), labels.split(_BATCH), strict=True)
            ]
        )
        show(name, variety.compare(x, reference, wanted))
        show(
            f"{name}, nearest codes",
            variety.compare(book[nearest_code(x, book)], reference, wanted),
        )


if __name__ == "__main__":
    main()
