"""What ``refinements.py`` adds to a network's own loss, or puts in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd2_fast.losses import logit_distillation_loss
from dd2_fast.losses.target import TeacherDistribution
from dd2_fast.training.loop import Losses

TEMPERATURES = (0.1, 0.2, 0.5)  # of drift's kernel, in mean distances
MOST = 10.0  # a weight


def divergence(kind: str, logits: Tensor, teacher: TeacherDistribution) -> Tensor:
    """Mean over tokens of the student's divergence from an unfiltered teacher."""
    if kind == "forward":
        return logit_distillation_loss(logits, teacher).mean()
    log_q, log_p = logits.log_softmax(-1), teacher.logits.log_softmax(-1)
    if kind == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * both.sum(-1).mean()


def straight_through(tokens: Tensor, logits: Tensor, codebook: Tensor) -> Tensor:
    """The tokens' codes ``[*, C]``, with the gradient of the expected code of ``logits [*, V]``."""
    expected = logits.softmax(-1) @ codebook
    return codebook[tokens] + (expected - expected.detach())


def ratio_weights(log_ratio: Tensor, kind: str) -> Tensor:
    """f-distill's ``h(r)``: ``r`` for KL(teacher | student), ``r / (1 + r)`` for Jensen-Shannon, at
    most `MOST` times and on average 1 in a batch ``[B, ...]``."""
    h = log_ratio.sigmoid() if kind == "symmetric" else (log_ratio - log_ratio.amax(0)).exp()
    h = (h / h.mean(0)).clamp(max=MOST)
    return h / h.mean(0)


def drift(x: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """The field V ``[*, N, D]`` at generated features ``x``: to the ``positive [*, P, D]``, away
    from the others of ``x`` (arXiv 2602.04770, algorithm 2)."""
    others = torch.eye(x.shape[-2]).bool()
    away = torch.cdist(x, x).masked_fill(others, torch.inf)
    kernel = -torch.cat([torch.cdist(x, positive), away], -1) / temperature
    kernel = (kernel.softmax(-1) * kernel.softmax(-2)).sqrt()
    to, away = kernel.split([positive.shape[-2], x.shape[-2]], -1)
    pulled = (to * away.sum(-1, keepdim=True)) @ positive
    return pulled - (away * to.sum(-1, keepdim=True)) @ x


def drift_loss(x: Tensor, positive: Tensor) -> Tensor:
    """``|x - (x + V)|^2 / D``, the target a constant, V the sum over `TEMPERATURES` of fields of
    mean square 1; ``x [G, N, D]`` and ``positive [G, P, D]`` are scaled to mean distance sqrt(D).
    """
    with torch.no_grad():
        here = x.detach()
        root = x.shape[-1] ** 0.5
        scale = torch.cat([torch.cdist(here, y).flatten() for y in (here, positive)]).mean() / root
        fields = [drift(here / scale, positive / scale, t * root) for t in TEMPERATURES]
        target = here / scale + sum(v / v.square().mean().sqrt().clamp(min=1e-6) for v in fields)
    return (x / scale - target).square().mean()


class Discriminator:
    """A small network's log density ratio, real over generated, of vectors ``[..., width]``, with
    its optimiser.

    Args:
        penalty: of R1. whole: the ratio is an image's, its tokens' logarithms summed.
    """

    def __init__(self, width: int, seed: int, penalty: float = 0.1, whole: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 128),
                                        nn.SiLU(), nn.Linear(128, 1))  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.layers.parameters(), 1e-3, betas=(0.5, 0.99))
        self.penalty, self.whole = penalty, whole

    def __call__(self, seen: Tensor) -> Tensor:
        found: Tensor = self.layers(seen)[..., 0]
        return found.sum(-1) if self.whole else found

    def r1(self, real: Tensor) -> Tensor:
        """Half the mean square of the gradient in real vectors."""
        real = real.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self(real).sum(), real, create_graph=True)
        return 0.5 * slope.square().sum(-1).mean()

    def update(self, real: Tensor, made: Tensor) -> Losses:
        real, made = real.detach(), made.detach()
        self.layers.requires_grad_(True)
        value = F.softplus(-self(real)).mean() + F.softplus(self(made)).mean()
        self.optimizer.zero_grad()
        (value + self.penalty * self.r1(real)).backward()
        self.optimizer.step()
        self.layers.requires_grad_(False)
        return {"discriminator": value.detach()}
