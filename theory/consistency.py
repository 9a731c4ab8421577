"""Consistency: are the same directions found again by a run from another seed, and are those the right ones?

MCS of a neuron = largest cosine of its weight vector with any neuron of another run (Chen et al. 2025,
arXiv:2506.14002). It is read beside its chance level, the MCS of independent random directions, and, where
features were planted, beside the share of consistent neurons that point at a feature.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import beta

from simulator.checks import real, whole
from simulator.errors import RequestError
from theory.geometry import best_cosines
from theory.validation import matrix

FEWEST = 30
"""Neurons that a share is measured on at least."""


@dataclass(frozen=True)
class Selection:
    """The top neurons by some score."""

    neurons: Int[np.ndarray, " k"]
    """Indices, best first; ties to the lowest index."""
    extended: bool
    """Whether the share alpha meant fewer than `FEWEST` neurons and more were taken."""


def top_neurons(
    score: Shaped[np.ndarray, "..."], alpha: float, alive: Bool[np.ndarray, " M"] | None = None, fewest: int = FEWEST
) -> Selection:
    """The share alpha of all M neurons with the largest score, at least `fewest` of them, dead ones never.

    Raises:
        RequestError: alpha outside (0, 1], or a score that is not one row of numbers.
    """
    score = np.asarray(score, np.float64)
    real("alpha", alpha, 0, 1, open_low=True)
    whole("fewest neurons", fewest, 1)
    if score.ndim != 1 or np.isnan(score).any():
        raise RequestError("a score is one number per neuron and never NaN")
    wanted = round(alpha * len(score))
    order = np.argsort(-score, kind="stable")
    if alive is not None:
        order = order[alive[order]]
    return Selection(order[: max(wanted, fewest)], wanted < fewest)


def max_cosines(W: Shaped[np.ndarray, "..."], other: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, " M"]:
    """MCS of every row of W among the rows of another run's W; zero rows have 0.

    Raises:
        RequestError: matrices of different d, NaN or infinite entries.
    """
    W = matrix("W", W)
    other = matrix("the other W", other, columns=W.shape[1])
    found = np.zeros(len(W))
    alive, rows = W.any(axis=1), other[other.any(axis=1)]
    if alive.any() and len(rows):
        found[alive] = best_cosines(np.asarray(W[alive], np.float64), np.asarray(rows, np.float64))
    return found


def chance_share(M: int, d: int, threshold: float) -> float:
    """P(MCS > threshold) for a random direction among M independent ones, exact.

    A cosine c between isotropic directions has c^2 ~ Beta(1/2, (d-1)/2), so that for threshold t >= 0
    P = 1 - (1 - P(Beta > t^2) / 2)^M.
    """
    whole("M", M, 1)
    whole("d", d, 2)
    real("threshold", threshold, 0, 1)
    return float(-np.expm1(M * np.log1p(-beta.sf(threshold**2, 0.5, (d - 1) / 2) / 2)))


def chance_median(M: int, d: int) -> float:
    """The MCS that half of all random directions exceed: P(Beta > t^2) / 2 = 1 - 2^{-1/M}, exact.

    0 where even less than one half of the sphere would do (M = 1).
    """
    whole("M", M, 1)
    whole("d", d, 2)
    tail = -2 * np.expm1(-np.log(2) / M)
    return float(np.sqrt(beta.isf(tail, 0.5, (d - 1) / 2))) if tail < 1 else 0.0
