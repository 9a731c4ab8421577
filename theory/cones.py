"""Cones of dictionary rows: how near a non-negative combination can come to a feature.

The largest cosine of a unit vector v with the cone of unit rows R is ||projection of v onto the cone||, found by
non-negative least squares; where no row has a positive cosine it is counted as 0. Its optimality is checked on the
dual side: y = v - projection must have <r_j, y> <= 0 for every allowed row. `DUAL` is the margin by which rounding may
miss that; every bound is weakened by `MARGIN`.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import lsq_linear, nnls

from simulator.errors import RequestError
from theory.validation import dictionary, matrix, unit_rows

DUAL, MARGIN = 1e-10, 1e-9
MOST_ROWS = 10
"""Rows up to which all groupings are enumerated."""


def weights(rows: Float[np.ndarray, "k d"], v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " k"]:
    """The omega >= 0 that brings omega rows nearest to v."""
    if not len(rows):
        return np.zeros(0)
    try:
        return nnls(rows.T, v, maxiter=20 * len(rows) + 100)[0]
    except RuntimeError:  # did not converge: a slower method that does
        return np.maximum(lsq_linear(rows.T, v, (0, np.inf), method="bvls").x, 0.0)


def cosine_of(rows: Float[np.ndarray, "k d"], omega: Float[np.ndarray, " k"], v: Float[np.ndarray, " d"]) -> float:
    """cos(omega rows, v), 0 where it is not positive or the combination vanishes."""
    combined = omega @ rows
    length = float(np.sqrt(combined @ combined))
    return max(0.0, float(combined @ v) / length) if length > 1e-12 else 0.0


def cone_cosine(
    rows: Float[np.ndarray, "k d"], v: Float[np.ndarray, " d"], without: Bool[np.ndarray, " k"] | None = None
) -> tuple[float, Float[np.ndarray, " k"]]:
    """Largest cosine of v with the cone of all rows (but those in `without`), from above, and weights that attain it.

    Rows are brought in as the dual condition asks for them; the result is an upper bound up to `MARGIN` also where
    it stops early, since ||projection|| only grows as rows come in: then 1 is returned.
    """
    allowed = np.ones(len(rows), dtype=bool) if without is None else ~without
    omega = np.zeros(len(rows))
    score = np.where(allowed, rows @ v, -np.inf)
    if score.max(initial=-np.inf) <= 0:
        return 0.0, omega
    chosen = np.argsort(-score)[: min(len(rows), 64)]
    chosen = chosen[score[chosen] > 0]
    for _ in range(60):
        part = weights(rows[chosen], v)
        residual = v - part @ rows[chosen]
        violation = np.where(allowed, rows @ residual, -np.inf)
        violation[chosen] = -np.inf
        worst = np.argsort(-violation)[:32]
        worst = worst[violation[worst] > DUAL]
        keep = chosen[part > 0]
        if not len(worst):
            omega[chosen] = part
            return min(1.0, float(np.linalg.norm(v - residual))), omega
        if residual @ residual < 1e-18:
            break
        chosen = np.concatenate([keep, worst])
    omega[:] = 0
    omega[chosen[: len(part)]] = part[: len(chosen)] if len(part) <= len(chosen) else 0
    return 1.0, omega


def exact_epsilon(V: np.ndarray, V_prime: np.ndarray) -> float:
    """epsilon* by enumeration: the smallest max_i (1 - cos) over all ways to split at most 10 rows into n groups.

    e_i(S) for every subset S of the rows by non-negative least squares, then
    F_i(S) = min over T subset of S of max(F_{i-1}(S - T), e_i(T)): 3^{n'} n steps.

    Raises:
        RequestError: more than 10 rows, or matrices that do not fit.
    """
    V = dictionary("V", V)
    V_prime = matrix("V'", V_prime, columns=V.shape[1])
    features, rows = unit_rows(V), unit_rows(V_prime[V_prime.any(axis=1)])
    k = len(rows)
    if k > MOST_ROWS:
        raise RequestError(f"V' has {k} rows; at most {MOST_ROWS} can be enumerated")
    members = [np.flatnonzero([(subset >> j) & 1 for j in range(k)]) for subset in range(1 << k)]
    best = np.full(1 << k, np.inf)
    best[0] = 0.0
    before = np.zeros(1 << k)
    for v in features:
        error = np.ones(1 << k)
        for subset in range(1, 1 << k):
            part = rows[members[subset]]
            error[subset] = 1 - cosine_of(part, weights(part, v), v)
        after = np.empty(1 << k)
        for subset in range(1 << k):
            inside, low = subset, np.inf
            while True:
                low = min(low, max(before[subset ^ inside], error[inside]))
                if inside == 0:
                    break
                inside = (inside - 1) & subset
            after[subset] = low
        before = after
    return float(before[-1])
