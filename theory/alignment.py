"""Observers of a run: how single neurons turn towards features, and how many features are found."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from simulator.errors import RequestError
from theory.cosines import block_cosines
from theory.geometry import best_cosines
from theory.validation import dictionary, matrix, unit_rows


@dataclass(frozen=True)
class Alignment:
    """Called by `simulator.fit` with (step, W, b); one column per watched neuron and followed feature.

    Attributes:
        V: planted features with unit rows, (n, d).
        neurons: watched rows of W.
        followed: the features that are followed for each of them, (watched, k).
    """

    V: Float[np.ndarray, "n d"]
    neurons: tuple[int, ...]
    followed: Int[np.ndarray, "watched k"]

    def __call__(self, step: int, W: np.ndarray, b: np.ndarray) -> Mapping[str, float]:
        """cosine_m_j for every followed feature j of neuron m, best_m over all features, FRR at 0.8 and 0.9."""
        rows = unit_rows(np.asarray(W[list(self.neurons)], np.float64))
        cosines = block_cosines(rows, self.V)
        line: dict[str, float] = {}
        for place, m in enumerate(self.neurons):
            for j in self.followed[place]:
                line[f"cosine_{m}_{j}"] = float(cosines[place, j])
            line[f"best_{m}"] = float(cosines[place].max())
            line[f"feature_{m}"] = float(cosines[place].argmax())
        best = best_cosines(self.V, unit_rows(np.asarray(W, np.float64)))
        return line | {"frr_080": float((best > 0.8).mean()), "frr_090": float((best > 0.9).mean())}


def follow(
    V: Shaped[np.ndarray, "..."], W_start: Shaped[np.ndarray, "..."], neurons: tuple[int, ...], features: int
) -> Alignment:
    """Watch neurons and, for each, the features of largest cosine before training: the race that one of them wins.

    Args:
        V: planted features, (n, d). W_start: the network before training, (M, d).
        neurons: which rows of W.
        features: how many features to follow for each.

    Raises:
        RequestError: a neuron that does not exist, or more features than there are.
    """
    V = dictionary("V", V)
    W_start = matrix("W_start", W_start, columns=V.shape[1])
    if not all(0 <= m < len(W_start) for m in neurons):
        raise RequestError(f"watched neurons {neurons} must lie in 0..{len(W_start) - 1}")
    if not 0 <= features <= len(V):
        raise RequestError(f"features to follow = {features} must lie in 0..{len(V)}")
    unit = unit_rows(np.asarray(V, np.float64))
    start = block_cosines(unit_rows(np.asarray(W_start[list(neurons)], np.float64)), unit)
    return Alignment(unit, tuple(neurons), np.argsort(-start, axis=1, kind="stable")[:, :features])


def initial_rank(
    V: Shaped[np.ndarray, "..."], W_start: Shaped[np.ndarray, "..."], W: Shaped[np.ndarray, "..."]
) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Where the feature that a neuron ends at stood before training.

    Returns:
        Per neuron: how many features were closer to it at the start than the one it ends nearest to (0: it ends
        at the one it started nearest to), and its final cosine with that feature.
    """
    unit = unit_rows(np.asarray(dictionary("V", V), np.float64))
    last = block_cosines(unit_rows(np.asarray(matrix("W", W, columns=unit.shape[1]), np.float64)), unit)
    first = block_cosines(unit_rows(np.asarray(matrix("W_start", W_start, rows=len(W)), np.float64)), unit)
    winner = last.argmax(axis=1)
    rows = np.arange(len(last))
    return (first > first[rows, winner][:, None]).sum(axis=1), last[rows, winner]
