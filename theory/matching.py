"""One-to-one assignment of features to neurons: exact, or an interval that contains the exact value.

The score is the field's mean correlation coefficient (MCC): the mean |cosine| over the min(n, M) pairs of the
assignment that makes it largest (O'Neill et al. 2024, arXiv:2411.13117). Since no |cosine| is negative, the
best complete assignment scores as much as the best partial one.

The interval. Let R <= C be the two sizes. Every vector i of the smaller side keeps its k columns of largest
|cosine| c_ij and the number r_i that none of its other columns exceeds (the 33rd best, for k = 32). Relax:
i may instead take a place of its own, worth r_i. Any assignment is turned into a relaxed one worth at least
as much by moving every pair outside the candidates to such a place, so

    upper = (best relaxed assignment) / R >= MCC.

The relaxed problem is an assignment on a sparse graph and is solved exactly. Its pairs among the candidates
are a feasible partial assignment; the vectors left on places of their own are given columns that are still
free:

    lower = (their cosines + those of the completed pairs) / R <= MCC.

If nobody takes such a place, the two are equal and the value is exact, at any size.
"""

import heapq
import inspect
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from theory.cosines import Candidates, block_cosines

EXACT_ROWS, EXACT_COLUMNS = 4096, 16384
CANDIDATES = 32
COMPILE_FROM = 4096  # rows from which compiling the solver (seconds) pays
FREE, OWN_PLACE = -1, -2


@dataclass(frozen=True)
class Assignment:
    """MCC as the interval [lower, upper] that contains it; `exact` when both ends are the exact value."""

    lower: float
    upper: float
    exact: bool

    def value(self) -> float | list[float]:
        """The number where it is exact, else [lower, upper]."""
        return self.lower if self.exact else [self.lower, self.upper]


def exact_size(n: int, M: int) -> bool:
    """Whether the dense assignment is within reach (seconds; 0.5 GiB at 4,096 x 16,384)."""
    return min(n, M) <= EXACT_ROWS and max(n, M) <= EXACT_COLUMNS


def exact(similarity: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " pairs"]:
    """The min(R, C) entries of the assignment with the largest sum (Jonker & Volgenant, as in scipy)."""
    return similarity[linear_sum_assignment(similarity, maximize=True)]


def dense(A: Float[np.ndarray, "R d"], B: Float[np.ndarray, "C d"], pairs: int) -> Assignment:
    """Exact MCC of unit rows, `pairs` = min(n, M) counting zero vectors, which add nothing."""
    value = float(exact(np.abs(block_cosines(A, B))).sum() / pairs)
    return Assignment(value, value, True)


def interval(
    A: Float[np.ndarray, "R d"], B: Float[np.ndarray, "C d"], candidates: Candidates, pairs: int
) -> Assignment:
    """The interval of the module's docstring for unit rows, R <= C; ends are valid up to rounding (1e-12)."""
    column = relaxed_assignment(candidates, len(B))
    own = np.flatnonzero(column == OWN_PLACE)
    placed = np.flatnonzero(column != OWN_PLACE)
    where = candidates.column[placed] == column[placed, None]
    matched = float(candidates.value[placed][where].sum())
    if own.size == 0:
        return Assignment(matched / pairs, matched / pairs, True)
    upper = (matched + float(candidates.remainder[own].sum())) / pairs
    free = np.setdiff1d(np.arange(len(B)), column[placed], assume_unique=True)
    matched += _complete(A, B, own, free)
    return Assignment(matched / pairs, max(upper, matched / pairs), False)


def _complete(A: np.ndarray, B: np.ndarray, own: np.ndarray, free: np.ndarray, rows: int = 1024) -> float:
    """Value of some assignment of the rows `own` to the columns `free`: best within groups of 1,024 rows."""
    total = 0.0
    groups = -(-len(own) // rows)
    for mine, theirs in zip(np.array_split(own, groups), np.array_split(free, groups), strict=True):
        total += float(exact(np.abs(block_cosines(A[mine], B[theirs[: 4 * rows]]))).sum())
    return total


def relaxed_assignment(candidates: Candidates, columns: int, *, compiled: bool | None = None) -> Int[np.ndarray, " R"]:
    """Column of every row in a best relaxed assignment; -2 where the row takes its own place.

    Successive shortest augmenting paths with prices. Rows with an uncontested best column are settled at
    once; a path search touches only what it meets, so that the cost grows with the number of contested rows.

    Args:
        compiled: with numba or in plain Python; the result is the same. Default: numba from 4,096 rows on.
    """
    solve = _augment
    if compiled or (compiled is None and len(candidates.column) >= COMPILE_FROM):
        solve = _compiled() or _augment
    order = np.argsort(-candidates.value, axis=1, kind="stable")
    column = np.take_along_axis(candidates.column, order, axis=1).astype(np.int64)
    value = np.take_along_axis(candidates.value, order, axis=1)
    return solve(column, value, candidates.remainder, columns)


_cache: list = []


def _compiled():
    """The solver compiled by numba, once a process; None where numba is not installed."""
    if not _cache:
        try:
            from numba import njit
        except ImportError:
            _cache.append(None)
        else:
            _cache.append(njit(inspect.unwrap(_augment)))  # free of decorators that check annotations
    return _cache[0]


def _augment(column: np.ndarray, value: np.ndarray, remainder: np.ndarray, columns: int) -> np.ndarray:
    """Plain loops, one source for numba and for Python. Rows of `value` are sorted, largest first.

    Kept true throughout: gain[i] >= value[i, j] - price[column[i, j]] and gain[i] >= remainder[i], with
    equality on what i holds; price >= 0, and 0 on columns that nobody holds. So gain and price are optimal
    duals at the end.
    """
    rows, k = value.shape
    holds = np.full(rows, -1)
    held_by = np.full(columns, -1)
    price = np.zeros(columns)
    gain = np.maximum(value[:, 0], remainder)
    for i in range(rows):
        if value[i, 0] < remainder[i]:
            holds[i] = -2
        elif held_by[column[i, 0]] < 0:
            holds[i] = column[i, 0]
            held_by[column[i, 0]] = i
    distance = np.full(columns, np.inf)
    reached_from = np.full(columns, -1)
    done = np.zeros(columns, dtype=np.bool_)
    row_distance = np.zeros(rows)
    for first in range(rows):
        if holds[first] != -1:
            continue
        heap = [(0.0, 0)]
        heap.clear()
        touched = [0]
        touched.clear()
        scanned = [first]
        end_distance, end_row, end_column = np.inf, -1, -1
        i, base = first, 0.0
        while True:
            row_distance[i] = base
            if base + gain[i] - remainder[i] < end_distance:
                end_distance, end_row, end_column = base + gain[i] - remainder[i], i, -1
            for place in range(k):
                j = column[i, place]
                to = base + gain[i] - value[i, place] + price[j]
                if to < distance[j] and to < end_distance and not done[j]:
                    if distance[j] == np.inf:
                        touched.append(j)
                    distance[j] = to
                    reached_from[j] = i
                    if held_by[j] < 0:
                        end_distance, end_row, end_column = to, i, j
                    else:
                        heapq.heappush(heap, (to, j))
            found = -1
            while len(heap) > 0:
                to, j = heapq.heappop(heap)
                if not done[j] and to <= distance[j]:
                    found = j
                    break
            if found < 0 or distance[found] >= end_distance:
                break
            done[found] = True
            i, base = held_by[found], distance[found]
            scanned.append(i)
        for i in scanned:
            gain[i] -= end_distance - row_distance[i]
        for j in touched:
            if done[j]:
                price[j] += end_distance - distance[j]
            distance[j] = np.inf
            done[j] = False
        i, j = end_row, end_column
        while True:
            previous = holds[i]
            holds[i] = j if j >= 0 else -2
            if j >= 0:
                held_by[j] = i
            if i == first:
                break
            j = previous
            i = reached_from[j]
    return holds
