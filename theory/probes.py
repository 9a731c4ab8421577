"""Oracle row: what a linear probe that is told the true supports can say about them.

For every feature i a logistic regression P(i active | x) = 1 / (1 + exp(-(u_i . x + c_i))), fitted to samples whose
supports are known. No dictionary learner knows them, so the probes' F1 is close to the best that a linear readout of
single features reaches, and what it misses is lost to superposition and noise, not to learning.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy import sparse

from simulator.checks import real
from simulator.errors import RequestError
from theory.validation import matrix, size, sparse_matrix

_BLOCK_FEATURES = 64


@dataclass(frozen=True)
class ProbeScores:
    """Per feature, on held-out samples. A feature that was never active in training is never predicted; undefined
    shares are 0."""

    weights: Float[np.ndarray, "n d"]
    bias: Float[np.ndarray, " n"]
    threshold: Float[np.ndarray, " n"]
    """Logit above which the feature is said to be active: of the largest F1 on the training samples."""
    precision: Float[np.ndarray, " n"]
    recall: Float[np.ndarray, " n"]
    f1: Float[np.ndarray, " n"]
    seconds: float

    def summary(self) -> dict[str, float]:
        """Means over all n features."""
        return {name: float(getattr(self, name).mean()) for name in ("precision", "recall", "f1")} | {
            "seconds": self.seconds
        }


def probe_scores(
    X_train: Shaped[np.ndarray, "..."],
    H_train: sparse.csr_array | sparse.csr_matrix,
    X_test: Shaped[np.ndarray, "..."],
    H_test: sparse.csr_array | sparse.csr_matrix,
    *,
    penalty: float = 1e-5,
    iterations: int = 60,
) -> ProbeScores:
    """Fit a probe per feature, choose its threshold on the training samples, judge it on the others.

    The loss of feature i is the mean over the samples of log(1 + exp(-t l)), t = +1 where i is active and -1 else,
    l = u_i . x + c_i, plus penalty / 2 |u_i|^2. Minimised by L-BFGS for a block of features at once (their losses
    are added: each keeps its own minimum).

    Args:
        X_train: (N, d). H_train: (N, n), active where the entry is above 0. X_test, H_test: likewise, other samples.
        penalty: weight of the squared length, on inputs scaled to a root mean square of 1 per coordinate.
        iterations: of L-BFGS, at most.

    Raises:
        RequestError: arrays that do not fit each other, all-zero inputs, or a negative penalty.
    """
    began = time.monotonic()
    real("penalty", penalty, 0)
    X_train = matrix("X_train", X_train)
    X_test = matrix("X_test", X_test, columns=X_train.shape[1])
    H_train = sparse_matrix("H_train", H_train, (len(X_train), None))
    n = size(H_train)[1]
    H_test = sparse_matrix("H_test", H_test, (len(X_test), n))
    scale = float(np.sqrt(np.mean(np.square(X_train, dtype=np.float64))))
    if scale == 0:
        raise RequestError("X_train is all zeros; a probe needs inputs that vary")
    inputs, judged = (torch.from_numpy(np.asarray(X / scale, dtype=np.float32)) for X in (X_train, X_test))
    columns, truth = sparse.csc_array(H_train), sparse.csc_array(H_test)
    found = {name: np.zeros(n) for name in ("bias", "threshold", "precision", "recall", "f1")}
    weights = np.zeros((n, X_train.shape[1]))
    for first in range(0, n, _BLOCK_FEATURES):
        block = slice(first, min(n, first + _BLOCK_FEATURES))
        active = torch.from_numpy(columns[:, block].toarray() > 0)
        u, c = _fit(inputs, active.float(), penalty, iterations)
        threshold = _thresholds(inputs @ u.T + c, active)
        predicted = ((judged @ u.T + c) > threshold).numpy()
        present = truth[:, block].toarray() > 0
        hits, said, there = (predicted & present).sum(0), predicted.sum(0), present.sum(0)
        found["precision"][block] = hits / np.maximum(said, 1)
        found["recall"][block] = hits / np.maximum(there, 1)
        found["f1"][block] = 2 * hits / np.maximum(said + there, 1)
        found["bias"][block], found["threshold"][block] = c.numpy(), threshold.numpy()
        weights[block] = u.numpy() / scale
    return ProbeScores(weights=weights, **found, seconds=time.monotonic() - began)


def best_thresholds(scores: Shaped[np.ndarray, "N n"], H: sparse.csr_array | sparse.csr_matrix) -> np.ndarray:
    """Per column of scores, the value above which "feature active" has the largest F1 with H > 0; infinite where H has
    nothing. (n,)."""
    active = sparse.csc_array(H)
    parts = []
    for first in range(0, scores.shape[1], _BLOCK_FEATURES):
        block = slice(first, first + _BLOCK_FEATURES)
        truth = torch.from_numpy(active[:, block].toarray() > 0)
        parts.append(_thresholds(torch.from_numpy(np.ascontiguousarray(scores[:, block])), truth).numpy())
    return np.concatenate(parts)


def _fit(X: torch.Tensor, active: torch.Tensor, penalty: float, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (features, d) and biases (features,) of least loss; starts at the log odds of each feature."""
    features = active.shape[1]
    share = active.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    with torch.enable_grad():
        u = torch.zeros(features, X.shape[1], requires_grad=True)
        c = torch.logit(share).requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [u, c], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-7,
            tolerance_change=1e-10,
        )  # fmt: skip

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            logits = X @ u.T + c
            value = torch.nn.functional.binary_cross_entropy_with_logits(logits, active, reduction="sum") / len(X)
            value = value + penalty / 2 * u.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
    return u.detach(), c.detach()


def _thresholds(logits: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Per column the logit above which F1 is largest; infinite where nothing is active."""
    value, order = logits.sort(dim=0, descending=True)
    hits = active.gather(0, order).cumsum(dim=0).double()
    said = torch.arange(1, len(logits) + 1, dtype=torch.float64)[:, None]
    f1 = 2 * hits / (said + active.sum(dim=0))
    best = f1.argmax(dim=0, keepdim=True)
    below = torch.cat([value[1:], value[-1:] - 1]).gather(0, best)
    # Half way between the last one said and the first one not said.
    threshold = (value.gather(0, best) + below)[0] / 2
    threshold[active.sum(dim=0) == 0] = torch.inf
    return threshold
