"""What explains a result of an operator: its definition in NumPy float64, and how far float32 may
be from it.

Single precision decides a near tie at the top-p threshold either way, so a row may have several
sets of codes that a correct operator keeps. They are nested: the largest n logits, for some n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ops.strategies import Teacher, Tokens
from torch import Tensor

EPSILON = 2.0**-24
NEGLIGIBLE = 2.0**-40  # kNegligible in csrc/cpu/conditional_score.cpp
MASS_ROUNDING = 2e-5  # relative, of a float32 sum of up to 20,000 masses


def double(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()


def guided_row(teacher: Teacher, row: int, factor: float = 1.0) -> np.ndarray:
    """Guided logits times ``factor``, rounded to float32 as the specification forms them: guidance
    by one fma, then the product."""
    cond = teacher.logits[row].float().numpy()
    if teacher.uncond_logits is None:
        with np.errstate(over="ignore"):
            return (cond * np.float32(factor)).astype(np.float64)
    uncond = teacher.uncond_logits[row].float().numpy()
    scale = np.float64(teacher.guidance_scale[row].item())
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (cond - uncond).astype(np.float64)
        guided = (uncond + scale * difference).astype(np.float32) * np.float32(factor)
    guided[(cond == -np.inf) | (uncond == -np.inf)] = -np.inf
    return guided.astype(np.float64)


def kept_sets(teacher: Teacher, row: int, factor: float = 1.0) -> list[np.ndarray]:
    """Every set of codes that a row may keep, the exact one first; none of an invalid row."""
    guided, top_k, top_p = guided_row(teacher, row, factor), teacher.top_k, teacher.top_p
    if np.isnan(guided).any() or guided.max() in (np.inf, -np.inf):
        return []
    order = np.argsort(-guided, kind="stable")
    ordered = guided[order]
    count = int((ordered > -np.inf).sum())
    if 0 < top_k < count:
        count = int((ordered[:count] >= ordered[top_k - 1]).sum())
    if top_p >= 1:
        return [order[:count]]
    _, starts = np.unique(-ordered[:count], return_index=True)
    mass = np.exp(ordered[:count] - ordered[0])
    above = np.concatenate([[0.0], np.cumsum(mass)])[starts]
    ends = np.append(starts[1:], count)
    exact, fewest, most = (
        max(1, int((above < top_p * (1 + error) * mass.sum()).sum()))
        for error in (0.0, -MASS_ROUNDING, MASS_ROUNDING)
    )
    sizes = [exact, *(n for n in range(fewest, most + 1) if n != exact)]
    return [order[: ends[n - 1]] for n in sizes]


@dataclass
class Posterior:
    """x0 and J u ``[M, C]`` of a row's tokens, and a bound ``[M]`` on what rounding does to each.

    To first order: a weight errs by the rounding of its exponent, ``|x|^2 + (1-t)^2 |c|^2`` (as
    seen from the codebook's mean) over ``2 t^2`` and the logit, which moves the mean by ``w (c -
    x0)``, and J u, as the weights are normalised, by ``w (z (c - x0) - J u)``; a sum by that of its
    additions. Codes of a weight below :data:`NEGLIGIBLE` of the largest may be left out.
    """

    x0: np.ndarray
    along: np.ndarray
    steepness: np.ndarray  # of x0 in x_t: a bound on the norm of J
    x0_rounding: np.ndarray
    along_rounding: np.ndarray


def additions(terms: int) -> float:
    """How many roundings a sum takes that runs on at least 8 chains."""
    return 16 + terms / 8


def posterior(
    x_t: np.ndarray, t: np.ndarray, logits: np.ndarray, codes: np.ndarray, u: np.ndarray,
    centre: np.ndarray,
) -> Posterior:  # fmt: skip
    """Of tokens ``x_t [M, C]`` at ``t [M]``, directions ``u [M, C]``, over codes that all stay.
    Squares may be expanded around ``centre [C]``, the codebook's mean."""
    t = t[:, None]
    signal = 1 - t
    distance = ((x_t[:, None] - signal[..., None] * codes) ** 2).sum(-1)
    exponent = logits - distance / (2 * t * t)
    weights = np.exp(exponent - exponent.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x0 = weights @ codes
    centred = codes - x0[:, None]
    z = np.einsum("mnc,mc->mn", centred, u)
    jacobian = signal / t**2
    covariance = np.einsum("mn,mnc->mc", weights * z, centred)  # of the codes, times u

    x, c = x_t - signal * centre, codes - centre
    size = (x**2).sum(-1, keepdims=True) + signal**2 * (c**2).sum(-1)
    moved = weights * (size / (2 * t * t) + logits.max() - logits)
    spread = np.linalg.norm(centred, axis=-1)
    steps = additions(len(codes))
    largest = np.linalg.norm(codes, axis=-1).max() * np.linalg.norm(u, axis=-1)
    x0_sum = np.linalg.norm(weights @ np.abs(codes), axis=-1)
    along_sum = (weights * spread).sum(-1) * largest + EPSILON * largest * x0_sum
    moves = z[..., None] * centred - covariance[:, None]
    moves = np.linalg.norm(moves, axis=-1)
    omitted = np.minimum(weights, NEGLIGIBLE * weights.max(-1, keepdims=True))
    x0_rounding = EPSILON * (16 * (moved * spread).sum(-1) + steps * x0_sum)
    along_rounding = EPSILON * (16 * (moved * moves).sum(-1) + steps * along_sum)
    return Posterior(
        x0,
        jacobian * covariance,
        jacobian[:, 0] * (weights * spread**2).sum(-1),
        x0_rounding + (omitted * spread).sum(-1),
        jacobian[:, 0] * (along_rounding + (omitted * moves).sum(-1)),
    )


def row_posterior(case: Tokens, row: int, kept: np.ndarray, u: np.ndarray) -> Posterior:
    """Of a row's tokens over its codes ``kept``; ``u [M, C]``."""
    x_t, t = double(case.x_t[row]).reshape(u.shape), double(case.t[row]).reshape(-1)
    guided, codes = guided_row(case.teacher, row)[kept], double(case.codebook)[kept]
    return posterior(x_t, t, guided, codes, u, double(case.codebook).mean(0))
