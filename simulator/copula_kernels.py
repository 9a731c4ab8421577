"""Loops of the Gaussian copula and of hierarchies; compiled where numba is installed, else run as they are.

Both ways draw the same numbers from NumPy's generator, so that the samples are equal with and without numba.

A score says how likely a feature is: with x = (F_i . z - t_i) / sqrt(1 - |F_i|^2) the feature is active with
probability Phi(x), and its score is STEPS (x + REACH). The whole part of a score is a cell of the tables of
`hazard_bounds`.
"""

import math
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import scipy.special

STEPS, REACH = 64.0, 8.0
"""Cells per unit of x, and the |x| beyond which a feature is taken as certain or impossible (Phi(-8) = 6e-16)."""
CELLS = int(2 * STEPS * REACH)
TOGETHER = 8
"""Features per group of `walk`."""
_FREQUENT = 2.0
_ROOT_HALF = math.sqrt(0.5)

F = TypeVar("F", bound=Callable)


def _compiled(function: F) -> F:
    try:
        import numba
    except ImportError:
        return function
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@_compiled
def _probability(score):
    """Phi(x) of a score."""
    return 0.5 * math.erfc((REACH - float(score) / STEPS) * _ROOT_HALF)


def hazard_bounds() -> tuple[np.ndarray, np.ndarray]:
    """A lower and an upper bound of -log(1 - Phi(x)) for each cell of scores; the last one ends at infinity."""
    # The hazard increases with x, so its values at the ends bound the cell; a hundredth of a cell covers
    # the rounding of the float32 scores.
    ends = np.arange(CELLS + 1) / STEPS - REACH
    lower = -scipy.special.log_ndtr(0.01 / STEPS - ends)
    upper = -scipy.special.log_ndtr(-1.01 / STEPS - ends)
    lower[0] = upper[0] = 0.0
    upper[CELLS] = np.inf
    return lower, upper


@_compiled
def walk(scores, lower, upper, rng, top, indptr, found):
    """Independent features given their scores: where each row is active, ascending.

    scores: (rows, TOGETHER x groups) float32, feature i in column (i % TOGETHER) groups + i // TOGETHER, so that
    features of one group are neighbours and the maxima of the groups are computed side by side.

    A Poisson process on a line has a point in a stretch of length h_i = -log(1 - p_i) with probability p_i. Here each
    feature of a group has a slot as long as the largest h_i of the group at most is, by the table, and its own
    stretch at the slot's start. The gaps between points are exponential, so most groups cost one look into the
    table. Writes top (groups), indptr (rows + 1) and found (at least as many as scores).
    """
    rows, groups = scores.shape[0], top.size
    count = 0
    gap = rng.standard_exponential()  # from here to the next point
    indptr[0] = 0
    for row in range(rows):
        line = scores[row]
        for group in range(groups):
            top[group] = line[group]
        for member in range(1, TOGETHER):
            for group in range(groups):
                score = line[member * groups + group]
                top[group] = score if score > top[group] else top[group]
        for group in range(groups):
            rate = upper[min(max(int(top[group]), 0), CELLS)]
            if rate * TOGETHER <= gap:
                gap -= rate * TOGETHER
            elif rate > _FREQUENT:  # the points would be mostly repetitions
                for member in range(TOGETHER):
                    if rng.random() < _probability(line[member * groups + group]):
                        found[count] = group * TOGETHER + member
                        count += 1
            else:
                while gap < rate * TOGETHER:
                    member = min(int(gap / rate), TOGETHER - 1)
                    height = gap - member * rate
                    score = line[member * groups + group]
                    cell = min(max(int(score), 0), CELLS)
                    # Between the bounds of the cell, rarely, the hazard itself decides.
                    if height < lower[cell] or (height < upper[cell] and height < -math.log1p(-_probability(score))):
                        found[count] = group * TOGETHER + member
                        count += 1
                        gap = (member + 1) * rate
                    gap += rng.standard_exponential()
                gap -= rate * TOGETHER
        indptr[row + 1] = count
    return count


@_compiled
def active_children(rows, parents, first_child, children, latent, weights, rng, parent_entries, found):
    """Which children of the active features would be active, each independently given the latent numbers.

    rows, parents: (entries,), the active features of one level. first_child (n + 1), children: the children of
    feature i are children[first_child[i]:first_child[i + 1]]. latent (N, rank + 1) and weights (n, rank + 1) give the
    scores. Writes the entry of the parent and the feature of each; returns how many.
    """
    count = 0
    width = latent.shape[1]
    for entry in range(rows.size):
        row = rows[entry]
        for slot in range(first_child[parents[entry]], first_child[parents[entry] + 1]):
            child = children[slot]
            score = 0.0
            for k in range(width):
                score += float(latent[row, k]) * float(weights[child, k])
            if rng.random() < _probability(score):
                parent_entries[count] = entry
                found[count] = child
                count += 1
    return count


@_compiled
def winners(contests, rng, keep):
    """One entry of each run of equal contests >= 0, uniformly chosen; entries with -1 are all kept."""
    start = 0
    while start < contests.size:
        stop = start + 1
        while stop < contests.size and contests[stop] == contests[start] and contests[start] >= 0:
            stop += 1
        for entry in range(start, stop):
            keep[entry] = stop - start == 1
        if stop - start > 1:
            keep[start + int(rng.random() * (stop - start))] = True
        start = stop
