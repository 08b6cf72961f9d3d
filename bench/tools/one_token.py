"""What stage 2 makes of single tokens: a teacher's own distributions, small networks, seconds each.

    python bench/tools/one_token.py RUN weight_power=1 generator_time_low=0.02,guidance_updates=2

RUN has a tokenizer and a teacher (``dd2-fast train teacher images_llamagen``). Contexts are
prefixes that it drew, at random positions; each is a class of a one-token problem with the code
vectors of RUN, so no error comes from prefixes or from a backbone: what is left is the objective's.
Every setting starts from one stage 1. Rows are ``CsdConfig``'s settings, and ``regression=N``,
steps of DD1's before stage 2; the first row has none changed. Columns, means over the contexts,
the teacher's own draws (as many) first:

* tv: total variation of nearest codes' frequencies from the probabilities;
* entropy: of the frequencies, over that of the draws; variance: the covariance's trace, likewise;
* fd: Fréchet distance in the space of codes to as many draws; lost: the probability of codes that
  are drawn less than a quarter as often as they should be; off: root mean square distance to the
  nearest code a dimension.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd2_fast.losses import (
    ImageRandom,
    TeacherDistribution,
    TimeDistribution,
    csd_loss,
    dd1_loss,
    draw_noisy,
    fcs_loss,
    gts_loss,
)
from dd2_fast.metrics.frechet import frechet_distance
from dd2_fast.models.head import FlowHead
from dd2_fast.models.sampling import draw_tokens
from dd2_fast.ops import flow_solve, nearest_code
from dd2_fast.training.config import CsdConfig
from dd2_fast.training.recipes.image_evaluation import load_judged
from dd2_fast.training.schedule import adam, ramp, set_rate, update_ema
from dd2_fast.training.settings import configure

COLUMNS = ("tv", "entropy", "variance", "fd", "lost", "off")
_DRAWS = 200


class OneToken(nn.Module):
    """A flow head whose features are an embedding of the context; generator or guidance."""

    def __init__(self, contexts: int, dimension: int, width: int = 96) -> None:
        super().__init__()
        self.features = nn.Embedding(contexts, width)
        self.head = FlowHead(dimension=dimension, features=width, width=width, blocks=2)

    def velocity(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.head(x_t, t, self.features(context)[:, None])

    def generate(self, noise: Tensor, context: Tensor) -> Tensor:
        """``[B, 1, C]`` of noise ``[B, 1, C]`` and contexts ``[B]``."""
        return noise - self.head(noise, 1.0, self.features(context)[:, None])


class Problem:
    """Logits ``[K, V]`` of contexts, and the codes ``[V, C]``."""

    def __init__(self, logits: Tensor, codebook: Tensor, seed: int) -> None:
        self.logits, self.codebook, self.seed = logits, codebook, seed
        self.probabilities = logits.double().softmax(-1)
        rng = torch.Generator().manual_seed(seed)
        self.drawn = torch.multinomial(self.probabilities, _DRAWS, True, generator=rng)

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, ImageRandom]:
        """Contexts, noise and further random numbers."""
        context = torch.randint(len(self.logits), (size,), generator=rng)
        random = ImageRandom(int(torch.randint(2**62, (), generator=rng)), torch.arange(size))
        return context, random.normal(1, self.codebook.shape[1]), random

    def distribution(self, context: Tensor) -> TeacherDistribution:
        return TeacherDistribution(self.codebook, self.logits[context][:, None])

    def stage1(self, steps: int, size: int = 256, rate: float = 1.5e-3) -> OneToken:
        torch.manual_seed(self.seed)
        network, rng = OneToken(len(self.logits), self.codebook.shape[1]), torch.Generator()
        rng.manual_seed(self.seed)
        optimizer, times = adam(network, rate, (0.9, 0.95)), TimeDistribution(0.02)
        for step in range(steps):
            context, _, random = self.batch(size, rng)
            codes = torch.multinomial(self.probabilities[context], 1, generator=rng)
            x_t, t, _ = draw_noisy(self.codebook[codes], 2, times, random)
            velocity = network.velocity(x_t, t, context)
            loss = gts_loss(velocity, x_t, t, self.distribution(context)).mean()
            set_rate(optimizer, rate * ramp(step, steps, warmup=20))
            _update(optimizer, loss)
        return network

    def distil(self, start: OneToken, config: CsdConfig, regression: int) -> OneToken:
        """The average generator after DD1's regression, the guidance's start and stage 2."""
        generator, guidance = copy.deepcopy(start), copy.deepcopy(start)
        rng = torch.Generator().manual_seed(self.seed + 1)
        optimizer = adam(generator, 1.0, (0.9, 0.95))
        for step in range(regression):
            context, noise, _ = self.batch(config.batch, rng)
            tokens = flow_solve(noise, self.logits[context][:, None], self.codebook, steps=20)
            loss = dd1_loss(generator.generate(noise, context), self.codebook[tokens]).mean()
            set_rate(optimizer, 1e-3 * ramp(step, regression, warmup=20))
            _update(optimizer, loss)
        ema = copy.deepcopy(generator).requires_grad_(False)
        optimizers = [adam(n, 1.0, config.betas) for n in (generator, guidance)]
        low = config.generator_time_low
        times = TimeDistribution(low, 1.0, config.generator_time_density)
        theirs = TimeDistribution(config.guidance_time_low)
        for step in range(-config.guidance_start, config.steps):
            done = max(step, 0)
            factor = ramp(done, config.steps, floor=config.guidance_floor)
            set_rate(optimizers[1], config.guidance_rate * factor)
            for _ in range(config.guidance_updates if step >= 0 else 1):
                context, noise, random = self.batch(config.batch, rng)
                x = generator.generate(noise, context)
                x_t, t, e = draw_noisy(x.detach(), config.draws, theirs, random)
                loss = fcs_loss(guidance.velocity(x_t, t, context), x.detach(), e).mean()
                _update(optimizers[1], loss)
            if step < 0:
                continue
            x_t, t, _ = draw_noisy(x, config.draws, times, random)
            guidance.requires_grad_(False)
            with torch.set_grad_enabled(config.objective == "sid"):
                fake = x_t - t[..., None] * guidance.velocity(x_t, t, context)
            guidance.requires_grad_(True)
            loss = csd_loss(
                x,
                x_t,
                t,
                fake,
                self.distribution(context),
                objective=config.objective,
                alpha=config.alpha,
                weight_power=config.weight_power,
            ).mean()
            rate = config.generator_rate * ramp(step, config.steps, warmup=config.warmup)
            set_rate(optimizers[0], rate)
            _update(optimizers[0], loss)
            update_ema(ema, generator, step, config.ema_decay)
        return ema

    @torch.no_grad()
    def judge(self, x: Tensor) -> dict[str, float]:
        """Of ``x [K, draws, C]``."""
        book, tokens = self.codebook, nearest_code(x, self.codebook)
        row = dict.fromkeys(COLUMNS, 0.0)
        entropies, variances = torch.zeros(2, 2)
        for k, p in enumerate(self.probabilities):
            found, drawn = (
                v[k].bincount(minlength=len(book)).double() / v.shape[1]
                for v in (tokens, self.drawn)
            )
            row["tv"] += float((found - p).abs().sum() / 2)
            row["lost"] += float(p[found < p / 4].sum())
            codes = book[self.drawn[k]]
            row["fd"] += frechet_distance(x[k], codes)
            entropies += torch.stack([torch.special.entr(v).sum() for v in (found, drawn)]).float()
            variances += torch.stack([v.var(0).sum() for v in (x[k], codes)])
        row = {name: value / len(x) for name, value in row.items()}
        row["entropy"], row["variance"] = (float(v[0] / v[1]) for v in (entropies, variances))
        row["off"] = float((x - book[tokens]).square().mean().sqrt())
        return row

    @torch.no_grad()
    def made(self, network: OneToken) -> Tensor:
        context = torch.arange(len(self.logits)).repeat_interleave(_DRAWS)
        random = ImageRandom(self.seed + 7, torch.arange(len(context)))
        x = network.generate(random.normal(1, self.codebook.shape[1]), context)
        return x.view(len(self.logits), _DRAWS, -1)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def contexts(run: Path, count: int, cfg: float | None, seed: int) -> Problem:
    """The problem of prefixes that the teacher of a run drew."""
    teacher = load_judged(run, torch.device("cpu")).teacher
    labels = torch.arange(count) % teacher.num_classes
    tokens = draw_tokens(teacher, labels, index=torch.arange(count), seed=seed, cfg=cfg)
    rng = torch.Generator().manual_seed(seed)
    where = torch.randint(teacher.num_tokens, (count,), generator=rng)
    rows = torch.arange(count)
    logits = teacher.logits(tokens, labels)[rows, where]
    if cfg is not None:
        scale = torch.as_tensor(teacher.guidance_scale(cfg)).expand(teacher.num_tokens)[where]
        null = teacher.logits(tokens, torch.full_like(labels, teacher.num_classes))[rows, where]
        logits = torch.lerp(null, logits, scale[:, None])
    return Problem(logits, teacher.tokenizer.codebook, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--stage1", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = contexts(arguments.run, arguments.contexts, arguments.cfg, arguments.seed)
    base = CsdConfig(steps=arguments.steps, batch=arguments.batch, ema_decay=0.99)
    base = dataclasses.replace(base, generator_rate=5e-4, guidance_rate=1e-3, guidance_start=40)
    width = max(map(len, ["stage 1 in one step", *arguments.settings]))

    def show(name: str, x: Tensor, began: float) -> None:
        values = "  ".join(f"{k} {v:.3f}" for k, v in problem.judge(x).items())
        print(f"{name:{width}}  {values}  {time.process_time() - began:.0f} s", flush=True)

    entropy = torch.special.entr(problem.probabilities).sum(-1).mean()
    print(f"{len(problem.logits)} contexts, mean entropy {entropy:.3f}", flush=True)
    rng = torch.Generator().manual_seed(arguments.seed + 3)
    other = torch.multinomial(problem.probabilities, _DRAWS, True, generator=rng)
    show("teacher", problem.codebook[other], time.process_time())
    began = time.process_time()
    start = problem.stage1(arguments.stage1)
    show("stage 1 in one step", problem.made(start), began)
    for text in ("", *arguments.settings):
        given: dict[str, Any] = dict(part.split("=") for part in text.split(",") if part)
        regression = int(given.pop("regression", 0))
        table = {k: type(getattr(base, k))(v) for k, v in given.items()}
        config = configure(base, table)
        began = time.process_time()
        show(text or "default", problem.made(problem.distil(start, config, regression)), began)


if __name__ == "__main__":
    main()
