"""Exact samplers of sparse rows: what the support laws are made of.

Every sampler costs time and memory in proportion to what it returns, never N x n. A `Draw` is a prepared
sampler: what depends on the law alone is computed once, so that a batch costs little.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from simulator.errors import RequestError


class Rows(NamedTuple):
    """The supports of N samples as in scipy's csr format: row l holds indices[indptr[l]:indptr[l + 1]].

    The indices of a row are distinct and ascending. Both arrays have one dtype, int32 where that suffices.
    """

    indptr: Integer[np.ndarray, " rows_plus_one"]
    indices: Integer[np.ndarray, " entries"]


Draw = Callable[[int, np.random.Generator], Rows]
"""Prepared sampler of supports: number of rows N and random stream to `Rows`."""

Pick = Callable[[int, np.random.Generator], np.ndarray]
"""Prepared sampler of single features: how many and random stream to an int32 array."""

# Above this frequency the Poisson points of `bernoulli_rows` would be mostly repetitions.
_FREQUENT = 0.5
# A frequency this near to 1 is taken as 1.
_CERTAIN = 1 - 1e-12
# Below this acceptance rate a rejection sampler is no longer usable.
_LEAST_ACCEPTANCE = 1e-3
# Entries that one round of a rejection sampler may hold: bounds its memory.
_ROUND = 1 << 22


def as_rows(indptr: np.ndarray, indices: np.ndarray) -> Rows:
    """`Rows` with the smallest index dtype that fits."""
    dtype = np.int32 if indices.size < 2**31 - 1 else np.int64
    return Rows(indptr.astype(dtype, copy=False), indices.astype(dtype, copy=False))


def even_rows(features: Integer[np.ndarray, "N s"]) -> Rows:
    """`Rows` of N samples with s features each."""
    N, s = features.shape
    dtype = np.int32 if N * s < 2**31 - 1 else np.int64
    return as_rows(np.arange(N + 1, dtype=dtype) * dtype(s), features.reshape(-1))


def pick_by_weight(weights: Float[np.ndarray, " n"]) -> Pick:
    """Feature i with probability weights_i / sum_j weights_j, by the alias method (Walker 1977, Vose 1991).

    The table costs O(n) once, a draw O(1).
    """
    n = weights.size
    if np.ptp(weights) == 0:
        return lambda count, rng: rng.integers(0, n, count, dtype=np.int32)
    share = (weights * (n / weights.sum())).tolist()
    alias = list(range(n))
    threshold = [1.0] * n
    small = [i for i, x in enumerate(share) if x < 1]
    large = [i for i, x in enumerate(share) if x >= 1]
    while small and large:
        i, j = small.pop(), large[-1]
        threshold[i], alias[i] = share[i], j
        share[j] -= 1 - share[i]
        if share[j] < 1:
            small.append(large.pop())
    thresholds, aliases = np.array(threshold), np.array(alias, dtype=np.int32)

    def pick(count: int, rng: np.random.Generator) -> np.ndarray:
        position = rng.random(count)
        position *= n
        cell = position.astype(np.int32)
        position -= cell
        return np.where(position < thresholds[cell], cell, aliases[cell])

    return pick


def distinct_rows(N: int, n: int, s: int, rng: np.random.Generator) -> Int[np.ndarray, "N s"]:
    """N independent uniformly random s-subsets of {0..n-1}, each ascending; 0 <= s <= n.

    s features are drawn with repetition, one of each is kept, and the repetitions are drawn again until there
    are none. The procedure treats all features alike, so every s-subset has the same probability.
    """
    if s > n // 2:  # repetitions would be many: draw the absent features instead
        present = np.ones((N, n), dtype=bool)
        np.put_along_axis(present, distinct_rows(N, n, n - s, rng).astype(np.intp), False, axis=1)
        return np.nonzero(present)[1].astype(np.int32).reshape(N, s)
    features = rng.integers(0, n, (N, s), dtype=np.int32)
    if s < 2:
        return features
    features.sort(axis=1)
    pending = _rows_with(features[:, 1:] == features[:, :-1])
    while pending.size:
        block = features[pending]
        repeated = block[:, 1:] == block[:, :-1]
        block[:, 1:][repeated] = rng.integers(0, n, np.count_nonzero(repeated), dtype=np.int32)
        block.sort(axis=1)
        features[pending] = block
        pending = pending[_rows_with(block[:, 1:] == block[:, :-1])]
    return features


def bernoulli_rows(frequencies: Float[np.ndarray, " n"]) -> Draw:
    """Independent features, feature i in a row with probability f_i exactly, in O(active features).

    If the points of feature i in a row are Poisson with mean -log(1 - f_i), there is at least one with
    probability f_i. So each row gets Poisson(sum_i -log(1 - f_i)) points, each point a feature picked in
    proportion to its mean, and repetitions are dropped. Features with f_i > 1/2 get a coin each.
    """
    frequent = np.flatnonzero(frequencies > _FREQUENT).astype(np.int32)
    coins = frequencies[frequent]
    rare = np.flatnonzero((frequencies > 0) & (frequencies <= _FREQUENT)).astype(np.int32)
    means = -np.log1p(-frequencies[rare])
    mean_points = float(means.sum())
    pick = pick_by_weight(means) if rare.size else None
    bits = max(int(frequencies.size - 1).bit_length(), 1)

    def draw(N: int, rng: np.random.Generator) -> Rows:
        # One sortable number per point: row, then feature. 32 bits sort faster where they suffice.
        key_type = np.int32 if N << bits < 2**31 else np.int64
        starts = np.arange(N + 1, dtype=key_type) << key_type(bits)
        keys = np.empty(0, dtype=key_type)
        if pick is not None:
            keys = np.repeat(starts[:-1], rng.poisson(mean_points, N))
            keys |= rare[pick(keys.size, rng)]
        if frequent.size:
            row, column = np.nonzero(rng.random((N, frequent.size)) < coins)
            keys = np.concatenate([keys, starts[row] | frequent[column]])
        keys.sort()
        first = np.ones(keys.size, dtype=bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        keys = keys[first]
        return as_rows(np.searchsorted(keys, starts), keys & key_type((1 << bits) - 1))

    return draw


def sampford_rows(frequencies: Float[np.ndarray, " n"], s: int) -> Draw:
    """Rows of exactly s features with inclusion probabilities exactly f_i, where sum_i f_i = s and f_i <= 1.

    Sampford's design (Sampford 1967, Biometrika 54:499): P(S) is proportional to
    sum_{i in S} (1 - f_i) prod_{i in S} f_i / (1 - f_i); features with f_i = 1 are in every row. Feature i
    is picked with probability f_i / s; the s - 1 others, T, come with probability in proportion to
    prod_{j in T} f_j / (1 - f_j); the row is accepted if all s are distinct. Two proposals give such a T, and
    the one that is accepted more often is used: s - 1 picks by the odds f_j / (1 - f_j), if distinct (best
    for small f), or independent features of frequency f_j, if there are s - 1 of them (best for large f).

    Raises:
        RequestError: under one row in 1,000 would be accepted: f_i that are nearly but not quite 0 and 1.
    """
    certain = np.flatnonzero(frequencies >= _CERTAIN).astype(np.int32)
    chosen = np.flatnonzero((frequencies > 0) & (frequencies < _CERTAIN)).astype(np.int32)
    size = s - certain.size
    f = frequencies[chosen]
    if size == 0 or chosen.size == size:
        everything = np.sort(np.concatenate([certain, chosen]))[:s]
        return lambda N, rng: even_rows(np.tile(everything, (N, 1)))
    by_odds, by_coins = _sampford_acceptance(f, size)
    acceptance = max(by_odds, by_coins)
    if acceptance < _LEAST_ACCEPTANCE:
        raise RequestError(
            f"frequencies up to {f.max():.9g} with exactly {s} features a row are too near to certainty to "
            "sample; make the frequent ones exactly 1, flatten the frequencies or use Bernoulli supports"
        )
    propose = _odds_proposal(f, size) if by_odds >= by_coins else _coins_proposal(f, size)
    rows_per_round = max(_ROUND // size, 1)

    def draw(N: int, rng: np.random.Generator) -> Rows:
        accepted: list[np.ndarray] = []
        missing = N
        while missing > 0:
            wanted = min(int(1.1 * missing / acceptance) + 16, rows_per_round)
            block = propose(wanted, rng)[:missing]
            accepted.append(block)
            missing -= len(block)
        features = chosen[np.concatenate(accepted)]
        if certain.size:
            features = np.concatenate([features, np.broadcast_to(certain, (N, certain.size))], axis=1)
            features.sort(axis=1)
        return even_rows(features)

    return draw


def _odds_proposal(f: np.ndarray, size: int) -> Pick:
    pick_first, pick_others = pick_by_weight(f), pick_by_weight(f / (1 - f))

    def propose(wanted: int, rng: np.random.Generator) -> np.ndarray:
        others = pick_others(wanted * (size - 1), rng).reshape(wanted, size - 1)
        return _distinct_only(np.column_stack([others, pick_first(wanted, rng)]))

    return propose


def _coins_proposal(f: np.ndarray, size: int) -> Pick:
    pick_first, draw_others = pick_by_weight(f), bernoulli_rows(f)

    def propose(wanted: int, rng: np.random.Generator) -> np.ndarray:
        indptr, indices = draw_others(wanted, rng)
        fitting = np.flatnonzero(np.diff(indptr) == size - 1)
        others = indices[indptr[fitting][:, None] + np.arange(size - 1, dtype=indptr.dtype)]
        return _distinct_only(np.column_stack([others, pick_first(fitting.size, rng)]))

    return propose


def _sampford_acceptance(f: np.ndarray, size: int) -> tuple[float, float]:
    """Approximate acceptance rates of the two proposals; they decide the speed only, never the law."""
    # E[sum_S (1 - f_i); |S| = s] / s with the sum at its mean, Var |S|, and |S| normal.
    variance = float(f @ (1 - f))
    by_coins = min(variance / size / math.sqrt(1 + 2 * math.pi * variance), 1.0)
    # Both proposals accept the same rows; those by odds have (s - 1)! orders, and weights that are not
    # normalised.
    log_ratio = math.lgamma(size) - (size - 1) * math.log(float(np.sum(f / (1 - f)))) - np.log1p(-f).sum()
    by_odds = math.exp(min(log_ratio + math.log(by_coins), 0.0))
    return by_odds, by_coins


def _distinct_only(features: np.ndarray) -> np.ndarray:
    """The rows without a repetition, each sorted."""
    features.sort(axis=1)
    return features[(features[:, 1:] != features[:, :-1]).all(axis=1)]


def _rows_with(flags: np.ndarray) -> np.ndarray:
    """Indices of the rows that hold a True; quicker than `any(axis=1)` where they are few."""
    hits = np.flatnonzero(flags)
    if not hits.size:
        return hits
    row = hits // flags.shape[1]
    return row[np.append(True, row[1:] != row[:-1])]
