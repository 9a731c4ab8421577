"""The conditions of identifiability H1, H2, H3 and V1 as signed slack, for matrices, samples and worlds.

Chen et al. 2025, arXiv:2506.14002, ask of every factorisation X = H V (H non-negative, N x n; V n x d):
H1 rows of H have at most s = O(1) non-zeros; H2 the non-zeros of a column are Theta(1) on average; H3
rho_2 = max_{i != j} |D_i & D_j| / |D_i| << n^{-1/2} with D_i the rows where column i is not zero; V1
max_{i != j} |cos(v_i, v_j)| = o(1). Each asymptotic symbol gets one finite surrogate (chosen here):

    H1  s = largest row size <= 10                 H3  sqrt(n) rho_2 <= 1/2
    H2  every column's mean of its non-zeros       V1  max |cos| <= 1/2
        in [0.1, 10] and every entry <= 10

and slack = log(right side / left side), > 0 where it holds. Beside them stands s max |cos|: below 1 no feature
is a combination of s others (see `theory.counterexamples`). `measure` is about these matrices, `of_sample` about
the law that drew the rows of H, `of_world` about a law that is known. A feature that never occurs has neither a
mean nor a rho_2: it is refused with a RequestError, not given a slack.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Int, Shaped
from scipy.integrate import quad
from scipy.special import erf, erfcx, gammaln, ndtri
from scipy.stats import beta

from simulator.checks import real, whole
from simulator.coefficients import Coefficients, ConstantCoefficients, Exponential, HalfNormal, Uniform
from simulator.dictionaries import Coherent, Gaussian, GivenDictionary, Orthonormal, UnitSphere
from simulator.errors import RequestError
from simulator.rng import stream
from simulator.supports import Bernoulli, Exactly, Mixture, Paired, Support
from simulator.world import World
from theory.cosines import BLOCK_BYTES, DECIMALS
from theory.validation import dictionary, size, sparse_matrix, unit_rows

__all__ = ["Conditions", "Slack", "largest_cosine", "measure", "of_sample", "of_world"]

ROW_SIZE, LEAST_MEAN, LARGEST_ENTRY, CO_OCCURRENCE, COSINE = 10.0, 0.1, 10.0, 0.5, 0.5
RARE = 1e-3  # share of rows (entries) beyond the "maximum" of a law that has none
PRODUCTS_AT_ONCE = 1 << 25  # co-occurrences counted in one sparse product

_H1 = "largest row size of H <= 10"
_H2 = "column means of the non-zeros of H in [0.1, 10], entries <= 10"
_H3 = "rho_2 <= 1 / (2 sqrt(n))"
_V1 = "max |cos(v_i, v_j)| <= 1/2"
_JOINT = "s max |cos(v_i, v_j)| < 1"
_SEEN = "; in a sample: largest value seen, which bounds that of the law on one side"
_MOST = "; of a law without a bound the level that all but 1 in 1,000 stay below, exact"


@dataclass(frozen=True)
class Slack:
    """One condition: how far it is from its surrogate's limit.

    Attributes:
        name: "H1", "H2", "H3", "V1" or "joint".
        slack: log(limit / measured), for a lower limit log(measured / limit); an estimate unless `exact`.
        low, high: interval that contains the true slack (at the confidence asked for); both `slack` if exact.
        measured: the left side; for H2 that of its limits which is nearer.
        limit: the constant it is compared with.
        exact: no estimate is involved.
        surrogate: the finite statement, and what was measured where it is not literally that.
    """

    name: str
    slack: float
    low: float
    high: float
    measured: float
    limit: float
    exact: bool
    surrogate: str

    @property
    def holds(self) -> bool:
        """The whole interval is above 0."""
        return self.low > 0

    @property
    def fails(self) -> bool:
        """The whole interval is below 0."""
        return self.high < 0

    @property
    def fragile(self) -> bool:
        """The sign of `slack` would change with half or twice the constant: |slack| < log 2."""
        return abs(self.slack) < math.log(2)


@dataclass(frozen=True)
class Conditions:
    """The four conditions (iterating gives them), and `joint`: s max |cos| < 1, no condition of the paper."""

    H1: Slack
    H2: Slack
    H3: Slack
    V1: Slack
    joint: Slack

    def __iter__(self) -> Iterator[Slack]:
        return iter((self.H1, self.H2, self.H3, self.V1))

    @property
    def satisfied(self) -> bool:
        """All four hold with their whole intervals."""
        return all(condition.holds for condition in self)


def measure(H: sparse.sparray | sparse.spmatrix | np.ndarray, V: Shaped[np.ndarray, "..."]) -> Conditions:
    """The conditions of these two matrices; nothing is estimated.

    Args:
        H: (N, n), non-negative, sparse; every column has a non-zero entry.
        V: (n, d), no zero row.

    Raises:
        RequestError: shapes that do not fit, negative or not finite entries, a column of H or row of V of zeros.
    """
    codes, V = _observed(H, V)
    H2 = _mean_and_largest(codes.least_mean, codes.largest, _H2)
    H3 = _above("H3", codes.rho_2, CO_OCCURRENCE / math.sqrt(len(V)), _H3)
    return _joined(_above("H1", codes.row_size, ROW_SIZE, _H1), H2, H3, _exact_cosine(V))


def of_sample(
    H: sparse.sparray | sparse.spmatrix | np.ndarray, V: Shaped[np.ndarray, "..."], confidence: float = 0.95
) -> Conditions:
    """The conditions of the law whose independent draws are the rows of H; V is taken as it is.

    H3: given |D_i|, the count |D_i & D_j| is binomial, so each ordered pair has an exact (Clopper-Pearson)
    interval. The largest lower end, at the level (1 - confidence) / (2 n (n - 1)) (Bonferroni), is below rho_2.
    The largest upper end, at (1 - confidence) / 2, is above rho_2 without a correction: it is not below the
    end of the one pair that attains rho_2 (derived here).

    H1 and H2 are one-sided: the largest row and entry seen bound those of the law from below, never from above
    (a row cannot exceed n, an entry has no bound). So only their `fails` can be certain; ask `measure` about
    the sample as it is. `slack` is that of the sample. Each interval holds at `confidence` by itself.

    Raises:
        RequestError: as `measure`, or a confidence outside (0, 1).
    """
    confidence = real("confidence", confidence, 0, 1, open_low=True, open_high=True)
    codes, V = _observed(H, V)
    return _joined(*_sampled(codes, len(V), confidence), _exact_cosine(V))


def of_world(world: World, seed: int | None = None, *, samples: int = 20_000, confidence: float = 0.95) -> Conditions:
    """The conditions of the law of a world, exact where the law gives them.

    H1: the largest possible row; for `Bernoulli` supports, whose rows have no useful maximum, the exact
    0.999 quantile of the row size. H2: the exact mean of the non-zeros, in the rarest feature's column where
    they differ (see `_unit_mean`), and the largest entry (0.999 quantile for exponential and half-normal
    coefficients that are not scaled). H3: `World.rho_2`. V1: the dictionary of `seed`; without a seed exact
    for `Orthonormal` and `GivenDictionary`, else an interval that contains max |cos| of a dictionary to be
    drawn with probability `confidence` (see `_cosine_interval`). A law of H unknown here, or without a closed
    rho_2 (`Exactly` with unequal frequencies), is judged by `samples` rows as in `of_sample`, though a feature
    that they miss is no error. Noise plays no part.

    Raises:
        RequestError: a feature of frequency 0, samples < 1, a confidence outside (0, 1), a seed out of range,
            or none for a law of dictionaries unknown here.
    """
    confidence = real("confidence", confidence, 0, 1, open_low=True, open_high=True)
    samples, n = whole("samples", samples, 1), world.n
    if never := int(np.count_nonzero(world.frequencies() == 0)):
        raise RequestError(f"{never} of the n = {n} features have frequency 0; every feature must occur")
    # A hierarchy, or coefficients that can be 0, change the law of the supports.
    row_size, entries = (_law_row_size(world.support, n), _law_entries(world)) if world.keeps_support else (None, None)
    rho_2 = world.rho_2() if n > 1 else 0.0
    H1 = _above("H1", row_size or 0, ROW_SIZE, _H1 + (_MOST if isinstance(world.support, Bernoulli) else ""))
    unbounded = isinstance(world.coefficients, (Exponential, HalfNormal)) and not world.unit_rows
    H2 = _mean_and_largest(*(entries or (1.0, 1.0)), _H2 + (_MOST if unbounded else ""))
    H3 = _above("H3", rho_2 or 0.0, CO_OCCURRENCE / math.sqrt(n), _H3)
    if row_size is None or entries is None or rho_2 is None:
        rows, values = world.row_sampler()(samples, stream(0 if seed is None else seed, "conditions"))
        drawn = sparse.csr_array((values, rows.indices, rows.indptr), shape=(samples, n))
        estimates = _sampled(_codes(drawn, n), n, confidence)
        known = (row_size, H1), (entries, H2), (rho_2, H3)
        H1, H2, H3 = (e if fact is None else law for e, (fact, law) in zip(estimates, known, strict=True))
    return _joined(H1, H2, H3, _world_cosine(world, seed, confidence))


def largest_cosine(V: Float[np.ndarray, "n d"]) -> float:
    """max_{i != j} |cos(v_i, v_j)| in float64, rounded to 12 decimals; 0 for one row. Blocks of 128 MiB."""
    units = unit_rows(V)
    best, step = 0.0, max(1, BLOCK_BYTES // (8 * len(units)))
    for start in range(0, len(units), step):
        block = np.abs(units[start : start + step] @ units[start:].T)
        rows = len(block)
        block[:, :rows] = np.triu(block[:, :rows], 1)
        best = max(best, float(block.max()))
    return min(1.0, round(best, DECIMALS))


@dataclass(frozen=True)
class _Codes:
    """What H (N x n) says: |D_i|, max_{j != i} |D_i & D_j|, rho_2, largest row, least column mean, largest entry."""

    occurrences: Int[np.ndarray, " n"]
    together: Int[np.ndarray, " n"]
    rho_2: float
    row_size: int
    least_mean: float
    largest: float


def _codes(H, n: int) -> _Codes:
    H = sparse_matrix("H", H, (None, n))
    if H.data.min(initial=0.0) < 0:
        raise RequestError(f"H holds {H.data.min():g}; coefficients must not be negative")
    sizes, occurrences = np.diff(H.indptr), np.bincount(H.indices, minlength=n)
    means = np.bincount(H.indices, H.data, minlength=n)[occurrences > 0] / occurrences[occurrences > 0]
    least, largest = float(means.min(initial=math.inf)), float(H.data.max(initial=0.0))
    together = _together(H, sizes)
    rho_2 = float((together / np.maximum(occurrences, 1)).max())
    return _Codes(occurrences, together, rho_2, int(sizes.max()), least, largest)


def _together(H: sparse.csr_array, sizes: np.ndarray) -> np.ndarray:
    """max_{j != i} |D_i & D_j| per column i: rows of H^T H, as many at once as its products allow."""
    n = size(H)[1]
    pattern = sparse.csr_array((np.ones(H.nnz, dtype=np.int32), H.indices, H.indptr), shape=size(H))
    columns = sparse.csr_array(pattern.T)
    work = np.cumsum(np.bincount(H.indices, np.repeat(sizes, sizes), minlength=n))
    together, start = np.zeros(n, dtype=np.int64), 0
    while start < n:
        done = work[start - 1] if start else 0.0
        stop = max(start + 1, int(np.searchsorted(work, done + PRODUCTS_AT_ONCE, side="right")))
        counts = sparse.coo_array(columns[start:stop] @ pattern)
        other = counts.row + start != counts.col
        np.maximum.at(together, counts.row[other] + start, counts.data[other])
        start = stop
    return together


def _observed(H, V) -> tuple[_Codes, np.ndarray]:
    V = dictionary("V", V)
    codes = _codes(H, len(V))
    if (never := np.flatnonzero(codes.occurrences == 0)).size:
        which = f"{never.size} of the {len(V)} columns of H are zero, the first is {never[0]}"
        raise RequestError(f"{which}; every feature must occur: take more samples or leave these features out")
    return codes, V


def _log_ratio(above: float, below: float) -> float:
    if below == 0:
        return math.inf
    return -math.inf if math.isinf(below) or above == 0 else math.log(above / below)


def _above(name: str, value: float, limit: float, surrogate: str, within: tuple[float, float] | None = None) -> Slack:
    """Slack of value <= limit, the true value lying `within` an interval (default: exact)."""
    slack, high, low = (_log_ratio(limit, x) for x in (value, *(within or (value, value))))
    return Slack(name, slack, low, high, float(value), limit, within is None, surrogate)


def _mean_and_largest(mean: float, largest: float, surrogate: str) -> Slack:
    """H2 from the least column mean and the largest entry, which no column's mean exceeds."""
    low, high = _log_ratio(mean, LEAST_MEAN), _log_ratio(LARGEST_ENTRY, largest)
    slack, measured, limit = (low, mean, LEAST_MEAN) if low <= high else (high, largest, LARGEST_ENTRY)
    return Slack("H2", slack, slack, slack, measured, limit, True, surrogate)


def _joined(H1: Slack, H2: Slack, H3: Slack, V1: Slack) -> Conditions:
    """With the joint quantity: its log is the sum of those of s and of max |cos|."""
    joint = _above("joint", H1.measured * V1.measured, 1.0, _JOINT)
    if not (H1.exact and V1.exact):
        shift = math.log(ROW_SIZE * COSINE)
        joint = replace(joint, low=H1.low + V1.low - shift, high=H1.high + V1.high - shift, exact=False)
    return Conditions(H1, H2, H3, V1, joint)


def _exact_cosine(V: np.ndarray) -> Slack:
    return _above("V1", largest_cosine(V), COSINE, _V1)


def _sampled(codes: _Codes, n: int, confidence: float) -> tuple[Slack, Slack, Slack]:
    """H1, H2 and H3 of the law from a sample of it; a column not seen has rho up to 1."""
    H1 = _above("H1", codes.row_size, ROW_SIZE, _H1 + _SEEN, (codes.row_size, n))
    H2 = _mean_and_largest(codes.least_mean, codes.largest, _H2 + _SEEN)
    H2 = replace(H2, low=-math.inf, high=_log_ratio(LARGEST_ENTRY, codes.largest), exact=False)
    error, pairs = (1 - confidence) / 2, max(1, n * (n - 1))
    count, total = codes.together, codes.occurrences
    with np.errstate(invalid="ignore"):
        lower = np.where(count > 0, beta.ppf(error / pairs, count, total - count + 1), 0.0)
        upper = np.where(count < total, beta.isf(error, count + 1, total - count), 1.0)
    within = (float(lower.max()), float(upper.max()) if n > 1 else 0.0)
    H3 = _above("H3", codes.rho_2, CO_OCCURRENCE / math.sqrt(n), _H3, within)
    return H1, H2, H3


def _law_row_size(support: Support, n: int) -> int | None:
    """Largest row size of the law, for `Bernoulli` its 1 - RARE quantile; None where the law is not known."""
    if isinstance(support, Bernoulli):
        return int(np.searchsorted(np.cumsum(_poisson_binomial(support.feature_frequencies(n))), 1 - RARE))
    sizes = _size_given_active(support, n)
    return None if sizes is None else max(sizes)[0]


def _size_given_active(support: Support, n: int) -> list[tuple[int, float]] | None:
    """(size, probability) of the rows that hold the rarest feature; None where the law is not known."""
    if isinstance(support, Bernoulli):
        others = _poisson_binomial(np.sort(support.feature_frequencies(n))[1:])
        return [(1 + k, p) for k, p in enumerate(others.tolist()) if p > 1e-14]
    if isinstance(support, Mixture):
        components = zip(support.sizes, support.weights or (), strict=True)
        return [(size, size * weight / support.mean_active) for size, weight in components if weight > 0]
    return [(support.s, 1.0)] if isinstance(support, (Exactly, Paired)) else None


def _poisson_binomial(frequencies: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
    """P(k successes), k = 0, 1, ..., from its Fourier transform; the rest is below 1e-12 (Bernstein)."""
    mean = float(frequencies.sum())
    length = min(frequencies.size, math.ceil(mean + 8 * math.sqrt(mean) + 40)) + 1
    roots = np.exp(2j * np.pi * np.arange(length) / length)
    transform = [np.prod(1 + frequencies * (root - 1)) for root in roots]
    return np.maximum(np.fft.fft(transform).real / length, 0.0)


def _law_entries(world: World) -> tuple[float, float] | None:
    """Least column mean and largest entry (1 - RARE quantile) of the law of H; None where it is not known."""
    law = world.coefficients
    if not isinstance(law, (ConstantCoefficients, Uniform, Exponential, HalfNormal)):
        return None
    if world.unit_rows:  # Entries are at most 1; means fall with row size: the rarest feature has the least.
        sizes = _size_given_active(world.support, world.n)
        return None if sizes is None else (math.fsum(p * _unit_mean(law, k) for k, p in sizes), 1.0)
    if isinstance(law, ConstantCoefficients):
        return law.value, law.value
    if isinstance(law, Uniform):
        return (law.low + law.high) / 2, law.high
    if isinstance(law, Exponential):
        return law.scale, -law.scale * math.log(RARE)
    return law.scale * math.sqrt(2 / math.pi), law.scale * float(ndtri(1 - RARE / 2))


def _unit_mean(law: Coefficients, k: int) -> float:
    """E[h_1 / ||h||] of k independent coefficients: the mean entry of a unit row of size k (derived here).

    1 / ||h|| = (2 / sqrt(pi)) int_0^inf exp(-t^2 ||h||^2) dt, so the mean is one integral of
    E[h exp(-t^2 h^2)] E[exp(-t^2 h^2)]^(k-1), both in closed form; for half-normal coefficients it is
    Gamma(k/2) / (sqrt(pi) Gamma((k+1)/2)), for equal ones 1 / sqrt(k).
    """
    if k == 1 or isinstance(law, ConstantCoefficients):
        return 1 / math.sqrt(k)
    if isinstance(law, HalfNormal):
        return math.exp(gammaln(k / 2) - gammaln((k + 1) / 2)) / math.sqrt(math.pi)

    def integrand(t: float) -> float:
        half = math.sqrt(math.pi) / (2 * t)
        if isinstance(law, Uniform):
            low = law.low / law.high
            first = (math.exp(-((t * low) ** 2)) - math.exp(-t * t)) / (2 * t * t * (1 - low))
            return first * (half * (erf(t) - erf(t * low)) / (1 - low)) ** (k - 1)
        transform = half * erfcx(1 / (2 * t))
        return (1 - transform) / (2 * t * t) * transform ** (k - 1)

    # Below t = 1e-4, where rounding would decide, the integrand is flat.
    return 2 / math.sqrt(math.pi) * (1e-4 * integrand(1e-4) + quad(integrand, 1e-4, math.inf, limit=200)[0])


def _world_cosine(world: World, seed: int | None, confidence: float) -> Slack:
    law, n, d = world.dictionary, world.n, world.d
    if seed is not None or isinstance(law, GivenDictionary):
        return _exact_cosine(world.features(seed or 0))
    if isinstance(law, Orthonormal) or n == 1:
        return _above("V1", 0.0, COSINE, _V1)
    if not isinstance(law, (Gaussian, UnitSphere, Coherent)):
        raise RequestError(f"max |cos| of {type(law).__name__} has no formula; give the seed of one dictionary")
    lean = law.mean_cosine if isinstance(law, Coherent) else 0.0
    value, least, most = _cosine_interval(n, d - isinstance(law, Coherent), lean, confidence)
    return _above("V1", value, COSINE, _V1, (least, most))


def _cosine_interval(n: int, dimension: int, lean: float, confidence: float) -> tuple[float, float, float]:
    """Typical value of max |cos| and an interval that contains it with probability `confidence`.

    cos = lean + (1 - lean) c with c the cosine of two isotropic directions, c^2 ~ Beta(1/2, (dimension-1)/2);
    lean = 0 for Gaussian and uniform rows. The P = n (n - 1) / 2 cosines are pairwise independent. With
    q = P(|cos| > t): P(max > t) <= P q (union), and P(max <= t) <= (1 - q) / (1 - q + P q) (second moment,
    Cauchy-Schwarz). The typical value is the median that independent cosines would have. (Derived here.)
    """
    pairs, error = n * (n - 1) / 2, (1 - confidence) / 2
    median, some = -math.expm1(-math.log(2) / pairs), (1 - error) / (1 - error + error * pairs)
    tails = np.array([median, some, error / pairs])

    def beyond(x: np.ndarray) -> np.ndarray:
        """P(c > x); in one dimension c = +-1, the limit of the Beta law."""
        side = beta.sf(np.minimum(1.0, x * x), 0.5, max(dimension - 1, 1e-9) / 2) / 2
        return np.where(x >= 0, side, 1 - side)

    low, high = np.zeros(3), np.ones(3)
    for _ in range(60):  # bisection
        t = (low + high) / 2
        exceeds = beyond((t - lean) / (1 - lean)) + beyond((t + lean) / (1 - lean)) > tails
        low, high = np.where(exceeds, t, low), np.where(exceeds, high, t)
    return float(high[0]), float(high[1]), float(high[2])
