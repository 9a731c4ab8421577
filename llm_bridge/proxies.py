"""What the theory speaks of, estimated from a trained autoencoder where neither V nor H is known.

The directions of consistent neurons stand for the rows of V, their activities for the columns of H. How far each
estimate can be trusted was measured on planted worlds with V and H hidden (`CALIBRATION`, figure proxies): those
whose rank correlation with the truth stays below 0.8 are greyed. The definitions are those of `theory.conditions`
and `theory.theorems` (Chen et al. 2025, arXiv:2506.14002); the estimators were chosen here.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import sparse

from simulator.checks import real, whole
from simulator.errors import RequestError
from theory.conditions import CO_OCCURRENCE, COSINE, ROW_SIZE, Slack, largest_cosine
from theory.theorems import THEOREMS, Case
from theory.validation import matrix, size, sparse_matrix, unit_rows, vector

CONSISTENT, FIRM = 0.8, 0.9  # MCS above which a neuron is a feature; above which pairs of features are looked at
DUPLICATE, MIXTURE = 0.6, 0.7  # cosine with one feature, with the plane of two, above which a neuron is none of its own
TRUSTED = 0.8  # rank correlation from which on an estimate is not greyed
LOW, UPPER, PAIRS = 0.1, 0.95, 0.99  # quantiles: lowest frequency, upper sparsity, high coherence
SHARE = 0.5  # of a neuron's median code: the least that counts as activity
FEWEST = 30  # samples that a feature is active on before its co-occurrence is looked at
_BLOCK, _QUANTILE_ROWS = 512, 4_096

NAMES = {
    "n": "features n", "s": "active features s, mean", "s_upper": "active features, 95 % quantile",
    "f_low": "lowest frequency (10 % quantile)", "f_median": "median frequency", "f_high": "highest frequency",
    "htf": "suggested HTF, min(2 highest, 1/2)", "ltf": "suggested LTF, lowest frequency", "rho_2": "rho_2",
    "co_occurrence": "co-occurrence, median feature", "coherence_max": "max |cos|",
    "coherence_high": "|cos|, 99 % quantile of pairs", "coherence_mean": "|cos|, mean of pairs",
    "H1": "H1 at the 95 % quantile of s", "H3": "H3", "V1": "V1", "V1_pairs": "V1 for 99 % of the pairs",
    "width": "recovery: width", "frequency": "recovery: frequency", "recovery": "recovery: smallest slack",
}  # fmt: skip
"""Every proxy and its name in reports; from "H1" on they are slacks."""

# Spearman rank correlation with the truth over 30 held-out planted worlds, none of which was used to choose an
# estimator; the 95 % intervals are wide, 0.59 to 0.96 for n. Repeat with: sae-recovery run proxies --size small
# For the cosines d alone does as well, since the planted V are random: there they show no more than a sane scale.
CALIBRATION: dict[str, float] = {
    "n": 0.822, "s": 0.903, "s_upper": 0.918, "f_low": 0.682, "f_median": 0.841, "f_high": 0.881, "htf": 0.88,
    "ltf": 0.682, "rho_2": 0.129, "co_occurrence": 0.701, "coherence_max": 0.448, "coherence_high": 0.834,
    "coherence_mean": 0.922, "H1": 0.918, "H3": 0.046, "V1": 0.448, "V1_pairs": 0.834, "width": 0.802,
    "frequency": 0.376, "recovery": 0.802,
}  # fmt: skip

LEAST_COVERAGE = 0.2
"""The planted worlds' smallest (0.205; 54 worlds, n from 64 to 456, d up to 192): nothing is known about less."""


def trusted(name: str) -> bool:
    """Whether a proxy followed the truth over the planted worlds: rank correlation of at least 0.8.

    Raises:
        RequestError: no proxy of that name.
    """
    if name not in CALIBRATION:
        raise RequestError(f"no proxy is called {name!r}; there are {', '.join(CALIBRATION)}")
    return CALIBRATION[name] >= TRUSTED


class Row(NamedTuple):
    """One line of a report; `note` is "trusted", or "greyed: " and why."""

    quantity: str
    estimate: float
    slack: float | None
    correlation: float
    note: str


def select_features(
    W: np.ndarray, codes: sparse.csr_array, mcs: np.ndarray | None = None, z_score: np.ndarray | None = None,
    *, consistent: float = CONSISTENT,
) -> np.ndarray:  # fmt: skip
    """Neurons that stand for one feature each, (k,): alive, MCS above `consistent`, neither copies nor mixtures.

    In the order of their frequency (of `z_score` where given, which does no better on planted worlds) each neuron is
    kept unless its cosine with a kept one exceeds 0.6, or the length of its projection on the plane of the two
    nearest kept ones exceeds 0.7: v_1 + v_2, which fires where both do, is consistent too. Time O(M^2 d), memory
    O(M d) and a block of 512 x M.

    Args:
        W: (M, d), rows of any length. codes: (N, M). mcs: as `theory.consistency.max_cosines` with another seed, (M,);
            without it every living neuron passes. z_score: (M,).

    Raises:
        RequestError: shapes that do not fit, NaN or infinite entries.
    """
    W = matrix("W", W)
    M, codes = len(W), sparse_matrix("codes", codes, (None, len(W)))
    frequency = np.bincount(codes.indices, minlength=M)
    order = frequency if z_score is None else vector("z_score", z_score, M)
    found = (frequency > 0) & W.any(axis=1)
    if mcs is not None:
        found &= vector("mcs", mcs, M) > real("consistent", consistent, 0, 1)
    candidates = np.flatnonzero(found)
    candidates = candidates[np.argsort(-order[candidates], kind="stable")]
    units = unit_rows(W[candidates]).astype(np.float32)
    kept: list[int] = []
    for start in range(0, len(units), _BLOCK):
        block = units[start : start + _BLOCK]
        first = len(kept)
        earlier, inside = block @ units[kept].T, block @ block.T
        for row in range(len(block)):
            cosines = np.concatenate([earlier[row], inside[row, np.array(kept[first:], int) - start]])
            if not len(cosines) or not _explained(cosines, units, kept):
                kept.append(start + row)
    return candidates[kept]


def _explained(cosines: np.ndarray, units: np.ndarray, kept: list[int]) -> bool:
    """Whether a neuron with these cosines is a duplicate of a kept one, or a mixture of the two nearest."""
    if len(cosines) == 1 or cosines.max() > DUPLICATE:
        return bool(cosines.max() > DUPLICATE)
    near = np.argpartition(cosines, -2)[-2:]
    (a, b), angle = cosines[near].tolist(), float(units[kept[near[0]]] @ units[kept[near[1]]])
    return min(a, b) > 0 and (a * a + b * b - 2 * a * b * angle) / (1 - angle * angle) > MIXTURE**2


@dataclass(frozen=True)
class Proxies:
    """Estimates (or, in the calibration, the truth by the same definitions).

    Attributes:
        n: distinct features.
        s, s_upper: mean and 95 % quantile of the active features of a sample.
        frequencies: f_i, falling, (k,): the spectrum.
        rho_2, co_occurrence: largest, and median over features i, of max_j P(j active | i active).
        coherence_max, coherence_high, coherence_mean: of |cos| over the pairs of features, high: 99 % quantile.
        d, M: shape of the autoencoder.
        p: target frequency that the recovery theorem is asked about, by default the median frequency.
        coverage: share of the inputs' energy in the features' activities; s is divided by it. NaN for the truth.
        unknown: what was missing, by which rows are greyed: "second seed", "mean".
    """

    n: int
    s: float
    s_upper: float
    frequencies: np.ndarray
    rho_2: float
    co_occurrence: float
    coherence_max: float
    coherence_high: float
    coherence_mean: float
    d: int
    M: int
    p: float | None = None
    coverage: float = math.nan
    unknown: tuple[str, ...] = ()

    def case(self) -> Case:
        """The question to the recovery theorem, at p or the median frequency; s rounded, 1 / sigma = 2 steps."""
        n, p = max(self.n, 2), float(np.median(self.frequencies)) if self.p is None else self.p
        return Case(n, self.d, min(max(round(self.s), 1), n - 1), self.M, min(p, 0.499))

    def slacks(self) -> dict[str, Slack]:
        """H1, H3, V1 and the recovery theorem's hypotheses at the estimates: signed, without an interval."""
        found = {
            "H1": _slack("H1", self.s_upper, ROW_SIZE, "95 % quantile of row sizes of H <= 10"),
            "H3": _slack("H3", self.rho_2, CO_OCCURRENCE / math.sqrt(self.n), "rho_2 <= 1 / (2 sqrt(n))"),
            "V1": _slack("V1", self.coherence_max, COSINE, "max |cos(v_i, v_j)| <= 1/2"),
            "V1_pairs": _slack("V1", self.coherence_high, COSINE, "|cos(v_i, v_j)| <= 1/2 for 99 % of the pairs"),
        }
        width, *bands = THEOREMS.recovery.hypotheses(self.case())
        band = min(bands, key=lambda one: one.slack)
        found |= {"width": width, "frequency": band, "recovery": min(width, band, key=lambda one: one.slack)}
        return {name: replace(one, low=-math.inf, high=math.inf, exact=False) for name, one in found.items()}

    def values(self) -> dict[str, float]:
        """Every proxy of `NAMES`; for the conditions the slack."""
        f = self.frequencies
        low, high = float(np.quantile(f, LOW)), float(f.max())
        found = {
            "n": float(self.n), "s": self.s, "s_upper": self.s_upper, "f_low": low, "f_median": float(np.median(f)),
            "f_high": high, "htf": min(2 * high, 0.5), "ltf": low, "rho_2": self.rho_2,
            "co_occurrence": self.co_occurrence, "coherence_max": self.coherence_max,
            "coherence_high": self.coherence_high, "coherence_mean": self.coherence_mean,
        }  # fmt: skip
        return found | {name: one.slack for name, one in self.slacks().items()}

    @property
    def doubt(self) -> str:
        """Why nothing here can be trusted; empty where the rank correlations apply."""
        if "second seed" in self.unknown:
            return "no second seed to tell features from noise"
        if self.coverage < LEAST_COVERAGE:
            return f"the features found carry {self.coverage:.0%} of the energy, in planted worlds >= 20%"
        return ""

    def rows(self) -> list[Row]:
        """One row per proxy; those that did not follow the truth on planted worlds are greyed, with the number."""
        slacks, rows = self.slacks(), []
        for name, value in self.values().items():
            one = slacks.get(name)
            note = "trusted" if trusted(name) else f"greyed: rank correlation {CALIBRATION[name]:.2f}"
            if self.doubt:
                note = f"greyed: {self.doubt}"
            elif "mean" in self.unknown and name.startswith(("coherence", "V1")):
                note = "greyed: no mean of the inputs"
            measured, slack = (value, None) if one is None else (one.measured, one.slack)
            rows.append(Row(NAMES[name], measured, slack, CALIBRATION[name], note))
        return rows


def proxies(
    W: np.ndarray, codes: sparse.csr_array, mcs: np.ndarray | None = None, z_score: np.ndarray | None = None,
    *, mean: np.ndarray | None = None, energy: float = 1.0, p: float | None = None,
) -> Proxies:  # fmt: skip
    """The quantities of the theory, from an autoencoder alone.

    n: features of `select_features`; `activities` takes what other features cause off their codes. f_i: share of
    samples with activity. s = (mean number of active features) / coverage, coverage the mean sum of squared activities
    over `energy`: unit rows of H have squares that sum to 1 however many features were missed. s_upper: s plus what
    the quantile of the counts is above their mean. rho_2, cosines: of features with MCS above 0.9, since one wrong
    direction decides a maximum. Directions: w_i + t with the one t at which sum_i E[h_i] (w_i + t) is the `mean` of the
    inputs: b_pre or a neuron of its own takes over what all features share, and the w_i alone would hide it.

    Limits. No frequency much above the highest target of the run is seen: where f_high comes near it, train with a
    higher HTF. Coefficients that are often small are missed, so that s is too low (11 read as 5 for exponential
    ones). Where few features were found n is too low.

    Args:
        W: (M, d), rows of any length. codes: (N, M), projections of the inputs on the unit rows where the neuron is
            active (JumpReLU codes). mcs, z_score: as in `select_features`. mean: of the inputs as the network sees
            them, (d,). energy: their mean squared norm. p: in (0, 1/2), see `Proxies`.

    Raises:
        RequestError: as `select_features`; negative codes; fewer than two features (random or unstable neurons).
    """
    W = matrix("W", W)
    codes = sparse_matrix("codes", codes, (None, len(W)))
    if codes.nnz and codes.data.min() < 0:
        raise RequestError(f"codes hold {codes.data.min():g}; activations must not be negative")
    real("energy", energy, 0, open_low=True)
    if p is not None:
        real("target frequency p", p, 0, 0.5, open_low=True, open_high=True)
    N, (M, d) = size(codes)[0], W.shape
    chosen = select_features(W, codes, mcs, z_score)
    if len(chosen) < 2:
        told = f"{len(chosen)} of {M} neurons fire and have an MCS above {CONSISTENT}; two are needed"
        raise RequestError(f"{told}: train longer, or take the MCS with another seed on the same data")
    units = unit_rows(W[chosen])
    H = activities(codes[:, chosen], units)
    counts, frequencies = np.diff(H.indptr), np.bincount(H.indices, minlength=len(units)) / N
    coverage = float(np.square(H.data, dtype=np.float64).sum()) / (N * energy)
    if not coverage:
        raise RequestError("the features have no activity on these samples; take more samples")
    mean_h = np.bincount(H.indices, H.data, minlength=len(units)) / N
    s = counts.mean() / coverage
    firm = np.arange(len(units)) if mcs is None else np.flatnonzero(np.asarray(mcs)[chosen] > FIRM)
    seen = firm[frequencies[firm] * N >= FEWEST]
    rates = most_together(H[:, seen]) / (frequencies[seen] * N) if len(seen) > 1 else np.full(1, math.nan)
    shift = np.zeros(d) if mean is None else (vector("mean", mean, d) - mean_h @ units) / mean_h.sum()
    missing = [name for name, value in (("second seed", mcs), ("mean", mean)) if value is None]
    return Proxies(
        n=whole("n", int((frequencies > 0).sum()), 1), s=float(s),
        s_upper=float(s + np.quantile(counts, UPPER) - counts.mean()),
        frequencies=np.sort(frequencies[frequencies > 0])[::-1],
        rho_2=float(rates.max()), co_occurrence=float(np.median(rates)),
        **coherence(units[firm] + shift), d=d, M=M, p=p, coverage=coverage, unknown=tuple(missing),
    )  # fmt: skip


def activities(codes: sparse.csr_array, units: np.ndarray) -> sparse.csr_array:
    """Codes (N, k) without what other features cause: matching pursuit on the active neurons of each sample.

    The largest remaining code above half of its neuron's median is taken, and what its direction gives to the others,
    cos(w_i, w_j) times as much, is taken off them; again until none is left. Memory: 2 k^2 bytes and blocks.
    """
    (N, k), medians = size(codes), np.full(len(units), np.inf, np.float32)
    by_neuron = sparse.csc_array(codes)
    for j in np.flatnonzero(np.diff(by_neuron.indptr)):
        medians[j] = np.median(by_neuron.data[by_neuron.indptr[j] : by_neuron.indptr[j + 1]])
    gram, floor, parts = np.empty((k, k), np.float16), SHARE * medians, []
    for start in range(0, k, _BLOCK):
        gram[start : start + _BLOCK] = units[start : start + _BLOCK] @ units.T
    for start in range(0, N, _BLOCK):
        part = codes[start : start + _BLOCK]
        sizes = np.diff(part.indptr)
        row = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(part.nnz) - np.repeat(part.indptr[:-1], sizes)
        neuron = np.zeros((len(sizes), max(1, sizes.max())), int)
        left, taken = np.full(neuron.shape, -np.inf, np.float32), np.zeros(neuron.shape)
        neuron[row, place], left[row, place] = part.indices, part.data
        live = np.arange(len(sizes))
        for _ in range(4 * neuron.shape[1]):  # a code may be taken again; each time less is left
            best = np.where(left[live] >= floor[neuron[live]], left[live], -np.inf).argmax(axis=1)
            height = left[live, best]
            some = height >= floor[neuron[live, best]]
            live, best, height = live[some], best[some], height[some]
            if not len(live):
                break
            taken[live, best] += height
            left[live] -= height[:, None] * gram[neuron[live, best][:, None], neuron[live]]
        part = sparse.csr_array((taken[row, place], part.indices, part.indptr), shape=(len(sizes), k))
        part.data[part.data < floor[part.indices]] = 0
        part.eliminate_zeros()
        parts.append(part)
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def most_together(H: sparse.csr_array) -> np.ndarray:
    """max_{j != i} |D_i & D_j| per column i of H, in blocks of columns."""
    pattern = sparse.csr_array((np.ones(H.nnz, np.float32), H.indices, H.indptr), shape=size(H))
    columns, found = sparse.csr_array(pattern.T), []
    for start in range(0, size(H)[1], _BLOCK):
        together = (columns[start : start + _BLOCK] @ pattern).toarray()
        together[np.arange(len(together)), start + np.arange(len(together))] = 0
        found.append(together.max(axis=1))
    return np.concatenate(found).astype(np.float64)


def coherence(V: np.ndarray) -> dict[str, float]:
    """coherence_max, coherence_high and coherence_mean of the rows of V (n, d); the last two over 4,096 of them."""
    if len(V) < 2:
        return dict.fromkeys(("coherence_max", "coherence_high", "coherence_mean"), math.nan)
    some = unit_rows(V[np.linspace(0, len(V) - 1, min(len(V), _QUANTILE_ROWS)).astype(int)])
    pairs = np.abs(some @ some.T)[np.triu_indices(len(some), 1)]
    high, mean = float(np.quantile(pairs, PAIRS)), float(pairs.mean())
    return {"coherence_max": largest_cosine(V), "coherence_high": high, "coherence_mean": mean}


def _slack(name: str, measured: float, limit: float, surrogate: str) -> Slack:
    slack = math.inf if measured == 0 else math.log(limit / measured)
    return Slack(name, slack, -math.inf, math.inf, measured, limit, False, surrogate)
