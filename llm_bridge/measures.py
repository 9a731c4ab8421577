"""What an autoencoder does on real activations, where no feature is known; every number with its formula.

u are the inputs as the network sees them (centred, unit rows), u^ their reconstruction, y the pre-activation with the
threshold taken off, so that a neuron is active where y > 0 (and, for TopK, kept). Means are over the N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from llm_bridge.autoencoder import Autoencoder
from simulator.errors import RequestError
from theory.scores import NeuronScores, neuron_scores

_BLOCK = 1 << 22  # entries held at once in float64


@dataclass(frozen=True)
class Measures:
    """Measured on `samples` rows.

    Attributes:
        samples: N.
        loss: sum ||u^ - u||^2 / sum ||u||^2, the normalised l2 loss of the paper (arXiv:2506.14002, section on
            language models).
        explained_variance: 1 - sum ||u^ - u||^2 / sum ||u - mean u||^2.
        explained_variance_model: 1 - sum ||x^ - x||^2 / sum ||x - mean x||^2 on the model's own scale, where rows of
            large norm weigh more.
        mean_l0: active neurons per row.
        fraction: mean_l0 / M, the paper's fraction of activated neurons (for TopK: post).
        fraction_pre: share of pairs with y > 0, before TopK's cut (pre); equal to `fraction` for the others.
        dead: neurons that are active on none of the rows.
        frequency: share of the rows on which each neuron is active, (M,).
        scores: maximum activation, Z-score, activation fraction (pre_frequency: share of rows with y > 0).
    """

    samples: int
    loss: float
    explained_variance: float
    explained_variance_model: float
    mean_l0: float
    fraction: float
    fraction_pre: float
    dead: int
    frequency: np.ndarray
    scores: NeuronScores

    def summary(self) -> dict[str, float | int]:
        """The numbers that are not one per neuron, and medians over living neurons of those that are."""
        alive = self.frequency > 0
        names = (
            "loss", "explained_variance", "explained_variance_model", "mean_l0", "fraction", "fraction_pre", "dead"
        )  # fmt: skip

        def median(values: np.ndarray) -> float:
            return float(np.median(values[alive])) if alive.any() else 0.0

        return {"samples": self.samples} | {name: getattr(self, name) for name in names} | {
            "activation_fraction_median": median(self.scores.pre_frequency),
            "max_activation_median": median(self.scores.max_activation),
            "z_score_median": median(self.scores.z_score),
        }  # fmt: skip


def measure(autoencoder: Autoencoder, X: np.ndarray) -> tuple[Measures, sparse.csr_array]:
    """Measures and codes on rows of activations.

    Args:
        autoencoder: what is judged.
        X: activations as the model makes them (with their mean), (N, d), not seen in training.

    Returns:
        Measures and the codes, (N, M).

    Raises:
        RequestError: no row, another width, or rows that are all equal.
    """
    if len(X) < 2:
        raise RequestError(f"{len(X)} rows to measure on; at least two are needed")
    U = autoencoder.inputs(X)
    codes = autoencoder.encode_inputs(U)
    missed, energy, spread = _energies(lambda block: autoencoder.decode_inputs(codes[block]), U)
    # Rounding leaves equal rows a little beside their mean.
    if spread <= 1e-12 * energy:
        raise RequestError("the rows are all equal; nothing can be measured on them")
    own_missed, _, own_spread = _energies(lambda block: autoencoder.reconstruct(X[block], codes[block]), X)
    frequency = np.bincount(codes.indices, minlength=autoencoder.M) / len(X)
    scores = neuron_scores(U, *gate(autoencoder), codes)
    mean_l0 = codes.nnz / len(X)
    return Measures(
        len(X), missed / energy, 1 - missed / spread, 1 - own_missed / own_spread, mean_l0, mean_l0 / autoencoder.M,
        float(scores.pre_frequency.mean()), int((frequency == 0).sum()), frequency, scores,
    ), codes  # fmt: skip


def gate(autoencoder: Autoencoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (M, d), b (M,), b_pre (d,) with y = W (u - b_pre) + b above zero where the neuron passes its threshold."""
    W, b = autoencoder.encoder, autoencoder.b_enc
    if autoencoder.rank_by_decoder_norm:
        norms = np.linalg.norm(autoencoder.decoder, axis=1)
        W, b = W * norms[:, None], b * norms
    if autoencoder.threshold is not None:
        b = b - np.maximum(autoencoder.threshold, 0)
    return W, b, autoencoder.b_dec if autoencoder.subtract_b_dec else np.zeros_like(autoencoder.b_dec)


def _energies(found: Callable[[slice], np.ndarray], truth: np.ndarray) -> tuple[float, float, float]:
    """sum ||found - truth||^2, sum ||truth||^2 and sum ||truth - mean||^2 in float64, blocks of rows at a time."""
    size = max(1, _BLOCK // truth.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(truth), size)]
    mean = sum(truth[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(truth)
    missed = energy = spread = 0.0
    for block in blocks:
        exact = truth[block].astype(np.float64)
        missed += float(np.square(found(block) - exact).sum())
        energy += float(np.square(exact).sum())
        spread += float(np.square(exact - mean).sum())
    return missed, energy, spread
