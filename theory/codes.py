"""What the codes say: activity of the neurons, agreement with the true supports, quality of the
reconstruction.

Everything is counted through sparse lookups in blocks of samples; nothing of size N x M or N x n is ever
dense.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse

from simulator.errors import RequestError
from theory.geometry import Recovery
from theory.validation import matrix, size, sparse_matrix, vector

BLOCK_ENTRIES = 1 << 21  # stored entries or dense floats handled at once


@dataclass(frozen=True)
class Detection:
    """One detector per row: share of samples it fires on and how well it detects its event. Undefined
    shares are 0."""

    frequency: Float[np.ndarray, " size"]
    precision: Float[np.ndarray, " size"]
    recall: Float[np.ndarray, " size"]
    f1: Float[np.ndarray, " size"]


@dataclass(frozen=True)
class CodeMetrics:
    """Measured on N samples; `loss` is sum ||x_hat - x||^2 / sum ||x||^2."""

    samples: int
    neurons: Detection
    """Per neuron, against the support of its feature of largest |cosine| (with replacement, as in the
    field)."""
    features: Detection
    """Per feature (frequency: of the feature), detected by its neuron of best signed cosine."""
    loss: float
    mean_l0: float
    true_l0: float
    dead: int
    """Neurons that were active on none of the samples."""
    explained_variance: float
    """1 - sum ||x_hat - x||^2 / sum ||x - mean x||^2; 0 where the inputs do not vary."""
    shrinkage: float
    """Mean ||x_hat|| / ||x|| over the samples with x != 0 (1: none)."""
    coefficient_error: Float[np.ndarray, " n"] | None
    """Per feature sqrt(sum (c - h)^2 / sum h^2) over the samples that have it, c = a_m phi_m |w_m| / |v_i|
    of its
    best neuron; NaN for a feature that never occurs. None where V was not given."""

    def summary(self) -> dict[str, float | int]:
        """One table row of plain numbers; means over all neurons (dead ones count 0) or all features."""
        row: dict[str, float | int] = {
            "loss": self.loss,
            "mean_l0": self.mean_l0,
            "true_l0": self.true_l0,
            "dead": self.dead,
            "explained_variance": self.explained_variance,
            "shrinkage": self.shrinkage,
        }
        for kind, detection in (("neuron", self.neurons), ("feature", self.features)):
            for name in ("precision", "recall", "f1"):
                row[f"detection_{name}_{kind}"] = float(getattr(detection, name).mean())
        return row


def code_metrics(
    codes: sparse.csr_array | sparse.csr_matrix,
    a: Shaped[np.ndarray, "..."] | float,
    W: Shaped[np.ndarray, "..."],
    b_pre: Shaped[np.ndarray, "..."],
    X: Shaped[np.ndarray, "..."],
    H: sparse.csr_array | sparse.csr_matrix,
    recovery: Recovery,
    *,
    V: Shaped[np.ndarray, "..."] | None = None,
) -> CodeMetrics:
    """Judge codes phi(x) against the truth, on samples that training has not seen.

    Args:
        codes: (N, M), the values phi_m(x) without output scales; a neuron is active where the entry is not 0.
        a: output scales, (M,) or one number; x_hat = sum_m a_m phi_m w_m + b_pre.
        W: (M, d). b_pre: (d,).
        X: (N, d), the inputs as the network saw them (see `normalised`).
        H: (N, n), true coefficients on the scale of X.
        recovery: `check(V, W)`, for who belongs to whom.
        V: (n, d), only for the coefficient error, which compares lengths along the feature.

    Raises:
        RequestError: shapes that do not fit together, NaN or infinite entries.
    """
    X = matrix("X", X)
    N, d = X.shape
    W = matrix("W", W, rows=recovery.M, columns=d)
    codes = sparse_matrix("codes", codes, (N, recovery.M))
    H = sparse_matrix("H", H, (N, recovery.n))
    a = vector("a", np.full(len(W), a) if np.ndim(a) == 0 else a, len(W))
    b_pre = vector("b_pre", b_pre, d)
    fires, occurs = _column_counts(codes), _column_counts(H)
    match, keeper = recovery.neuron_match, recovery.feature_neuron
    neurons = _detection(fires, occurs[match], _hits(codes, H, match), N)
    features = _detection(fires[keeper] * (keeper >= 0), occurs, _hits(H, codes, keeper), N, occurs)
    error = None
    if V is not None:
        V = matrix("V", V, rows=recovery.n, columns=d)
        factor = a[keeper] * np.linalg.norm(W, axis=1)[keeper] / np.linalg.norm(V, axis=1) * (keeper >= 0)
        error = _coefficient_error(H, codes, keeper, factor)
    residual, total, varying, shrinkage = _reconstruction(codes, a, W, b_pre, X)
    if total == 0:
        raise RequestError("X is all zeros; a normalised loss needs at least one non-zero input")
    return CodeMetrics(
        samples=N,
        neurons=neurons,
        features=features,
        loss=residual / total,
        mean_l0=codes.nnz / N,
        true_l0=H.nnz / N,
        dead=int((fires == 0).sum()),
        explained_variance=1.0 - residual / varying if varying > 0 else 0.0,
        shrinkage=shrinkage,
        coefficient_error=error,
    )


def normalised(
    X: Shaped[np.ndarray, "..."], H: sparse.csr_array | sparse.csr_matrix
) -> tuple[Float[np.ndarray, "N d"], sparse.csr_array]:
    """X with unit rows and H scaled by the same 1/||x||, so that x = H V still holds; zero rows stay as
    they are."""
    X = matrix("X", X)
    H = sparse_matrix("H", H, (len(X), None))
    length = np.linalg.norm(X, axis=1)
    factor = 1.0 / np.where(length > 0, length, 1.0)
    scaled = sparse.csr_array((H.data * np.repeat(factor, np.diff(H.indptr)), H.indices, H.indptr), shape=H.shape)
    return (X * factor[:, None]).astype(X.dtype, copy=False), scaled


def _column_counts(csr: sparse.csr_array) -> np.ndarray:
    return np.bincount(csr.indices, minlength=size(csr)[1])


def _detection(fires, occurs, hits, N: int, frequency_counts=None) -> Detection:
    precision = hits / np.maximum(fires, 1)
    recall = hits / np.maximum(occurs, 1)
    f1 = 2 * hits / np.maximum(fires + occurs, 1)
    return Detection((fires if frequency_counts is None else frequency_counts) / N, precision, recall, f1)


def _row_blocks(*tables: sparse.csr_array):
    """Row ranges with at most about BLOCK_ENTRIES stored entries in each table."""
    start, N = 0, size(tables[0])[0]
    while start < N:
        stop = min(
            int(np.searchsorted(table.indptr, table.indptr[start] + BLOCK_ENTRIES, side="right")) - 1
            for table in tables
        )
        stop = min(N, max(start + 1, stop))
        yield start, stop
        start = stop


def _partner_values(left: sparse.csr_array, right: sparse.csr_array, partner: Int[np.ndarray, " columns"]):
    """For every stored entry (l, j) of `left`, blockwise: j, its value, and right[l, partner[j]] (0 if
    absent)."""
    width = size(right)[1]
    for start, stop in _row_blocks(left, right):
        mine = slice(left.indptr[start], left.indptr[stop])
        theirs = slice(right.indptr[start], right.indptr[stop])
        local = np.repeat(np.arange(stop - start), np.diff(left.indptr[start : stop + 1]))
        known = np.repeat(np.arange(stop - start), np.diff(right.indptr[start : stop + 1])) * width
        known = known + right.indices[theirs]
        columns = left.indices[mine]
        wanted = local * width + partner[columns]
        values = np.zeros(len(columns))
        if len(known):
            place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            there = (known[place] == wanted) & (partner[columns] >= 0)
            values[there] = right.data[theirs][place[there]]
        yield columns, left.data[mine], values


def _hits(left: sparse.csr_array, right: sparse.csr_array, partner: np.ndarray) -> np.ndarray:
    """Per column j of `left`: samples in which both it and column partner[j] of `right` are present."""
    hits = np.zeros(size(left)[1], dtype=np.int64)
    for columns, _, values in _partner_values(left, right, partner):
        hits += np.bincount(columns[values != 0], minlength=len(hits))
    return hits


def _coefficient_error(H, codes, keeper: np.ndarray, factor: np.ndarray) -> np.ndarray:
    wrong, energy = np.zeros(len(keeper)), np.zeros(len(keeper))
    for columns, truth, values in _partner_values(H, codes, keeper):
        difference = factor[columns] * values - truth
        wrong += np.bincount(columns, difference**2, minlength=len(keeper))
        energy += np.bincount(columns, truth.astype(np.float64) ** 2, minlength=len(keeper))
    return np.sqrt(np.divide(wrong, energy, out=np.full(len(keeper), np.nan), where=energy > 0))


def _reconstruction(codes, a, W, b_pre, X) -> tuple[float, float, float, float]:
    """sum ||x_hat - x||^2, sum ||x||^2, sum ||x - mean||^2, mean ||x_hat|| / ||x||, all in float64."""
    N, d = X.shape
    decoder = a[:, None] * W.astype(np.float64)
    mean = X.mean(axis=0, dtype=np.float64)
    residual = total = varying = 0.0
    ratios, counted = 0.0, 0
    step = max(1, BLOCK_ENTRIES // d)
    for start in range(0, N, step):
        x = X[start : start + step].astype(np.float64)
        x_hat = codes[start : start + step] @ decoder + b_pre
        residual += float(((x_hat - x) ** 2).sum())
        total += float((x**2).sum())
        varying += float(((x - mean) ** 2).sum())
        length = np.linalg.norm(x, axis=1)
        nonzero = length > 0
        ratios += float((np.linalg.norm(x_hat, axis=1)[nonzero] / length[nonzero]).sum())
        counted += int(nonzero.sum())
    return residual, total, varying, ratios / max(counted, 1)
