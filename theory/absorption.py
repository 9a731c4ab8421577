"""Absorption, hedging and splitting, measured against a planted hierarchy.

Where a child feature occurs only with its parent, a sparse autoencoder can save an active neuron: the child's neuron
takes over the parent's direction and the parent's neuron falls silent (absorption, Chanin et al. 2024,
arXiv:2409.14507). A dictionary that is too narrow does the opposite: one neuron stands for the parent with a part of
its children (hedging, Chanin et al. 2025, arXiv:2505.11756). With V and H known both can be measured instead of guessed
with probes.

The neuron of a feature is the one of largest signed cosine with it, where that exceeds tau. For a parent p and its
children c, all of them features that have a neuron of their own:

    absorbed      samples in which p and some c are active, p's neuron is silent and the neuron of an active c fires,
                  as a share of the samples in which p and some c are active
    excess        silence of p's neuron where p and some c are active, less its silence where p is active without any
                  child (only those with a neuron count as children): what the children add to ordinary misses
    leak          cos(w_c, v_p) - cos(v_c, v_p), the parent's direction written into the child's neuron
    hedging       cos(w_p, v_c) - cos(v_p, v_c), the child's direction written into the parent's neuron
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse

from simulator.errors import RequestError
from theory.geometry import Recovery, check
from theory.validation import dictionary, matrix, share, size, sparse_matrix, unit_rows


@dataclass(frozen=True)
class Absorption:
    """Means over parents (or edges parent-child) whose features have neurons; None where there are none."""

    parents: int
    """Parents that have a neuron, and a child with a neuron that is not the same."""
    edges: int
    """Pairs of such a parent and such a child."""
    absorption_rate: float | None
    excess_silence: float | None
    leak: float | None
    hedging: float | None
    splitting: float | None
    """Neurons at a cosine above tau whose best feature is this one, mean over the features that have one (1: none is
    split)."""
    duplicates: float | None
    """Share of the neurons at a cosine above tau that are not the only one of their feature's."""
    shared: float | None
    """Share of the edges, both features above tau, on which one and the same neuron is the best of both."""

    def summary(self) -> dict[str, float | int | None]:
        """One table row, keys as the fields."""
        return dict(vars(self))


def absorption(
    codes: sparse.csr_array | sparse.csr_matrix,
    W: Shaped[np.ndarray, "..."],
    H: sparse.csr_array | sparse.csr_matrix,
    V: Shaped[np.ndarray, "..."],
    parents: Shaped[np.ndarray, "..."],
    *,
    tau: float = 0.5,
    recovery: Recovery | None = None,
) -> Absorption:
    """Measure a network's codes and dictionary against a hierarchy.

    Args:
        codes: (N, M), a neuron fires where the entry is not 0. W: (M, d). H: (N, n), a feature is active where the
            entry is above 0. V: (n, d).
        parents: (n,), the parent of each feature, -1 for none; `simulator.Hierarchy.parents`.
        tau: cosine above which a neuron stands for a feature.
        recovery: `check(V, W)` where it is at hand.

    Raises:
        RequestError: arrays that do not fit each other, or a parent that is no feature.
    """
    V = dictionary("V", V)
    n = len(V)
    W = matrix("W", W, columns=V.shape[1])
    share("tau", tau)
    parents = np.asarray(parents)
    if parents.shape != (n,) or not np.issubdtype(parents.dtype, np.integer):
        raise RequestError(f"parents has shape {parents.shape}; it must be {n} whole numbers, one per feature")
    if n and (parents.max() >= n or (parents == np.arange(n)).any()):
        raise RequestError(f"parents names feature {parents.max()} or a feature itself; -1 stands for none")
    codes = sparse_matrix("codes", codes, (None, len(W)))
    H = sparse_matrix("H", H, (size(codes)[0], n))
    recovery = recovery or check(V, W, assignment=False, chance_draws=1)
    neuron = np.where(recovery.feature_cosine > tau, recovery.feature_neuron, -1)
    child = np.flatnonzero(parents >= 0)
    both = child[(neuron[child] >= 0) & (neuron[parents[child]] >= 0)]
    shared = neuron[both] == neuron[parents[both]]
    edges = both[~shared]
    features, directions = unit_rows(V), unit_rows(W)
    silent, absorbed, alone = _silences(codes, H, neuron, edges, parents)
    leak = hedging = None
    if len(edges):
        up = parents[edges]
        apart = np.einsum("ij,ij->i", features[edges], features[up])
        leak = float((np.einsum("ij,ij->i", directions[neuron[edges]], features[up]) - apart).mean())
        hedging = float((np.einsum("ij,ij->i", directions[neuron[up]], features[edges]) - apart).mean())
    good = recovery.neuron_cosine > tau
    owners = np.bincount(recovery.neuron_feature[good], minlength=n)
    held = owners[owners > 0]
    return Absorption(
        parents=len(np.unique(parents[edges])),
        edges=len(edges),
        absorption_rate=_mean(absorbed),
        excess_silence=_mean(silent - alone),
        leak=leak,
        hedging=hedging,
        splitting=float(held.mean()) if len(held) else None,
        duplicates=float(1 - (held == 1).sum() / held.sum()) if len(held) else None,
        shared=float(shared.mean()) if len(both) else None,
    )


def _mean(values: Float[np.ndarray, " parents"]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _silences(codes, H, neuron: np.ndarray, edges: np.ndarray, parents: np.ndarray):
    """Per parent: silence with an active child, share absorbed, silence without a child; NaN where it never is so."""
    fires = sparse.csc_array(codes)
    active = sparse.csc_array(H)
    N = size(fires)[0]
    found = []
    for p in np.unique(parents[edges]).tolist():
        there = _rows(active, p, N, positive=True)
        own = _rows(fires, int(neuron[p]), N)
        with_child = np.zeros(N, dtype=bool)
        taken = np.zeros(N, dtype=bool)
        for c in edges[parents[edges] == p].tolist():
            present = _rows(active, c, N, positive=True) & there
            with_child |= present
            taken |= present & _rows(fires, int(neuron[c]), N)
        lone = there & ~with_child
        found.append(
            (_share(~own, with_child), _share(~own & taken, with_child), _share(~own, lone))
        )  # fmt: skip
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _rows(table: sparse.csc_array, column: int, N: int, *, positive: bool = False) -> np.ndarray:
    """Rows in which a column has an entry that is not 0 (above 0), as a mask."""
    part = slice(table.indptr[column], table.indptr[column + 1])
    values = table.data[part]
    mask = np.zeros(N, dtype=bool)
    mask[table.indices[part][values > 0 if positive else values != 0]] = True
    return mask


def _share(hit: np.ndarray, among: np.ndarray) -> float:
    count = int(among.sum())
    return int((hit & among).sum()) / count if count else np.nan
