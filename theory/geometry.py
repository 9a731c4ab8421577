"""Which features a dictionary holds: any dictionary against any other, no training needed.

Definitions (Chen et al. 2025, arXiv:2506.14002, experiments): feature i is recovered at tau when some
neuron has a signed cosine with it above tau; the feature recovery rate FRR(tau) is the share of ALL
features recovered. It grows with the number of neurons even when they are random, so it is never given
alone: beside it stand the FRR of the untrained network and the share of alive neurons that point at a
feature.
"""

import numpy as np
from jaxtyping import Float, Shaped

from simulator.errors import RequestError
from theory.chance import chance_level
from theory.cosines import scan
from theory.matching import CANDIDATES, Assignment, dense, exact_size, interval
from theory.recovery import FrequencyBin, Recovery
from theory.validation import dictionary, matrix, share, unit_rows, vector

__all__ = ["FrequencyBin", "Recovery", "best_cosines", "check"]


def check(
    V: Shaped[np.ndarray, "..."],
    W: Shaped[np.ndarray, "..."],
    *,
    W_start: Shaped[np.ndarray, "..."] | None = None,
    thresholds: tuple[float, ...] = (0.8, 0.9),
    frequencies: Shaped[np.ndarray, "..."] | None = None,
    alive: Shaped[np.ndarray, "..."] | None = None,
    seed: int = 0,
    assignment: bool = True,
    chance_draws: int = 8,
) -> Recovery:
    """Measure the dictionary W (M, d) against the true dictionary V (n, d); row lengths play no part.

    Args:
        V: (n, d), features in rows, none of them zero.
        W: (M, d), neurons in rows; zero rows are dead: they recover nothing.
        W_start: (M, d), the untrained network, for the FRR that must stand beside the trained one.
        thresholds: cosines at which neurons per feature and features per neuron are counted.
        frequencies: (n,) non-negative, share of samples in which each feature occurs, for `by_frequency`.
        alive: (M,) booleans, the neurons counted in the neuron precision; default: the non-zero rows.
        seed: of the random dictionaries behind the chance level of the MCC.
        assignment: False leaves out MCC and its chance level (the only costly part for small shapes).
        chance_draws: random dictionaries for the chance level.

    Returns:
        `Recovery`. MCC is exact up to 4,096 x 16,384, beyond it an interval (see `theory.matching`).

    Raises:
        RequestError: NaN or infinite entries, wrong shapes or dtypes, empty arrays, a feature without
            direction, a threshold outside [-1, 1].
    """
    V = dictionary("V", V)
    n, d = V.shape
    W = matrix("W", W, columns=d)
    M = len(W)
    thresholds = tuple(share("threshold", tau) for tau in thresholds)
    directed = np.asarray(W.any(axis=1))
    counted = directed if alive is None else _mask("alive", alive, M)
    if frequencies is not None:
        frequencies = vector("frequencies", frequencies, n)
        lowest = float(frequencies.min())
        if lowest < 0:
            raise RequestError(f"frequencies hold {lowest:g}; a frequency is not negative")
    if assignment and chance_draws < 1:
        raise RequestError(f"chance_draws = {chance_draws}; at least 1 is needed (or assignment=False)")
    if W_start is not None:
        W_start = matrix("W_start", W_start, columns=d, rows=M)
    features, neurons = unit_rows(V), unit_rows(W[directed])
    sparse = assignment and not exact_size(n, M)
    facts, mcc = _compare(features, neurons, thresholds, M if assignment else 0, sparse)
    place = np.flatnonzero(directed)
    best, neuron_best, neuron_absolute, per_feature, per_neuron = facts
    return Recovery(
        n=n,
        M=M,
        d=d,
        thresholds=thresholds,
        feature_cosine=best[0],
        feature_neuron=place[best[1]] if len(place) else best[1],
        neuron_cosine=_scatter(neuron_best[0], place, M, 0.0),
        neuron_feature=_scatter(neuron_best[1], place, M, -1),
        neuron_match=_scatter(neuron_absolute[1], place, M, 0),
        neurons_per_feature=per_feature,
        features_per_neuron=np.stack([_scatter(row, place, M, 0) for row in per_neuron])
        if thresholds
        else np.zeros((0, M), dtype=np.int64),
        alive=counted,
        mcc=mcc,
        mcc_chance=chance_level(features, M, draws=chance_draws, seed=seed) if assignment else None,
        untrained_cosine=None if W_start is None else best_cosines(features, W_start),
        frequencies=frequencies,
    )


def best_cosines(V: Float[np.ndarray, "n d"], W: Float[np.ndarray, "M d"]) -> Float[np.ndarray, " n"]:
    """Largest signed cosine of every row of V with a non-zero row of W; 0 where W has none."""
    return _compare(unit_rows(V), unit_rows(W[W.any(axis=1)]), (), 0, False)[0][0][0]


def _compare(features: np.ndarray, neurons: np.ndarray, thresholds: tuple[float, ...], M: int, sparse: bool):
    """Scan with the smaller side as rows (candidates belong to it); M > 0: also the assignment."""
    n, present = len(features), len(neurons)
    if not present:
        counts = (
            np.zeros((len(thresholds), n), dtype=np.int64),
            np.zeros((len(thresholds), 0), dtype=np.int64),
        )
        nobody = np.empty(0), np.empty(0, dtype=np.int64)
        best = np.zeros(n), np.full(n, -1)
        return (best, nobody, nobody, *counts), Assignment(0.0, 0.0, True) if M else None
    swap = present < n
    rows, columns = (neurons, features) if swap else (features, neurons)
    found = scan(rows, columns, thresholds, CANDIDATES if sparse else 0)
    mcc = None
    if found.candidates is not None:
        mcc = interval(rows, columns, found.candidates, min(n, M))
    elif M:
        mcc = dense(rows, columns, min(n, M))
    if swap:
        facts = (found.column_best, found.row_best, found.row_absolute, found.column_counts, found.row_counts)
    else:
        facts = (
            found.row_best,
            found.column_best,
            found.column_absolute,
            found.row_counts,
            found.column_counts,
        )
    return facts, mcc


def _mask(name: str, value, length: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape != (length,):
        raise RequestError(f"{name} has dtype {array.dtype} and shape {array.shape}; ({length},) booleans are needed")
    return array.copy()


def _scatter(values: np.ndarray, place: np.ndarray, length: int, otherwise: float) -> np.ndarray:
    full = np.full(length, otherwise, dtype=values.dtype)
    full[place] = values
    return full
