"""Scores of single neurons that need no planted features: maximum activation and Z-score.

The paper (Chen et al. 2025, arXiv:2506.14002) plots both without printing the formula of the Z-score. Its
picture (Z down to 10^-4.4, maximum activation down to 10^-5.4, their ratio 10 to 25 over five decades) fits

    maximum activation = max_l max(y_l, 0),    Z = (max_l max(y_l, 0) - mean_l max(y_l, 0)) / std_l(y_l)

with y the pre-activation, bias included; derived from the picture, not from the text. The usual Z-score of the
activations themselves is kept under another name.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy import sparse

from simulator.errors import RequestError
from theory.validation import matrix, size, sparse_matrix, vector

BLOCK = 1 << 24  # pre-activations held at once


@dataclass(frozen=True)
class NeuronScores:
    """Measured on `samples` inputs; every array has one entry per neuron.

    Attributes:
        samples: N.
        max_activation: max_l max(y_l, 0).
        z_score: (max_activation - mean of max(y, 0)) / std(y); 0 for a neuron whose y does not vary.
        post_z_score: (max phi - mean phi) / std phi of the activations; 0 for a neuron that is never active.
        pre_frequency: share of the samples with y > 0, before any cut by TopK.
    """

    samples: int
    max_activation: Float[np.ndarray, " M"]
    z_score: Float[np.ndarray, " M"]
    post_z_score: Float[np.ndarray, " M"]
    pre_frequency: Float[np.ndarray, " M"]


def neuron_scores(
    X: Shaped[np.ndarray, "..."],
    W: Shaped[np.ndarray, "..."],
    b: Shaped[np.ndarray, "..."],
    b_pre: Shaped[np.ndarray, "..."],
    codes: sparse.csr_array | sparse.csr_matrix,
) -> NeuronScores:
    """Scores of every neuron, in blocks of samples: nothing of size N x M is held.

    Args:
        X: inputs as the network sees them, (N, d).
        W, b, b_pre: the network, (M, d), (M,), (d,).
        codes: activations phi on the same samples, (N, M).

    Raises:
        RequestError: shapes that do not fit, NaN or infinite entries, or no sample.
    """
    X, W = matrix("X", X), matrix("W", W)
    if W.shape[1] != X.shape[1]:
        raise RequestError(f"W has {W.shape[1]} columns and X has {X.shape[1]}; both need the same d")
    M, N = len(W), len(X)
    if N == 0:
        raise RequestError("no sample to score the neurons on; at least one is needed")
    b, b_pre = vector("b", b, M), vector("b_pre", b_pre, X.shape[1])
    codes = sparse_matrix("codes", codes, (N, M))
    assert size(codes) == (N, M)
    weights = torch.from_numpy(np.ascontiguousarray(W, np.float32)).T
    offset = torch.from_numpy(np.asarray(b, np.float32))
    top = torch.zeros(M)
    clipped, linear, squares = (torch.zeros(M, dtype=torch.float64) for _ in range(3))
    positive = torch.zeros(M, dtype=torch.int64)
    step = max(1, BLOCK // M)
    for start in range(0, N, step):
        z = torch.from_numpy((X[start : start + step] - b_pre).astype(np.float32)) @ weights
        # The spread of y is that of z: squares are summed without the bias, which only shifts.
        linear += z.sum(dim=0, dtype=torch.float64)
        squares += z.square().sum(dim=0, dtype=torch.float64)
        y = z.add_(offset)
        positive += (y > 0).sum(dim=0)
        y.clamp_(min=0)
        torch.maximum(top, y.amax(dim=0), out=top)
        clipped += y.sum(dim=0, dtype=torch.float64)
    largest = top.double().numpy()
    variance = (squares / N - (linear / N) ** 2).numpy()
    phi = sparse.csc_array(codes)
    phi_max = np.asarray(phi.max(axis=0).todense()).ravel().astype(np.float64) if phi.nnz else np.zeros(M)
    phi_mean = np.asarray(phi.sum(axis=0, dtype=np.float64)).ravel() / N
    phi_square = np.asarray(phi.multiply(phi).sum(axis=0, dtype=np.float64)).ravel() / N
    return NeuronScores(
        samples=N,
        max_activation=largest,
        z_score=_ratio(largest - clipped.numpy() / N, variance),
        post_z_score=_ratio(phi_max - phi_mean, phi_square - phi_mean**2),
        pre_frequency=positive.numpy() / N,
    )


def _ratio(excess: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """excess / sqrt(variance), 0 where nothing varies beyond rounding."""
    varies = variance > 1e-13
    return np.where(varies, excess / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
