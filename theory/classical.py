"""Classical dictionary learners as reference rows, where their packages are installed.

Every learner gets the same samples and learns a dictionary only; any dictionary is then read through the one encoder
of `theory.baselines`, the best common threshold (`threshold_codes`), so that a row says something about directions
and not about the solver that a package brings along.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse

from simulator.checks import real, whole
from simulator.errors import RequestError
from theory.baselines import ThresholdFit, spherical_kmeans
from theory.validation import matrix

_BLOCK = 1 << 24
NOT_INSTALLED = "not installed: pip install 'sae-recovery[classical]'"


@dataclass(frozen=True)
class ClassicalResult:
    """What a learner found: `dictionary` (M, d), None where its package is missing (`note` says so)."""

    name: str
    dictionary: Float[np.ndarray, "M d"] | None
    seconds: float
    samples: int
    note: str


def _sklearn(X: np.ndarray, M: int, penalty: float, seed: int, batch: int) -> tuple[np.ndarray, str]:
    decomposition = importlib.import_module("sklearn.decomposition")
    # Coordinate descent: non-negative codes, as the worlds have them.
    model = decomposition.MiniBatchDictionaryLearning(
        n_components=M, alpha=penalty, batch_size=batch, fit_algorithm="cd", positive_code=True, max_iter=3,
        random_state=seed, shuffle=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        # One inner solution that stops early is no failure of the dictionary, which is judged by what it recovers.
        warnings.simplefilter("ignore", importlib.import_module("sklearn.exceptions").ConvergenceWarning)
        return model.fit(X).components_, f"MiniBatchDictionaryLearning, alpha = {penalty:g}"


def _spams(X: np.ndarray, M: int, penalty: float, seed: int, batch: int) -> tuple[np.ndarray, str]:
    spams = importlib.import_module("spams")
    start = X[np.random.default_rng(seed).permutation(len(X))[:M]]
    if len(start) < M:
        raise RequestError(f"{len(X)} samples are too few to start {M} dictionary rows; take at least {M}")
    D = spams.trainDL(
        np.asfortranarray(X.T, dtype=np.float64), D=np.asfortranarray(start.T, dtype=np.float64), lambda1=penalty,
        iter=3 * -(-len(X) // batch), batchsize=batch, posAlpha=True, numThreads=1, verbose=False,
    )  # fmt: skip
    return np.ascontiguousarray(D.T), f"trainDL, lambda1 = {penalty:g}"


def _kmeans(X: np.ndarray, M: int, penalty: float, seed: int, batch: int) -> tuple[np.ndarray, str]:
    W, note = spherical_kmeans(X, M, seed=seed)
    missing = M - len(W)
    return np.concatenate([W, np.zeros((missing, X.shape[1]))]) if missing else W, note.rstrip("; ")


LEARNERS: dict[str, Callable[[np.ndarray, int, float, int, int], tuple[np.ndarray, str]]] = {
    "scikit-learn": _sklearn,
    "SPAMS": _spams,
    "k-means": _kmeans,
}
"""Name -> (X, M, penalty, seed, batch) to a dictionary and a note."""
WITHOUT_PENALTY = ("k-means",)
"""Of those, the learners that ignore the penalty: nothing to tune."""


def classical_dictionary(
    name: str, X: Shaped[np.ndarray, "..."], M: int, *, penalty: float, seed: int = 0, batch: int = 512
) -> ClassicalResult:
    """Learn M directions from X (N, d) with a learner of `LEARNERS`, three passes over the samples where it is online.

    Args:
        penalty: weight of the sum of absolute codes beside 1/2 ||x - code D||^2, in units of the inputs.
        batch: samples per update.

    Raises:
        RequestError: an unknown learner, fewer samples than rows where it starts at samples, a penalty <= 0.
    """
    if name not in LEARNERS:
        raise RequestError(f"unknown learner {name!r}; there are {', '.join(LEARNERS)}")
    X = matrix("X", X)
    whole("number of rows M", M, 1)
    real("penalty", penalty, 0, open_low=True)
    began = time.monotonic()
    try:
        W, note = LEARNERS[name](X, M, penalty, seed, batch)
    except ImportError:
        return ClassicalResult(name, None, 0.0, 0, NOT_INSTALLED)
    return ClassicalResult(name, np.asarray(W, dtype=np.float64), time.monotonic() - began, len(X), note)


def threshold_codes(
    W: Float[np.ndarray, "M d"], X: Float[np.ndarray, "N d"], fit: ThresholdFit
) -> tuple[sparse.csr_array, Float[np.ndarray, " M"], Float[np.ndarray, "M d"], Float[np.ndarray, " d"]]:
    """What `theory.codes.code_metrics` takes, (codes, a, W, b_pre), of the encoder z 1(z > theta), z = w . x.

    Args:
        W: rows of unit length (or zero). X: (N, d). fit: of `theory.baselines.fit_threshold`.
    """
    X, rows = np.asarray(X, dtype=np.float32), np.asarray(W, dtype=np.float32)
    blocks, step = [], max(1, _BLOCK // len(rows))
    for start in range(0, len(X), step):
        z = X[start : start + step] @ rows.T
        blocks.append(sparse.csr_array(np.where(z > fit.theta, z, np.float32(0))))
    codes = sparse.csr_array(sparse.vstack(blocks, format="csr"))
    return codes, np.full(len(rows), fit.scale), np.asarray(W), np.zeros(X.shape[1])
