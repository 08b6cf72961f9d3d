"""The conditional score by its definition in NumPy float64, one token at a time: independent of the
package's own reference."""

from __future__ import annotations

import numpy as np


def kept_codes(guided: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    keep = guided > -np.inf
    if 0 < top_k < guided.size:
        keep &= guided >= np.sort(guided)[-top_k]
    if top_p < 1:
        mass = np.where(keep, np.exp(guided - guided.max()), 0.0)
        mass = mass / mass.sum()
        above = np.array([mass[guided > value].sum() for value in guided])
        keep &= (above < top_p) | (guided == guided.max())
    return keep


def posterior_mean(x_t, t, cond, uncond, scale, codebook, top_k=0, top_p=1.0):
    """x0 and its Jacobian ``[C, C]`` for one token."""
    guided = cond if uncond is None else uncond + scale * (cond - uncond)
    keep = kept_codes(guided, top_k, top_p)
    codes = codebook[keep]
    exponent = guided[keep] - ((x_t - (1 - t) * codes) ** 2).sum(-1) / (2 * t * t)
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    x0 = weights @ codes
    centred = codes - x0
    return x0, (1 - t) / t**2 * (centred.T * weights) @ centred
