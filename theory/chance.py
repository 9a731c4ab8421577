"""The level that a dictionary of independent random directions reaches: what an MCC must be read against."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from simulator.rng import stream
from theory.cosines import block_cosines
from theory.matching import exact
from theory.validation import unit_rows

DRAWN_CELLS = 1 << 22
SAMPLE, SAMPLE_LIMIT = 1024, 16384


@dataclass(frozen=True)
class Chance:
    """MCC of an independent isotropic W of the same shape: mean and standard deviation over draws."""

    mean: float
    spread: float
    draws: int
    method: Literal["drawn", "extrapolated"]


def chance_level(V: Float[np.ndarray, "n d"], M: int, *, draws: int = 8, seed: int = 0) -> Chance:
    """MCC between the unit rows V and M independent isotropic random directions.

    Up to n M = 2^22 the assignment of `draws` random dictionaries is solved ("drawn"). Beyond it is
    "extrapolated". The cosine c of an isotropic direction with any fixed one has c^2 ~ Beta(1/2, (d-1)/2);
    let u = L P(|cosine| > c) be the expected number of better ones among the L = max(n, M) on offer. Near its
    maximum |cosine| is close to linear in -log u, so the best assignment in terms of u depends on the ratio
    n / M and hardly on the size. The u of the pairs are taken from sub-problems of 1,024 vectors at the same
    ratio (at most 4; the longer side at most 16,384) and turned back into cosines with the full L. The spread
    is that of the sub-problems divided by the root of the factor in size. Against drawn levels the error is
    below 0.002 for Gaussian V; for n > M and a V with a strong common direction it is a rough figure.
    """
    n, d = V.shape
    if n * M <= DRAWN_CELLS:
        values = [exact(np.abs(block_cosines(V, _directions(M, d, seed, draw)))).mean() for draw in range(draws)]
        return Chance(float(np.mean(values)), float(np.std(values, ddof=1)) if draws > 1 else 0.0, draws, "drawn")
    draws = min(draws, 4)
    values = [_extrapolated(V, M, seed, draw) for draw in range(draws)]
    spread = np.std(values, ddof=1) * np.sqrt(SAMPLE / min(n, M)) if draws > 1 else 0.0
    return Chance(float(np.mean(values)), float(spread), draws, "extrapolated")


def _directions(count: int, d: int, seed: int, draw: int) -> np.ndarray:
    return unit_rows(stream(seed, "chance", draw).standard_normal((count, d)))


def _extrapolated(V: np.ndarray, M: int, seed: int, draw: int) -> float:
    n, d = V.shape
    if d == 1:
        return 1.0
    small = min(n, M, SAMPLE)
    large = max(small, min(SAMPLE_LIMIT, round(small * max(n, M) / min(n, M))))
    sub_n, sub_M = (small, large) if n <= M else (large, small)
    rows = stream(seed, "chance rows", draw).choice(n, size=min(n, sub_n), replace=False)
    W = _directions(sub_M, d, seed, draw)
    similarity = np.abs(block_cosines(V[rows], W))
    better = large * beta.sf(exact(similarity) ** 2, 0.5, (d - 1) / 2)
    return float(np.sqrt(beta.isf(better / max(n, M), 0.5, (d - 1) / 2)).mean())
