"""Identifiability as a decision procedure: can V' be turned into V?

Chen et al. 2025 (arXiv:2506.14002): V is identifiable from X = HV within a class if every alternative (H', V') of the
class can be turned into V by splitting the rows of V' into n disjoint groups, a convex combination in each, scaling and
permutation. epsilon* is the smallest value such that some grouping has cos(combination, v_i) >= 1 - epsilon* for all
i. Row lengths play no part. A group without rows, or without a positive cosine, counts epsilon = 1. The best grouping
is a combinatorial problem: an interval [eps_lower, eps_upper] is computed, the lower end certified, the upper attained.

The definition is one-directional (a split can be merged, a merge cannot be split), so both directions are asked. With
enough rows a random dictionary passes too: "equivalent" is said only if (H', V') satisfies the class conditions or
epsilon lies below the 1 % quantile of the same procedure on independent dictionaries of that shape.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from simulator.checks import real, whole
from simulator.errors import RequestError
from simulator.rng import stream
from theory.conditions import Conditions, measure
from theory.cones import MOST_ROWS, exact_epsilon
from theory.grouping import lower_bound, search
from theory.validation import dictionary, matrix, sparse_matrix, unit_rows

Answer = Literal["equivalent", "not equivalent", "undecided"]
DRAWS = 99
"""Draws after which the smallest is exactly the 1 % quantile: a 100th is below it with probability 1/100."""


@dataclass(frozen=True)
class Chance:
    """eps_upper of independent isotropic dictionaries of the shape of V'.

    Attributes:
        mean: over the draws.
        quantile: 1 % quantile: smallest of 99 draws ("exact"), or the normal prediction from fewer ("extrapolated").
        draws: number of draws; 0: not asked for, or decided by a count.
        method: how the quantile was found.
    """

    mean: float
    quantile: float
    draws: int
    method: Literal["exact", "extrapolated", "none"]


@dataclass(frozen=True)
class Direction:
    """One direction: rows turned into features.

    Attributes:
        eps_lower: no grouping has a smaller epsilon.
        eps_upper: attained by the grouping below.
        group: feature of each row, -1 for none.
        weights: of each row in its group.
        cosines: of each feature with its combination.
        failed: features with 1 - cos above the tolerance.
        lower_reason: what certifies the lower end.
        chance: of independent rows.
        verdict: equivalent / not equivalent / undecided at the tolerance.
        reason: of the verdict.
    """

    eps_lower: float
    eps_upper: float
    group: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]
    cosines: Float[np.ndarray, " n"]
    failed: Int[np.ndarray, " failed"]
    lower_reason: str
    chance: Chance
    verdict: Answer
    reason: str


@dataclass(frozen=True)
class Identifiability:
    """Both directions, and what H and H' say.

    Attributes:
        forward: V' turned into V.
        backward: V turned into V'.
        tolerance: epsilon up to which dictionaries count as equivalent.
        conditions: of (H, V), and of (H', V'), where given.
        difference: largest relative difference of a row of HV and H'V', where both are given.
    """

    forward: Direction
    backward: Direction
    tolerance: float
    conditions: tuple[Conditions | None, Conditions | None]
    difference: float | None


def compare(
    V: Any,
    V_prime: Any,
    *,
    H: Any = None,
    H_prime: Any = None,
    tolerance: float = 0.05,
    draws: int | None = None,
    seed: int = 0,
) -> Identifiability:
    """Ask both ways whether one dictionary can be turned into the other.

    Args:
        V: (n, d), no zero rows.
        V_prime: (n', d); zero rows help nobody and are ignored.
        H, H_prime: (N, n) and (N, n'), non-negative coefficients; their class conditions are then measured.
        tolerance: in (0, 1).
        draws: independent dictionaries behind the chance level; None: 99, fewer for large shapes; 0: none, and
            then "equivalent" is only said where the class conditions hold.
        seed: of those dictionaries.

    Raises:
        RequestError: arrays that cannot be compared.
    """
    V = dictionary("V", V)
    V_prime = matrix("V'", V_prime, columns=V.shape[1])
    real("tolerance", tolerance, 0, 1, open_low=True, open_high=True)
    if draws is not None:
        whole("draws", draws, 0, 10_000)
    present = V_prime.any(axis=1)
    if not present.any():
        raise RequestError("V' has only zero rows; at least one direction is needed")
    n, other = len(V), len(V_prime)
    found = None if H is None else measure(sparse_matrix("H", H, (None, n)), V)
    alternative = None
    if H_prime is not None:
        if not present.all():
            raise RequestError("V' has zero rows; with H' every row of V' needs a direction")
        alternative = measure(sparse_matrix("H'", H_prime, (None, other)), V_prime)
    difference = None if H is None or H_prime is None else _difference(H, V, H_prime, V_prime)
    one, two = unit_rows(V), unit_rows(V_prime[present])
    inside = [None if conditions is None else conditions.satisfied for conditions in (alternative, found)]
    forward = _direction(one, two, tolerance, draws, seed, inside[0])
    backward = _direction(two, one, tolerance, draws, seed, inside[1])
    return Identifiability(_in_place(forward, present), backward, tolerance, (found, alternative), difference)


def _direction(
    features: np.ndarray, rows: np.ndarray, tolerance: float, draws: int | None, seed: int, inside: bool | None
) -> Direction:
    n, k = len(features), len(rows)
    found = search(features, rows)
    bound = lower_bound(features, rows, found.errors)
    lower, reason = min(bound.epsilon, found.epsilon), bound.reason
    if lower < found.epsilon and k <= MOST_ROWS:
        exact = exact_epsilon(features, rows)
        lower, reason = min(exact, found.epsilon), "all groupings enumerated"
    chance = Chance(np.nan, np.nan, 0, "none") if k < n else _chance(features, k, draws, seed)
    verdict, why = _verdict(lower, found.epsilon, reason, tolerance, chance, inside)
    return Direction(
        float(lower), found.epsilon, found.group, found.weights, 1 - found.errors,
        np.flatnonzero(found.errors > tolerance), reason, chance, verdict, why,
    )  # fmt: skip


def _verdict(
    lower: float, upper: float, reason: str, tolerance: float, chance: Chance, inside: bool | None
) -> tuple[Answer, str]:
    if lower > tolerance:
        return "not equivalent", reason
    if upper > tolerance:
        return "undecided", "the interval contains the tolerance"
    if inside:
        return "equivalent", "the alternative satisfies the class conditions"
    if chance.draws and upper < chance.quantile:
        return "equivalent", "epsilon lies below the 1 % quantile of independent dictionaries"
    if not chance.draws:
        return "undecided", "no chance level was drawn, and the class conditions are not known to hold"
    return "undecided", "an independent dictionary of this shape passes too"


def _chance(features: np.ndarray, k: int, draws: int | None, seed: int) -> Chance:
    n, d = features.shape
    if draws is None:
        draws = int(np.clip(2_000_000 // (n * k), 3, DRAWS))
    if draws == 0:
        return Chance(np.nan, np.nan, 0, "none")
    found = []
    for draw in range(draws):
        rows = unit_rows(stream(seed, "identifiability", draw).standard_normal((k, d)))
        found.append(search(features, rows).epsilon)
    mean = float(np.mean(found))
    if draws >= DRAWS:
        return Chance(mean, float(np.sort(found)[(draws + 1) // 100 - 1]), draws, "exact")
    if draws == 1:
        return Chance(mean, 0.0, 1, "extrapolated")
    # Prediction interval of one more normal draw.
    spread = float(np.std(found, ddof=1)) * np.sqrt(1 + 1 / draws)
    return Chance(mean, max(0.0, mean + float(student.ppf(0.01, draws - 1)) * spread), draws, "extrapolated")


def _difference(H: Any, V: np.ndarray, H_prime: Any, V_prime: np.ndarray) -> float:
    left, right = sparse_matrix("H", H, (None, None)), sparse_matrix("H'", H_prime, (None, None))
    if left.shape[0] != right.shape[0]:  # type: ignore[index]
        raise RequestError(f"H has {left.shape[0]} rows and H' {right.shape[0]}; both describe the same X")  # type: ignore[index]
    X, Y = left @ V, right @ V_prime
    length = np.linalg.norm(X, axis=1)
    return float((np.linalg.norm(X - Y, axis=1) / np.where(length > 0, length, 1)).max())


def _in_place(direction: Direction, present: np.ndarray) -> Direction:
    """Groups and weights for all rows, where zero rows were left out."""
    from dataclasses import replace

    group, weights = np.full(len(present), -1), np.zeros(len(present))
    group[present], weights[present] = direction.group, direction.weights
    return replace(direction, group=group, weights=weights)
