"""Laws of the supports. Every statistical test has a false-alarm rate of at most 1e-7 (ALARM, over all of its
counts together, for a correct sampler and a random seed; the seeds are fixed) and states what it detects."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from simulator.draws import (
    Rows,
    _coins_proposal,
    _odds_proposal,
    _sampford_acceptance,
    bernoulli_rows,
    distinct_rows,
    even_rows,
    pick_by_weight,
    sampford_rows,
)
from simulator.errors import RequestError
from simulator.frequencies import Constant, Given, Zipf, scaled
from simulator.rng import stream
from simulator.supports import Bernoulli, Exactly, Mixture, Paired

ALARM = 1e-7

LAWS = [
    (Exactly(1), 1),
    (Exactly(3), 40),
    (Exactly(3), 3),
    (Exactly(20), 128),
    (Exactly(9), 12),
    (Exactly(3, Zipf(0.5)), 60),
    (Exactly(8, Zipf(0.7)), 60),
    (Exactly(3, Given((1.0, 1.0, 0.5, 0.3, 0.2, 0.0))), 6),
    (Exactly(1, Zipf(2.0)), 10),
    (Mixture((3, 20)), 128),
    (Mixture((1, 2, 5), (1.0, 2.0, 1.0)), 5),
    (Bernoulli(34, Zipf(0.5)), 400),
    (Bernoulli(0.5), 30),
    (Bernoulli(30), 30),
    (Bernoulli.of((1.0, 0.9, 0.5, 0.2, 0.0, 1e-3)), 6),
    (Paired(3, 0.3), 40),
    (Paired(4, 1.0), 10),
    (Paired(5, 0.0), 10),
    (Paired(2, 1.0), 2),
]
every_law = pytest.mark.parametrize(("law", "n"), LAWS, ids=lambda value: str(value).replace("frequencies=", ""))


def matrix(rows: Rows, n: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(
        (np.ones(rows.indices.size), rows.indices, rows.indptr), shape=(rows.indptr.size - 1, n)
    )


def assert_counts(counts, N: int, probabilities, alarm: float = ALARM) -> None:
    """Each count is Binomial(N, p): exact two-sided tails, Bonferroni over the counts.

    A false p' is missed with probability below 1e-6 if |p' - p| > detectable(N, p, number of counts).
    """
    counts, probabilities = np.broadcast_arrays(np.asarray(counts), np.asarray(probabilities, dtype=float))
    level = alarm / 2 / counts.size
    low = scipy.stats.binom.cdf(counts, N, probabilities)
    high = scipy.stats.binom.sf(counts - 1, N, probabilities)
    assert low.min() > level, "a count is too small"
    assert high.min() > level, "a count is too large"


def detectable(N: int, probability: float, number: int) -> float:
    """Smallest discrepancy that `assert_counts` finds with probability 1 - 1e-6 (normal approximation)."""
    sigmas = scipy.stats.norm.isf(ALARM / 2 / number) + scipy.stats.norm.isf(1e-6)
    return float(sigmas * math.sqrt(probability * (1 - probability) / N))


def subset_counts(rows: Rows, n: int) -> np.ndarray:
    """How often each of the 2^n subsets occurs, by its bits."""
    code = matrix(rows, n) @ 2.0 ** np.arange(n)
    return np.bincount(code.astype(np.int64), minlength=2**n)


def sampford_law(f: np.ndarray, s: int) -> dict[int, float]:
    """P(S) in proportion to sum_S (1 - f_i) prod_S f_i / (1 - f_i), by enumeration."""
    weights = {}
    for subset in itertools.combinations(range(f.size), s):
        chosen = f[list(subset)]
        weights[sum(2**i for i in subset)] = (1 - chosen).sum() * np.prod(chosen / (1 - chosen))
    total = sum(weights.values())
    return {code: weight / total for code, weight in weights.items()}


def test_the_test_of_counts_finds_a_wrong_law():
    # Power: a frequency of 0.09 + detectable is flagged, and the detectable discrepancy is what a reader
    # expects: for N = 100,000, p = 0.09 and 128 counts, (6.15 + 4.75) sqrt(0.09 0.91 / 1e5) = 0.0099.
    gap = detectable(100_000, 0.09, 128)
    assert gap == pytest.approx(0.0099, rel=0.02)
    counts = np.full(128, 9000)
    assert_counts(counts, 100_000, 0.09)
    counts[5] = stream(0, "test").binomial(100_000, 0.09 + gap)
    with pytest.raises(AssertionError):
        assert_counts(counts, 100_000, 0.09)


@every_law
def test_rows_are_well_formed(law, n):
    draw = law.sampler(n)
    for N in (1, 2, 301):
        indptr, indices = draw(N, stream(1, "test", N))
        assert indptr.dtype == indices.dtype == np.int32
        assert indptr.shape == (N + 1,) and indptr[0] == 0 and indptr[-1] == indices.size
        for start, stop in itertools.pairwise(indptr):
            row = indices[start:stop]
            assert (np.diff(row) > 0).all()
            assert row.size == 0 or (row[0] >= 0 and row[-1] < n)


@every_law
def test_rows_depend_on_the_random_stream_only(law, n):
    draw = law.sampler(n)
    first = draw(50, stream(2, "test"))
    draw(20, stream(3, "test"))
    for again in (draw(50, stream(2, "test")), law.sampler(n)(50, stream(2, "test"))):
        assert np.array_equal(first.indptr, again.indptr) and np.array_equal(first.indices, again.indices)


@every_law
def test_every_feature_has_its_frequency(law, n):
    # N = 40,000. Detectable: 0.0266 at f = 0.5 (n = 6), 0.017 at f = 0.09 (n = 128); in detail `detectable`.
    N = 40_000
    f = law.feature_frequencies(n)
    assert f.shape == (n,) and f.min() >= 0 and f.max() <= 1
    assert f.sum() == pytest.approx(law.mean_active, rel=1e-12)
    counts = np.bincount(law.sampler(n)(N, stream(4, "test")).indices, minlength=n)
    assert_counts(counts, N, f)


@pytest.mark.parametrize(("law", "n"), [(law, n) for law, n in LAWS if isinstance(law, (Exactly, Paired))])
def test_every_row_has_exactly_s_features(law, n):
    assert (np.diff(law.sampler(n)(2000, stream(5, "test")).indptr) == law.s).all()


@pytest.mark.parametrize(("n", "s"), [(5, 2), (6, 5), (6, 3), (7, 1)])
def test_equal_frequencies_give_uniform_subsets(n, s):
    # C(6, 3) = 20 subsets of probability 0.05 each: detectable 0.0072 with N = 100,000.
    N = 100_000
    counts = subset_counts(even_rows(distinct_rows(N, n, s, stream(6, "test", n, s))), n)
    occurring = counts[counts > 0]
    assert occurring.size == math.comb(n, s)
    assert_counts(occurring, N, 1 / math.comb(n, s))


def test_many_repetitions_still_give_uniform_subsets():
    # s = n / 2 = 4: a first draw of 4 out of 8 is distinct with probability 8 7 6 5 / 8^4 = 0.41, so the
    # repetitions are drawn again up to several times. 70 subsets of probability 1/70: detectable 0.0036.
    N = 140_000
    counts = subset_counts(even_rows(distinct_rows(N, 8, 4, stream(7, "test"))), 8)
    assert np.count_nonzero(counts) == 70
    assert_counts(counts[counts > 0], N, 1 / 70)


@pytest.mark.parametrize("proposal", [_odds_proposal, _coins_proposal])
def test_both_proposals_give_sampfords_design(proposal):
    # Five features, f = (0.8, 0.5, 0.4, 0.2, 0.1), s = 2: ten subsets; detectable 0.013 at P = 0.3 with N
    # >= 100,000.
    f = np.array([0.8, 0.5, 0.4, 0.2, 0.1])
    law = sampford_law(f, 2)
    # Worked: {0, 1} has weight (0.2 + 0.5) (0.8 / 0.2) (0.5 / 0.5) = 0.7 4 1 = 2.8.
    features = proposal(f, 2)(900_000, stream(8, "test"))
    counts = subset_counts(even_rows(features), 5)
    assert len(features) > 100_000
    assert_counts([counts[code] for code in law], len(features), list(law.values()))
    # The inclusion probabilities of the enumerated law are f: Sampford's theorem, not a property of the
    # sampler.
    for i in range(5):
        assert sum(p for code, p in law.items() if code >> i & 1) == pytest.approx(f[i], rel=1e-12)


@pytest.mark.parametrize(
    ("s", "shape"),
    [(1, Zipf(1.0)), (3, Zipf(0.5)), (20, Zipf(0.5)), (20, Zipf(0.1)), (8, Given([1.0] * 8 + [0.02] * 120))],
)
def test_predicted_acceptance_rates(s, shape):
    # They only choose between the proposals, so a factor of 2 is enough; N p > 100 accepted rows or no test.
    f = scaled(shape, s, 128)
    for predicted, proposal in zip(_sampford_acceptance(f, s), (_odds_proposal, _coins_proposal), strict=True):
        if predicted > 5e-3:
            accepted = len(proposal(f, s)(20_000, stream(20, "test"))) / 20_000
            assert predicted / 2 < accepted < predicted * 2


@pytest.mark.parametrize("f", [(0.9, 0.9, 0.6, 0.3, 0.2, 0.1), (0.5, 0.5, 0.5, 0.5, 0.5, 0.5 - 1e-6)])
def test_sampford_rows_follow_the_enumerated_law(f):
    # s = 3: 20 subsets; detectable 0.018 at P = 0.4 with N = 80,000.
    f = np.array(f) * (3 / np.sum(f))
    law = sampford_law(f, 3)
    counts = subset_counts(sampford_rows(f, 3)(80_000, stream(9, "test")), 6)
    assert_counts([counts[code] for code in law], 80_000, list(law.values()))


def test_certain_features_are_in_every_row():
    # 3 r / sum r = r for r = (1, 1, 0.5, 0.3, 0.2, 0): the first two are certain, the last never occurs,
    # and one of the others is in the row, with probability 0.5, 0.3, 0.2.
    counts = subset_counts(Exactly(3, Given((1.0, 1.0, 0.5, 0.3, 0.2, 0.0))).sampler(6)(50_000, stream(1, "test")), 6)
    assert set(np.flatnonzero(counts)) == {0b000111, 0b001011, 0b010011}
    assert_counts(counts[[0b000111, 0b001011, 0b010011]], 50_000, [0.5, 0.3, 0.2])


def test_bernoulli_features_are_independent():
    # All 16 subsets of f = (0.2, 0.7, 0.45, 0.05): detectable 0.013 at P = 0.3 with N = 120,000.
    f = np.array([0.2, 0.7, 0.45, 0.05])
    bits = np.arange(16)[:, None] >> np.arange(4) & 1
    probabilities = np.prod(np.where(bits == 1, f, 1 - f), axis=1)
    assert_counts(subset_counts(bernoulli_rows(f)(120_000, stream(10, "test")), 4), 120_000, probabilities)


def test_bernoulli_row_sizes():
    # Equal f = 0.1, n = 50: sizes are Binomial(50, 0.1); detectable 0.012 at P(5) = 0.185 with N = 100,000.
    sizes = np.diff(Bernoulli(5).sampler(50)(100_000, stream(11, "test")).indptr)
    probabilities = scipy.stats.binom.pmf(np.arange(51), 50, 0.1)
    assert_counts(np.bincount(sizes, minlength=51), 100_000, probabilities)


def test_mixture_row_sizes():
    # Detectable 0.016 at weight 0.25, 0.019 at 0.5, with N = 80,000.
    rows = Mixture((1, 2, 5), (1.0, 2.0, 1.0)).sampler(8)(80_000, stream(12, "test"))
    counts = np.bincount(np.diff(rows.indptr), minlength=6)
    assert_counts(counts, 80_000, [0, 0.25, 0.5, 0, 0, 0.25])


def test_mixture_weights_are_normalised():
    assert Mixture((3, 20)).weights == (0.5, 0.5)
    assert Mixture((3, 20), (2.0, 2.0)) == Mixture((3, 20))
    # The imbalanced toy: half with 3, half with 20 of 128: mean 11.5, f = 11.5 / 128 = 0.08984.
    assert Mixture((3, 20)).mean_active == 11.5
    assert Mixture((3, 20)).feature_frequencies(128) == pytest.approx(0.08984375, rel=1e-12)


def test_a_mixture_size_of_weight_zero_never_occurs():
    rows = Mixture((1, 2, 3), (1.0, 0.0, 1.0)).sampler(8)(5000, stream(13, "test"))
    assert set(np.diff(rows.indptr)) == {1, 3}


@pytest.mark.parametrize(
    ("law", "n"),
    [
        (Exactly(3), 12),
        (Mixture((1, 6)), 12),
        (Paired(3, 0.5), 12),
        (Paired(4, 0.1), 12),
        (Paired(5, 0.7), 12),
    ],
)
def test_co_occurrence(law, n):
    # Partners (2k, 2k + 1) are both active with probability f_i rho, other pairs with f_i q; q = rho without
    # partners. 66 pairs, N = 100,000: detectable 0.011 at P = 0.125.
    N = 100_000
    H = matrix(law.sampler(n)(N, stream(14, "test")), n)
    both = (H.T @ H).toarray()
    s = law.mean_active
    others = (s - 1 - law.rho) / (n - 2) if isinstance(law, Paired) else law.rho_2(n)
    partners = law.rho if isinstance(law, Paired) else others
    is_partner = np.arange(n)[:, None] // 2 == np.arange(n) // 2
    upper = np.triu_indices(n, 1)
    assert_counts(both[upper], N, (s / n * np.where(is_partner, partners, others))[upper])


def test_paired_rows_of_a_small_world():
    # s = 2, n = 4, rho = 0.5: one couple with probability 1/2 (two of them, 1/4 each), else one feature of
    # each pair (four of them, 1/8 each).
    counts = subset_counts(Paired(2, 0.5).sampler(4)(50_000, stream(15, "test")), 4)
    probabilities = np.zeros(16)
    probabilities[[0b0011, 0b1100]] = 1 / 4
    probabilities[[0b0101, 0b0110, 0b1001, 0b1010]] = 1 / 8
    assert_counts(counts, 50_000, probabilities)


def test_rho_2_worked_examples():
    assert Exactly(3).rho_2(129) == 2 / 128
    assert Exactly(3, Zipf(0.5)).rho_2(129) is None
    assert Bernoulli.of((0.1, 0.3, 0.2)).rho_2(3) == 0.3
    # (0.5 3 2 + 0.5 20 19) / (11.5 127) = 193 / 1460.5
    assert Mixture((3, 20)).rho_2(128) == pytest.approx(193 / 1460.5, rel=1e-12)
    assert Paired(3, 0.5).rho_2(128) == 0.5
    # The others: (3 - 1 - 0) / (128 - 2).
    assert Paired(3, 0.0).rho_2(128) == 2 / 126
    assert Paired(2, 1.0).rho_2(2) == 1.0


def test_paired_reaches_its_ends():
    # s = 5: at most two couples, rho = 2 floor(5 / 2) / 5 = 0.8: always two couples and one single feature.
    rows = Paired(5, 0.8).sampler(20)(500, stream(16, "test"))
    pairs = matrix(rows, 20).toarray().reshape(500, 10, 2).sum(axis=2)
    assert ((pairs == 2).sum(axis=1) == 2).all() and ((pairs == 1).sum(axis=1) == 1).all()
    rows = Paired(5, 0.0).sampler(20)(500, stream(17, "test"))
    assert matrix(rows, 20).toarray().reshape(500, 10, 2).sum(axis=2).max() == 1


def test_frequency_shapes():
    assert scaled(Constant(), 3, 6) == pytest.approx([0.5] * 6)
    # Zipf(1), n = 3: 1, 1/2, 1/3 with sum 11/6; scaled to 1: 6/11, 3/11, 2/11.
    assert scaled(Zipf(1), 1, 3) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert scaled(Given([1, 3]), 1, 2) == pytest.approx([0.25, 0.75])
    assert Bernoulli.of([0.1, 0.7, 0.4]).feature_frequencies(3).tolist() == [0.1, 0.7, 0.4]


def test_given_frequencies_are_copied_and_compare_by_value():
    values = np.array([1.0, 2.0])
    given = Given(values)
    values[0] = 9.0
    assert given == Given((1.0, 2.0)) and hash(given) == hash(Given((1.0, 2.0))) and given != Given((1.0, 3.0))
    assert Bernoulli.of((0.5, 0.25)) == Bernoulli.of(np.array([0.5, 0.25]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.1), (1.0, 0.0, 1e-3), (5.0,)])
def test_pick_by_weight(weights):
    # Detectable 0.011 at p = 0.7 with N = 200,000.
    counts = np.bincount(pick_by_weight(np.array(weights))(200_000, stream(18, "test")), minlength=len(weights))
    assert_counts(counts, 200_000, np.array(weights) / np.sum(weights))


def test_a_large_world_is_never_dense():
    # n = 2^20 features and 10,000 rows: a dense float32 H would have 42 GB.
    n = 1 << 20
    for law in (Exactly(3), Bernoulli(3), Mixture((3, 20)), Paired(3, 0.3)):
        rows = law.sampler(n)(10_000, stream(19, "test"))
        assert rows.indices.max() > n // 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exactly(0), r"^s = 0 is out of range: it must be a whole number >= 1$"),
        (lambda: Exactly(True), "s = True is not a whole number >= 1"),
        (lambda: Exactly(5).check(4), r"s = 5 exceeds the number of features n = 4; choose at most 4"),
        (lambda: Exactly(3, Zipf(2)).check(50), "the most frequent one would need frequency 1.8"),
        (lambda: Exactly(2, Given((1.0, 2.0))).check(3), "Given frequencies name 2 features.* n = 3"),
        (lambda: Exactly(40, Given([1 - 1e-6] * 40 + [1e-6] * 40)).check(80), "too near to certainty"),
        (lambda: Zipf(-0.1), "Zipf exponent = -0.1 is out of range"),
        (lambda: Zipf(math.nan), "Zipf exponent = nan"),
        (lambda: Given((0.0, 0.0)), "must be >= 0 and not all zero"),
        (lambda: Given((0.5, -0.5)), "must be >= 0 and not all zero"),
        (lambda: Given((0.5, math.nan)), "1 entries are NaN or infinite"),
        (lambda: Given(np.ones((2, 2))), r"shape \(2, 2\)"),
        (lambda: Given(()), "it is empty"),
        (lambda: Bernoulli(0), "mean number s of active features = 0"),
        (lambda: Bernoulli(math.inf), "mean number s of active features = inf"),
        (lambda: Bernoulli(math.nan), "mean number s of active features = nan"),
        (lambda: Bernoulli(4.5).check(4), "= 4.5 exceeds the number of features n = 4"),
        (lambda: Bernoulli(5, Zipf(1)).check(10), "would need frequency 1.7"),
        (lambda: Bernoulli.of((0.5, 1.1)), "the largest is 1.1"),
        (lambda: Mixture(()), "at least one size"),
        (lambda: Mixture((3, 0)), "size of the mixture = 0"),
        (lambda: Mixture((3, 20)).check(10), "mixture size = 20 exceeds the number of features n = 10"),
        (lambda: Mixture((3, 20), (1.0,)), "2 sizes needs as many weights, not 1"),
        (lambda: Mixture((3, 20), (1.0, -1.0)), "must be >= 0 and not all zero"),
        (lambda: Mixture((3, 20), (0.0, 0.0)), "must be >= 0 and not all zero"),
        (lambda: Mixture((3, 20), (math.nan, 1.0)), "NaN"),
        (
            lambda: Paired(3, 0.7),
            r"rho = 0.7 is out of reach with s = 3 active features; choose rho <= 0.666667",
        ),
        (lambda: Paired(1, 0.1), "out of reach with s = 1"),
        (lambda: Paired(3, -0.1), "co-occurrence rho = -0.1"),
        (lambda: Paired(3, math.nan), "co-occurrence rho = nan"),
        (lambda: Paired(3, 0.5).check(7), "even n, not n = 7"),
        (lambda: Paired(3, 0.5).check(2), "s = 3 exceeds the number of features n = 2"),
        (
            lambda: Paired(3, 0.5).check(4),
            "with 0 couples need 3 pairs, but n = 4 has 2; choose a larger rho or n",
        ),
    ],
)
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
