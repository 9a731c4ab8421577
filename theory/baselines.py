"""Reference rows for every table: what the true dictionary reaches, and what dictionaries reach without
learning.

All but NNLS share one encoder, the best common threshold: rows w of unit length, z = w.x, code z where z >
theta and 0 elsewhere, x_hat = c * sum of the codes' rows; c is the least-squares scale and theta the one of
about 20 thresholds (each set by the mean number of active rows it leaves) with the least loss on the first
half of the samples. Every number in a row is measured on the second half. `loss` is sum ||x_hat - x||^2 /
sum ||x||^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.optimize import nnls

from simulator.errors import RequestError
from simulator.rng import stream
from theory.geometry import best_cosines, check
from theory.validation import dictionary, matrix, unit_rows

FIT_SAMPLES, EVALUATION_SAMPLES = 2048, 8192
BLOCK_FLOATS, GRID_FLOATS = 1 << 23, 1 << 20
NNLS_SAMPLES, NNLS_ENTRIES = 200, 1 << 19
KMEANS_ROUNDS, KMEANS_OPERATIONS = 20, 2e11

Row = dict[str, float | int | str | list[float] | None]


class ThresholdFit(NamedTuple):
    """The encoder of this module: codes z 1(z > theta), reconstruction scale c."""

    theta: float
    scale: float


def reference_rows(
    V: Shaped[np.ndarray, "..."] | None,
    X: Shaped[np.ndarray, "..."],
    M: int,
    *,
    W_start: Shaped[np.ndarray, "..."] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Row]:
    """One row per reference, with the columns of `Recovery.summary()` and name, loss, mean_l0, dead, note.

    Args:
        V: (n, d), the true dictionary; None where it is not known: then only the references that need none,
            without the columns of the summary. X: (N, d), N >= 2 samples as the network sees them.
        M: rows of the dictionaries that are not the true one.
        W_start: (M, d), the untrained network whose FRR stands in every row.
        names: a choice from `REFERENCES`, in the order wanted; default: all.

    Raises:
        RequestError: impossible arrays or an unknown name.
    """
    V = None if V is None else dictionary("V", V)
    X = matrix("X", X, columns=None if V is None else V.shape[1])
    if len(X) < 2 or M < 1:
        raise RequestError(f"{len(X)} samples and M = {M}; at least 2 samples and 1 neuron are needed")
    if W_start is not None:
        W_start = matrix("W_start", W_start, columns=X.shape[1], rows=M)
    half = len(X) // 2
    train, test = X[:half], X[half:]
    for part, which in ((train, "first"), (test, "second")):
        if not part.any():
            raise RequestError(f"the {which} half of X is all zeros; non-zero samples are needed in both halves")
    if names is None:
        names = tuple(name for name in REFERENCES if V is not None or not name.startswith("true"))
    unknown = [name for name in names if name not in REFERENCES]
    if unknown:
        raise RequestError(f"unknown reference {unknown[0]!r}; known: {', '.join(REFERENCES)}")
    if V is None and any(name.startswith("true") for name in names):
        raise RequestError("the true dictionary is a reference only where V is given")
    untrained = None if W_start is None or V is None else best_cosines(V, W_start)
    rows = []
    for name in names:
        W, measured = REFERENCES[name](V, train, test, M, seed)
        facts = {} if V is None else replace(check(V, W, seed=seed), untrained_cosine=untrained).summary()
        rows.append({"name": name, **facts, **measured})
    return rows


def fit_threshold(W: Float[np.ndarray, "M d"], X: Float[np.ndarray, "N d"]) -> ThresholdFit:
    """The threshold of least loss on X (at most the first 2,048 samples) for unit rows W, and its scale."""
    X = X[:FIT_SAMPLES]
    step = max(1, GRID_FLOATS // len(W))
    sample = (X[:step].astype(np.float32) @ W.T.astype(np.float32)).ravel()
    # Thresholds half way between values that differ by more than rounding: none cuts through equal ones.
    sample = np.sort(np.maximum(np.round(sample, 5), 0.0))
    # Mean numbers of active rows from 1/2 to all of them (at most 256), evenly in logarithm.
    wanted = np.geomspace(0.5, max(1.0, min(len(W), 256.0)), 20)
    places = np.clip(len(sample) - np.round(wanted / len(W) * len(sample)).astype(int), 0, len(sample) - 1)
    above = np.unique(sample[places])
    before = np.searchsorted(sample, above)
    below = np.where(before > 0, sample[before - 1], 0.0)
    best = ThresholdFit(0.0, 0.0)
    least = np.inf
    for theta in np.unique((above + below) / 2):
        inner, norm, total, _ = _products(W, X, float(theta))
        scale = inner / norm if norm > 0 else 0.0
        loss = 1.0 - scale * inner / total
        if loss < least + 1e-6:  # the sparser of two that are as good
            best, least = ThresholdFit(float(theta), scale), loss
    return best


def _products(W: np.ndarray, X: np.ndarray, theta: float) -> tuple[float, float, float, np.ndarray]:
    """sum x.r, sum ||r||^2, sum ||x||^2 for r = sum of the codes' rows, and how often each row was active."""
    weights = torch.from_numpy(W.astype(np.float32))
    active = torch.zeros(len(W), dtype=torch.int64)
    inner = norm = total = 0.0
    step = max(1, BLOCK_FLOATS // len(W))
    for start in range(0, len(X), step):
        x = torch.from_numpy(X[start : start + step].astype(np.float32))
        z = x @ weights.T
        z = torch.nn.functional.threshold(z, theta, 0.0)
        r = (z @ weights).double()
        active += torch.count_nonzero(z, dim=0)
        inner += float((x * r).sum())
        norm += float((r * r).sum())
        total += float((x.double() ** 2).sum())
    return inner, norm, total, active.numpy()


def _threshold_row(W: np.ndarray, train: np.ndarray, test: np.ndarray, note: str) -> Row:
    fit = fit_threshold(W, train)
    test = test[:EVALUATION_SAMPLES]
    inner, norm, total, active = _products(W, test, fit.theta)
    loss = 1.0 + (fit.scale**2 * norm - 2 * fit.scale * inner) / total
    how = f"best threshold encoder, theta = {fit.theta:.3g}, scale = {fit.scale:.3g}, {len(test)} samples"
    return {
        "loss": loss,
        "mean_l0": float(active.sum() / len(test)),
        "dead": int((active == 0).sum()),
        "note": f"{note}{how}",
    }


def _truth(V, train, test, M: int, seed: int) -> tuple[np.ndarray, Row]:
    W = unit_rows(V)
    return W, _threshold_row(W, train, test, "")


def _nonnegative(V, train, test, M: int, seed: int) -> tuple[np.ndarray, Row]:
    """Codes by min ||x - h V||, h >= 0, solved exactly (Lawson & Hanson) sample by sample."""
    n, d = V.shape
    W = unit_rows(V)
    if n * d > NNLS_ENTRIES:
        note = f"NNLS skipped: n d = {n * d} entries a sample, the limit is {NNLS_ENTRIES}"
        return W, {"loss": None, "mean_l0": None, "dead": None, "note": note}
    samples = test[:NNLS_SAMPLES].astype(np.float64)
    residual, active, left_out = 0.0, np.zeros(n, dtype=np.int64), 0
    total, design = 0.0, np.ascontiguousarray(W.T)
    for x in samples:
        try:
            code, distance = nnls(design, x, maxiter=20 * n)
        except RuntimeError:
            left_out += 1
            continue
        residual, total = residual + distance**2, total + float(x @ x)
        active += code > 1e-9 * max(1e-300, float(np.abs(code).max()))
    solved = len(samples) - left_out
    note = f"exact NNLS codes, {solved} samples" + (f", {left_out} not converged and left out" if left_out else "")
    return W, {
        "loss": residual / total if total > 0 else None,
        "mean_l0": float(active.sum() / solved) if solved else None,
        "dead": int((active == 0).sum()),
        "note": note,
    }


def _random(V, train, test, M: int, seed: int) -> tuple[np.ndarray, Row]:
    W = unit_rows(stream(seed, "random dictionary").standard_normal((M, train.shape[1])))
    return W, _threshold_row(W, train, test, "isotropic directions; ")


def _points(V, train, test, M: int, seed: int) -> tuple[np.ndarray, Row]:
    W = _draw_points(train, M, seed)
    return W, _threshold_row(W, train, test, f"{len(W)} of {len(train)} samples; ")


def _draw_points(train: np.ndarray, M: int, seed: int) -> np.ndarray:
    usable = np.flatnonzero(train.any(axis=1))
    chosen = stream(seed, "random points").choice(usable, size=min(M, len(usable)), replace=False)
    return unit_rows(train[chosen])


def _clusters(V, train, test, M: int, seed: int) -> tuple[np.ndarray, Row]:
    W, note = spherical_kmeans(train, M, seed=seed)
    return W, _threshold_row(W, train, test, note)


def spherical_kmeans(X: Float[np.ndarray, "N d"], M: int, *, seed: int = 0) -> tuple[Float[np.ndarray, "K d"], str]:
    """Lloyd's rounds on directions: every x to the centre of largest cosine, centre = normalised mean of
    its unit x.

    Starts at min(M, N) random samples; a centre that loses all its samples moves to the sample that fits
    worst.
    At most 20 rounds and 2e11 multiplications: where N M d 20 is more, only the first samples are used (the
    note says how many, never fewer than 2 M).

    Returns:
        Centres with unit rows, (min(M, N), d), and a note on the cost.
    """
    X = X[X.any(axis=1)]
    cap = int(max(2 * M, KMEANS_OPERATIONS // (KMEANS_ROUNDS * M * X.shape[1])))
    X = X[:cap]
    centres = torch.from_numpy(_draw_points(X, M, seed).astype(np.float32))
    points = torch.from_numpy(unit_rows(X).astype(np.float32))
    step = max(1, BLOCK_FLOATS // len(centres))
    owner, used = torch.full((len(points),), -1), 0
    for _ in range(KMEANS_ROUNDS):
        parts = [(points[s : s + step] @ centres.T).max(dim=1) for s in range(0, len(points), step)]
        fit, nearest = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
        if torch.equal(nearest, owner):
            break
        owner, used = nearest, used + 1
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        length = sums.norm(dim=1, keepdim=True)
        empty = torch.nonzero(length[:, 0] < 1e-6)[:, 0]
        centres = sums / length.clamp_min(1e-6)
        centres[empty] = points[torch.argsort(fit, stable=True)[: len(empty)]]
    return centres.double().numpy(), f"spherical k-means, {len(points)} samples, {used} rounds; "


REFERENCES: dict[str, Callable[..., tuple[np.ndarray, Row]]] = {
    "true dictionary, threshold": _truth,
    "true dictionary, NNLS": _nonnegative,
    "random dictionary": _random,
    "random data points": _points,
    "k-means": _clusters,
}
"""Reference name -> its dictionary and what its encoder measures."""
