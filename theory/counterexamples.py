"""Why each condition of identifiability is there: for each one a family of exact alternatives that break it.

A counterexample is a pair of factorisations of the same inputs, H V = H' V', both non-negative, neither of which
can be turned into the other by grouping rows (Chen et al. 2025, arXiv:2506.14002, definition of
identifiability). Both meet the other three conditions of `theory.conditions` with slack >= log 2; a dial moves
the slack of one condition from its violating end (<= -log 2) through zero, and no other slack moves at all.
Nothing is random. (Constructions derived here.)

H1, H3, V1: composites. Unit features v_i and p = sum_{i<=k} c_i v_i. (H, V) holds p as a feature of its own
(rows with one non-zero) and writes q, the same combination of a second block, out (rows with k non-zeros);
(H', V') does the reverse. So n = n', and no count excludes the match: to build p from V' takes the rows v_i, and
each of those is the only one that the feature v_i of V can be built from. With mutual cosine r among the v_i and
uniform c, cos(p, v_i) = sqrt((1 + (k-1) r) / k) and c_i = 1 / (k cos(p, v_i)).

H2: e_q (q in T+), e_q' (q' in T-), e_1, e_2 orthonormal, inputs e_q + e_q', e_q + 2 delta e_1,
e_q' + 2 delta e_2. The other dictionary is e_q + delta (e_1 - e_2), e_q' - delta (e_1 - e_2), e_1 + e_2: both
e_1 and e_2 need its last row. Two copies, one in each form, make n = n'.

What follows (derived here):

- The surrogates taken one by one exclude no composite. For r = -1/k: cos(p, v_i) = 1/k, all cosines are
  +-1/k and c_i = 1, so s max |cos| = k (1/k) = 1 exactly; for k = 5 and rare composites all four slacks are
  positive (the harmless end of the H3 dial), and the alternative is as exact as before. The joint quantity is
  what counts: if s max |cos| < 1, any s + 1 features are linearly independent (diagonal dominance of their Gram
  matrix), so no feature is a combination of s others, whatever the coefficients; the composites attain the bound.
- The joint quantity excludes composites only. The H2 family at delta = 0.2 has all four slacks positive and
  s max |cos| = 0.4, and is an alternative still: there H2 and V1 are tied, max |cos| >= about 2 delta^2 with
  delta the smallest column mean, which tends to 0 only if delta does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float

from simulator.checks import real, whole
from theory.conditions import Conditions, measure

__all__ = [
    "FAMILIES",
    "Counterexample",
    "Family",
    "composite",
    "violating_H1",
    "violating_H2",
    "violating_H3",
    "violating_V1",
]


@dataclass(frozen=True)
class Counterexample:
    """Two factorisations of the same N inputs, H V = H_prime V_prime (N x d).

    Attributes:
        condition: the one that the dial moves, "H1", "H2", "H3" or "V1"; empty for `composite`, which moves three.
        dial: where the dial stands.
        H: (N, n) csr, non-negative.
        V: (n, d), features in rows.
        H_prime: (N, n) csr, non-negative.
        V_prime: (n, d), features in rows.
    """

    condition: str
    dial: float
    H: sparse.csr_array
    V: Float[np.ndarray, "n d"]
    H_prime: sparse.csr_array
    V_prime: Float[np.ndarray, "n d"]

    def conditions(self) -> tuple[Conditions, Conditions]:
        """The conditions of (H, V) and of (H_prime, V_prime), exact."""
        return measure(self.H, self.V), measure(self.H_prime, self.V_prime)


@dataclass(frozen=True)
class Family:
    """Counterexamples to one condition along a dial.

    Attributes:
        build: dial to `Counterexample`; RequestError outside the range.
        low, high: range of the dial.
        values: dials from the violating end (first) through zero slack.
    """

    build: Callable[..., Counterexample]
    low: float
    high: float
    values: tuple[float, ...]


def violating_H1(dial: int) -> Counterexample:
    """Rows of k = `dial` non-zeros, 8 <= k <= 64: H1 slack log(10 / k) on both sides.

    Two blocks of 64 features, of which the first k make the composite. The mutual cosine
    r = (k/64 - 1) / (k - 1) keeps cos(p, v_i) = 1/8 and |r| <= 1/8 for every k: V1 slack log 4. p and q occur
    20 times with coefficient 1/2 (H2 slack log 5) among 920 occurrences of a v_i (H3 slack log 2.02).

    Raises:
        RequestError: a dial that is no whole number from 8 to 64.
    """
    k = whole("dial of H1 (features in a composite)", dial, 8, 64)
    r = (k / 64 - 1) / (k - 1)
    block = np.eye(64)
    block[:k, :k] = _simplex(k, r)
    weights = np.where(np.arange(64) < k, 8.0 / k, 0.0)
    return _composites("H1", k, block, weights, alone=900, together=20, level=0.5)


def violating_H3(dial: float) -> Counterexample:
    """Co-occurrence rho_2 = `dial` of five features, 0.05 <= dial <= 0.95: H3 slack -log(2 sqrt(11) rho_2).

    Two blocks of five features with mutual cosine -1/5 and p the sum of a block, cos(p, v_i) = 1/5: n = 11, H1
    slack log 2, V1 slack log 2.5, every coefficient 1 (H2 slack log 10). A v_i of the block that is written out
    occurs 400 times; the dial is rounded to a multiple of 1/400. Up to 0.15 all four slacks are positive.

    Raises:
        RequestError: a dial outside the range.
    """
    rho = real("dial of H3 (co-occurrence)", dial, 0.05, 0.95)
    together = round(400 * rho)
    return _composites("H3", rho, _simplex(5, -0.2), np.ones(5), alone=400 - together, together=together)


def violating_V1(dial: float) -> Counterexample:
    """cos(p, v_1) = `dial`, 1/sqrt(5) <= dial <= 1: V1 slack -log(2 dial); at 1 p is parallel to v_1.

    Two blocks of five orthonormal features, p = dial v_1 + sqrt((1 - dial^2) / 4) (v_2 + ... + v_5) with
    coefficient 1/2 (H2 slack log 5). Five more features on both sides, which p and q have no part in, occur
    together 20 times in 400 and hold H1 at log 2 and H3 at log 2.5 (n = 16) when p-rows shrink to one entry.

    Raises:
        RequestError: a dial outside the range.
    """
    first = real("dial of V1 (cosine of the composite)", dial, 1 / math.sqrt(5), 1)
    weights = np.array([first, *[math.sqrt((1 - first) * (1 + first) / 4)] * 4])
    return _composites("V1", first, np.eye(5), weights, alone=380, together=20, level=0.5, common=5)


def violating_H2(dial: float) -> Counterexample:
    """Mean `dial` = delta of the smallest column, 0.025 <= delta <= 0.2: H2 slack log(delta / 0.1).

    Two copies with |T+| = |T-| = 72, n = 293: each pair q, q' occurs once, each e_q once with e_1, each e_q'
    once with e_2 (rho_2 = 1/72, H3 slack log 2.10; H1 slack log 5). A pair of features with cosine 1/5 that
    occur alone holds V1 at log 2.5. At delta > 0.1 all four slacks are positive.

    Raises:
        RequestError: a dial outside the range.
    """
    delta = real("dial of H2 (smallest column mean)", dial, 0.025, 0.2)
    T = 72
    plain = np.eye(2 * T + 2, 2 * T + 2)
    tilted = np.zeros((2 * T + 1, 2 * T + 2))
    tilted[: 2 * T, : 2 * T] = np.eye(2 * T)
    tilted[:T, 2 * T :] = delta, -delta
    tilted[T : 2 * T, 2 * T :] = -delta, delta
    tilted[2 * T, 2 * T :] = 1.0
    pairs = [{q: 1.0, T + other: 1.0} for q in range(T) for other in range(T)]
    # Rows of one copy in both forms: entries (column: value) with the plain and with the tilted dictionary.
    plain_rows = pairs + [{q: 1.0, 2 * T + (q >= T): 2 * delta} for q in range(2 * T)]
    tilted_rows = pairs + [{q: 1.0, 2 * T: delta} for q in range(2 * T)]
    pinned = _simplex(2, 0.2)
    V, V_prime = _blocks(plain, tilted, pinned), _blocks(tilted, plain, pinned)
    n = len(V)
    alone = [row for row in ({n - 2: 1.0}, {n - 1: 1.0}) for _ in range(20)]
    H = _codes(plain_rows + _shifted(tilted_rows, len(plain)) + alone, n)
    H_prime = _codes(tilted_rows + _shifted(plain_rows, len(tilted)) + alone, n)
    return Counterexample("H2", delta, H, V, H_prime, V_prime)


def composite(k: int, cosine: float, rho: float) -> Counterexample:
    """Three dials at once: composites of k features at a cosine with each of them, with co-occurrence `rho`.

    The composites of this module with mutual cosine r = (k cosine^2 - 1) / (k - 1) and equal coefficients
    c = 1 / (k cosine); a feature occurs 400 times, `rho` is rounded to a multiple of 1/400. n = 2 k + 1, and
    s max |cos| = k max(cosine, |r|) >= 1: the slack `joint` is never positive. (Derived here.)

    Args:
        k: features in a composite, 2 to 32: the largest row of H.
        cosine: of the composite with its features, 1 / k to 0.99.
        rho: co-occurrence, 1/400 to 0.95.

    Raises:
        RequestError: a dial outside its range; no unit vector is at a smaller cosine with k features and a combination
            of them with the joint quantity that small.
    """
    k = whole("k (features in a composite)", k, 2, 32)
    cosine = real("cosine of a composite with its features", cosine, 1 / k, 0.99)
    together = round(400 * real("rho (co-occurrence)", rho, 1 / 400, 0.95))
    block = _simplex(k, (k * cosine * cosine - 1) / (k - 1))
    weights = np.full(k, 1 / (k * cosine))
    return _composites("", rho, block, weights, alone=400 - together, together=together)


FAMILIES: dict[str, Family] = {
    "H1": Family(violating_H1, 8, 64, (64, 20, 12, 10, 8)),
    "H2": Family(violating_H2, 0.025, 0.2, (0.025, 0.05, 0.09, 0.1, 0.12, 0.2)),
    "H3": Family(violating_H3, 0.05, 0.95, (0.95, 0.5, 0.2, 0.15, 0.1, 0.05)),
    "V1": Family(violating_V1, 1 / math.sqrt(5), 1.0, (1.0, 0.8, 0.55, 0.5, 0.46, 1 / math.sqrt(5))),
}
"""Condition to its family; the first of the `values` is the violating end."""


def _composites(
    condition: str,
    dial: float,
    block: np.ndarray,
    weights: np.ndarray,
    *,
    alone: int,
    together: int,
    level: float = 1.0,
    common: int = 0,
) -> Counterexample:
    """Two copies of the features `block` (b x b) and the composite `weights` @ block of the first or the second.

    Every feature occurs `alone` times by itself with coefficient 1, the composites `together` times with
    coefficient `level`; `common` orthonormal features on both sides occur `together` times all at once.
    """
    b = len(block)
    features = _blocks(block, block, np.eye(common))
    composite = weights @ block
    V, V_prime = (np.vstack([features, _placed(composite, start, features.shape[1])]) for start in (0, b))
    last = 2 * b + common
    single = [{i: 1.0} for i in range(last) for _ in range(alone)]
    joint = [{2 * b + i: 1.0 for i in range(common)}] * (together if common else 0)
    written = {i: level * weight for i, weight in enumerate(weights.tolist()) if weight > 0}
    own, first, second = [{last: level}] * together, [written] * together, _shifted([written] * together, b)
    H = _codes(single + joint + own + second, last + 1)
    H_prime = _codes(single + joint + first + own, last + 1)
    return Counterexample(condition, dial, H, V, H_prime, V_prime)


def _simplex(k: int, cosine: float) -> np.ndarray:
    """k unit vectors of R^k with one mutual cosine: the root of the Gram matrix (1 - r) I + r 1 1^T."""
    own, mean = math.sqrt(1 - cosine), math.sqrt(1 + (k - 1) * cosine)
    return own * np.eye(k) + (mean - own) / k


def _blocks(*parts: np.ndarray) -> np.ndarray:
    """Block diagonal matrix."""
    return sparse.block_diag(parts).toarray()


def _placed(vector: np.ndarray, start: int, length: int) -> np.ndarray:
    whole_vector = np.zeros(length)
    whole_vector[start : start + len(vector)] = vector
    return whole_vector


def _shifted(rows: list[dict[int, float]], by: int) -> list[dict[int, float]]:
    return [{column + by: value for column, value in row.items()} for row in rows]


def _codes(rows: list[dict[int, float]], n: int) -> sparse.csr_array:
    """csr matrix (rows x n) of entries column: value, columns ascending."""
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([column for row in rows for column in row])
    values = np.array([value for row in rows for value in row.values()])
    return sparse.csr_array((values, indices, indptr), shape=(len(rows), n))
