"""The metrics of the field's synthetic benchmark, and ours beside them.

`benchmark_scores` gives the numbers of `eval_sae_on_synthetic_data` (SAELens 6, SynthSAEBench): averages over
neurons, so that a narrow dictionary is excused from the features that it has no neuron for, and signs are ignored.
`feature_scores` asks the other way round: every true feature counts, and a cosine has a sign.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse
from scipy.special import betainc

from simulator.errors import RequestError
from theory.codes import BLOCK_ENTRIES, CodeMetrics, code_metrics
from theory.geometry import Recovery, check
from theory.validation import matrix, share, sparse_matrix, vector

NO_VARIANCE = 1e-10  # below it the benchmark calls the inputs constant and an error per sample none
NO_LENGTH = 1e-6  # inputs up to this length have no shrinkage there
PANELS, NODES = 100, 20  # Gauss-Legendre rule for the best cosine
NORMAL_RANGE = 40.0  # its range, in standard deviations 1 / sqrt(d)


@dataclass(frozen=True)
class BenchmarkScores:
    """One network on N samples, as the benchmark scores it.

    Per neuron m, with its feature i(m) of largest |cosine| (lowest index at ties; several neurons may share one):
    hits = samples where both are active (a neuron: code != 0; a feature: coefficient > 0), and

        precision = hits / fires,   recall = hits / occurs,   F1 = 2 precision recall / (precision + recall),
        accuracy = (hits + samples where neither is active) / N,

    each 0 where its denominator is, and averaged over all M neurons, dead ones included.
    """

    mcc: float
    """Mean |cosine| over the min(n, M) pairs of the best one-to-one assignment."""
    mcc_gap: float
    """The MCC lies in [mcc, mcc + mcc_gap]; 0 where it is exact (at least up to 4,096 x 16,384)."""
    uniqueness: float
    """Distinct features i(m), divided by M."""
    precision: float
    recall: float
    f1: float
    accuracy: float
    explained_variance: float
    """1 - mean ||x - x_hat||^2 / (mean ||x||^2 - ||mean x||^2). Where the variance is below 1e-10: 1 if the mean
    squared error is too, else 0."""
    shrinkage: float
    """Mean ||x_hat|| / ||x|| over the samples with ||x|| > 1e-6; 0 without any."""
    l0: float
    """Mean number of active neurons."""
    true_l0: float
    """Mean number of non-zero coefficients."""
    dead_latents: int
    """Neurons active on none of the samples."""

    def summary(self) -> dict[str, float]:
        """One table row of plain numbers, keys `benchmark_` + field."""
        return {f"benchmark_{field.name}": float(getattr(self, field.name)) for field in fields(self)}


def benchmark_scores(
    codes: sparse.csr_array | sparse.csr_matrix,
    a: Shaped[np.ndarray, "..."] | float,
    W: Shaped[np.ndarray, "..."],
    b_pre: Shaped[np.ndarray, "..."],
    X: Shaped[np.ndarray, "..."],
    H: sparse.csr_array | sparse.csr_matrix,
    V: Shaped[np.ndarray, "..."],
    recovery: Recovery | None = None,
    codes_judged: CodeMetrics | None = None,
) -> BenchmarkScores:
    """Score codes phi(x) with decoder rows W against the true features V, sparse throughout.

    Two facts differ from the benchmark's arithmetic: it computes in float32, and a decoder row shorter than 1e-8
    counts there as nearly zero, here by its direction.

    Args:
        codes: (N, M), phi_m(x) without output scales. a: (M,) or one number; x_hat = sum_m a_m phi_m w_m + b_pre.
        W: (M, d). b_pre: (d,). X: (N, d), the inputs of the network. H: (N, n), true coefficients. V: (n, d).
        recovery: `check(V, W)` where it is there already; computed otherwise, and if it has no MCC.
        codes_judged: `code_metrics` of the same arrays where it is there already.

    Raises:
        RequestError: shapes that do not fit together, NaN or infinite entries, inputs that are all zero.
    """
    X = matrix("X", X)
    N = len(X)
    if recovery is None or recovery.mcc is None:
        recovery = check(V, W, chance_draws=1)
    codes, H = sparse_matrix("codes", codes, (N, recovery.M)), sparse_matrix("H", H, (N, recovery.n))
    judged = codes_judged
    if judged is None:
        judged = code_metrics(codes, a, W, b_pre, X, H, recovery)
    _same_network(recovery, judged, N)
    truth = judged
    if (H.data < 0).any():
        # A negative coefficient counts in the true L0 but is no occurrence.
        present = sparse.csr_array((np.maximum(H.data, 0), H.indices, H.indptr), shape=H.shape)
        truth = code_metrics(codes, a, W, b_pre, X, present, recovery)
    neurons = truth.neurons
    occurs = truth.features.frequency[recovery.neuron_match]
    accuracy = 1 - neurons.frequency - occurs + 2 * neurons.precision * neurons.frequency
    assert recovery.mcc is not None
    squares = np.einsum("ij,ij->i", X, X, dtype=np.float64)
    return BenchmarkScores(
        mcc=recovery.mcc.lower,
        mcc_gap=recovery.mcc.upper - recovery.mcc.lower,
        uniqueness=recovery.uniqueness,
        precision=float(neurons.precision.mean()),
        recall=float(neurons.recall.mean()),
        f1=float(neurons.f1.mean()),
        accuracy=float(accuracy.mean()),
        explained_variance=_explained_variance(judged, float(squares.mean())),
        shrinkage=_shrinkage(judged, codes, a, W, b_pre, X, np.sqrt(squares)),
        l0=judged.mean_l0,
        true_l0=judged.true_l0,
        dead_latents=judged.dead,
    )


def _same_network(recovery: Recovery, judged: CodeMetrics, N: int | None) -> None:
    found = (len(judged.neurons.f1), len(judged.features.f1))
    if found != (recovery.M, recovery.n):
        raise RequestError(
            f"the judged codes have {found[0]} neurons and {found[1]} features, the recovery {recovery.M} and "
            f"{recovery.n}; both must be of one network"
        )
    if N is not None and judged.samples != N:
        raise RequestError(f"the judged codes have {judged.samples} samples where X has {N}; give those of X")


def _explained_variance(judged: CodeMetrics, energy: float) -> float:
    """The benchmark's value where its inputs hardly vary; the variance follows from the two normalised losses."""
    error = judged.loss * energy
    missing = 1.0 - judged.explained_variance
    if missing <= 0 or error / missing >= NO_VARIANCE:
        return judged.explained_variance
    return 1.0 if error < NO_VARIANCE else 0.0


def _shrinkage(judged: CodeMetrics, codes, a, W, b_pre, X, length: np.ndarray) -> float:
    counted = np.flatnonzero(length > NO_LENGTH)
    if len(counted) == np.count_nonzero(length):
        return judged.shrinkage
    decoder = np.reshape(np.float64(a), (-1, 1)) * np.asarray(W, dtype=np.float64)
    total, step = 0.0, max(1, BLOCK_ENTRIES // X.shape[1])
    for start in range(0, len(counted), step):
        rows = counted[start : start + step]
        total += float((np.linalg.norm(codes[rows] @ decoder + b_pre, axis=1) / length[rows]).sum())
    return total / max(len(counted), 1)


@dataclass(frozen=True)
class FeatureScores:
    """Means over ALL n true features: one without a neuron counts as a failure, whatever the width M.

    `*_chance` is what independent isotropic directions of the same number M reach in expectation, whatever V is:
    with p(tau) = P(signed cosine > tau) = I_{1 - tau^2}((d - 1) / 2, 1 / 2) / 2,

        E FRR(tau) = 1 - (1 - p(tau))^M,    E best cosine = 1 - integral over t in [-1, 1] of (1 - p(t))^M,

    exact laws (the integral to 1e-6). The chance level of the MCC is that of `theory.chance`.
    """

    frr_080: float
    """Share of features with some neuron at signed cosine > 0.8; `frr_090` at 0.9."""
    frr_090: float
    cosine: float
    """Mean largest signed cosine."""
    f1: float
    """Mean F1 of each feature's neuron of largest signed cosine, as a detector of the feature."""
    frr_080_chance: float
    frr_090_chance: float
    cosine_chance: float
    f1_chance: float
    """Mean of 2 p q / (p + q), p the frequency of the feature and q of its neuron: the expected F1 if the neuron fired
    as often, on samples that have nothing to do with the feature."""
    mcc_chance: float | None
    """None where the check had no assignment."""
    by_frequency: list[dict[str, float]]
    """One dict per bin of frequency, rarest first: low, high (smallest and largest frequency in it), features, frr_090,
    f1, cosine."""

    def summary(self) -> dict[str, float | None]:
        """One table row of plain numbers, keys `feature_` + field; without the bins."""
        names = (field.name for field in fields(self) if field.name != "by_frequency")
        return {f"feature_{name}": getattr(self, name) for name in names}


def feature_scores(
    recovery: Recovery,
    judged: CodeMetrics,
    *,
    frequencies: Shaped[np.ndarray, "..."] | None = None,
    bins: int = 4,
) -> FeatureScores:
    """Recovery and detection over all true features, their chance levels, and both by frequency.

    Args:
        recovery: `check(V, W)`. judged: `code_metrics` with this recovery.
        frequencies: (n,), share of samples in which each feature occurs; default: measured by `judged`.
        bins: number of bins with equally many features (4: quartiles). Equal frequencies share a bin, so with ties
            there may be fewer.

    Raises:
        RequestError: arguments of different networks, bins < 1, frequencies that are not n numbers >= 0.
    """
    _same_network(recovery, judged, None)
    if bins < 1:
        raise RequestError(f"bins = {bins}; at least 1 is needed")
    p = vector("frequencies", judged.features.frequency if frequencies is None else frequencies, recovery.n)
    if p.min() < 0:
        raise RequestError(f"frequencies hold {p.min():g}; a frequency is not negative")
    cosine, f1, found = recovery.feature_cosine, judged.features.f1, recovery.feature_cosine > 0.9
    place = np.searchsorted(np.quantile(p, np.arange(1, bins) / bins), p, side="right")
    table = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            means = {name: float(x[inside].mean()) for name, x in (("frr_090", found), ("f1", f1), ("cosine", cosine))}
            low, high = float(p[inside].min()), float(p[inside].max())
            table.append({"low": low, "high": high, "features": int(inside.sum()), **means})
    seen = judged.features.frequency
    fires = judged.neurons.frequency[recovery.feature_neuron] * (recovery.feature_neuron >= 0)
    both = seen + fires
    independent = np.divide(2 * seen * fires, both, out=np.zeros(recovery.n), where=both > 0)
    return FeatureScores(
        frr_080=recovery.rate(0.8),
        frr_090=recovery.rate(0.9),
        cosine=float(cosine.mean()),
        f1=float(f1.mean()),
        frr_080_chance=chance_rate(0.8, recovery.M, recovery.d),
        frr_090_chance=chance_rate(0.9, recovery.M, recovery.d),
        cosine_chance=chance_cosine(recovery.M, recovery.d),
        f1_chance=float(independent.mean()),
        mcc_chance=None if recovery.mcc_chance is None else recovery.mcc_chance.mean,
        by_frequency=table,
    )


def chance_rate(tau: float, M: int, d: int) -> float:
    """E FRR(tau) of M independent isotropic directions in d dimensions, exact (see `FeatureScores`)."""
    above = _above(np.array([share("tau", tau)]), d)[0]
    return float(-np.expm1(M * np.log1p(-above))) if above < 1 else 1.0


def chance_cosine(M: int, d: int) -> float:
    """Expected largest signed cosine of a fixed direction with M independent isotropic ones, to 1e-6."""
    if d == 1:
        return 1.0 - 2.0 ** (1 - M)
    # Beyond 40 standard deviations the probability is 0 or 1 to all digits.
    end = min(1.0, NORMAL_RANGE / np.sqrt(d))
    node, weight = np.polynomial.legendre.leggauss(NODES)
    middle = (2 * np.arange(PANELS) + 1) / PANELS - 1
    above = np.minimum(_above(end * (middle[:, None] + node / PANELS).ravel(), d), 1 - 1e-16)
    below = np.exp(M * np.log1p(-above)).reshape(PANELS, NODES)
    return float(end * (1.0 - (below @ weight).sum() / PANELS))


def _above(tau: Float[np.ndarray, " size"], d: int) -> Float[np.ndarray, " size"]:
    """P(cosine > tau) of an isotropic direction with a fixed one."""
    if d == 1:
        return np.where(tau >= 1, 0.0, np.where(tau >= -1, 0.5, 1.0))
    tail = 0.5 * betainc((d - 1) / 2, 0.5, 1 - tau**2)
    return np.where(tau >= 0, tail, 1 - tail)
