"""The Gaussian copula. Statistical tests: false-alarm rate at most 1e-7 each (ALARM of test_supports), fixed seeds."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from test_supports import assert_counts, detectable, matrix, subset_counts

from simulator import copula_kernels
from simulator.config import fingerprint
from simulator.copula import Copula, GivenFactors, Latent, RandomFactors
from simulator.errors import RequestError
from simulator.frequencies import Zipf
from simulator.rng import stream
from simulator.supports import Bernoulli, Support
from simulator.world import World

ENDS = (1.0, 0.0, 0.5, 0.999, 1e-3, 0.3, 1e-5, 0.9, 0.01)
LAWS = [
    (Copula(13, Zipf(0.5)), 200),
    (Copula.of(ENDS, RandomFactors(3, 0.4)), 9),
    (Copula.of(ENDS, RandomFactors(8, 2.0, structure=5)), 9),
    (Copula(2.0, factors=GivenFactors(np.zeros((20, 1)))), 20),
    (Copula(0.5, factors=GivenFactors(np.full((3, 2), 0.7))), 3),
    (Copula(1.0), 1),
]
every_law = pytest.mark.parametrize(("law", "n"), LAWS, ids=range(len(LAWS)))


@every_law
def test_every_feature_has_its_frequency(law, n):
    # Detectable at N = 200,000 and 200 features: 0.0072 at f = 0.1, 0.0007 at f = 0.001.
    N = 200_000
    assert detectable(N, 0.1, 200) == pytest.approx(0.0073, rel=0.02)
    f = law.feature_frequencies(n)
    assert f.sum() == pytest.approx(law.mean_active) and isinstance(law, Support)
    assert_counts(np.bincount(law.sampler(n)(N, stream(1, "test")).indices, minlength=n), N, f)


def pair_law(law: Copula, n: int) -> np.ndarray:
    """P(i and j active) of all pairs: the bivariate normal distribution."""
    F = law.factors.matrix(n)
    z = scipy.stats.norm.ppf(law.feature_frequencies(n))
    return np.array(
        [
            scipy.stats.multivariate_normal.cdf(z[[i, j]], cov=np.array([[1, F[i] @ F[j]], [F[i] @ F[j], 1]]))
            for i, j in itertools.combinations(range(n), 2)
        ]
    )


def pair_counts(law: Copula, n: int, N: int) -> np.ndarray:
    H = matrix(law.sampler(n)(N, stream(2, "test")), n)
    return (H.T @ H).toarray()[np.triu_indices(n, 1)]


def test_pairs_are_correlated_as_they_should():
    # 12 features of frequency 0.05 to 0.3 and correlations up to 0.5. At N = 400,000 a false probability of a pair
    # is found from 0.0024 at 0.02.
    n, N = 12, 400_000
    law = Copula.of(np.linspace(0.05, 0.3, n), RandomFactors(4, 0.25))
    assert detectable(N, 0.02, 66) == pytest.approx(0.0024, rel=0.02)
    wanted = pair_law(law, n)
    assert_counts(pair_counts(law, n, N), N, wanted)
    # Power: factors that are wrong by 10 % are found, and so are independent features.
    for wrong in (Copula.of(np.linspace(0.05, 0.3, n), GivenFactors(law.factors.matrix(n) * 1.1)),
                  Copula.of(np.linspace(0.05, 0.3, n), RandomFactors(4, 0.0))):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_counts(pair_counts(wrong, n, N), N, wanted)


def test_given_the_latent_numbers_the_features_are_independent():
    # 10 features (two groups of the walk, the second one padded) at fixed z: all 1,024 subsets against the
    # product law, N = 400,000: a subset of probability 0.001 is wrong from 0.0006 on. Frequent features too.
    N, n = 400_000, 10
    for frequencies in (np.geomspace(0.4, 0.05, n), np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.97])):
        latent = Latent.of(Copula.of(frequencies, RandomFactors(2, 0.3)), n)
        numbers = np.tile(np.array([[0.8, -1.1, 1.0]], dtype=np.float32), (N, 1))
        p = latent.probabilities(numbers[:1])[0]
        law = [math.prod(p[i] if code >> i & 1 else 1 - p[i] for i in range(n)) for code in range(2**n)]
        assert_counts(subset_counts(latent.walk(numbers, stream(3, "test")), n), N, law)


def test_rows_are_independent():
    # Feature i in both of rows 2 l and 2 l + 1: Binomial(N / 2, f_i^2), although the skips run on over the rows.
    law, n, N = Copula(4.0, Zipf(0.3), RandomFactors(2, 0.6)), 16, 200_000
    H = matrix(law.sampler(n)(N, stream(4, "test")), n)
    both = H[0::2].multiply(H[1::2]).sum(axis=0)
    assert_counts(both, N // 2, law.feature_frequencies(n) ** 2)


@every_law
def test_rows_are_well_formed_and_depend_on_the_stream_only(law, n):
    draw = law.sampler(n)
    for N in (1, 2, 5000):
        indptr, indices = draw(N, stream(5, "test", N))
        assert indptr.dtype == indices.dtype == np.int32 and indptr[0] == 0 and indptr[-1] == indices.size
        place = np.repeat(np.arange(N), np.diff(indptr)) * n + indices
        assert (np.diff(place) > 0).all() and (indices.size == 0 or (indices.min() >= 0 and indices.max() < n))
        again = law.sampler(n)(N, stream(5, "test", N))
        assert np.array_equal(again.indptr, indptr) and np.array_equal(again.indices, indices)


@every_law
def test_the_same_without_numba(law, n, monkeypatch):
    compiled = law.sampler(n)(300, stream(6, "test"))
    monkeypatch.setattr(copula_kernels, "walk", copula_kernels.walk.py_func)
    monkeypatch.setattr(copula_kernels, "_probability", copula_kernels._probability.py_func)
    plain = law.sampler(n)(300, stream(6, "test"))
    assert np.array_equal(plain.indptr, compiled.indptr) and np.array_equal(plain.indices, compiled.indices)


def test_the_bounds_bound():
    lower, upper = copula_kernels.hazard_bounds()
    scores = stream(7, "test").uniform(1, copula_kernels.CELLS, 100_000)
    hazard = -scipy.stats.norm.logsf(scores / copula_kernels.STEPS - copula_kernels.REACH)
    cell = scores.astype(np.float32).astype(int)
    assert (lower[cell] < hazard).all() and (hazard < upper[cell]).all()
    # What is left to the hazard itself is at most an eighth of the cell's bound (at x = -8).
    assert (1 - lower[1:-1] / upper[1:-1]).max() < 0.125 + 0.01


def test_the_structure_is_a_part_of_the_law():
    first, other = Copula(3), Copula(3, factors=RandomFactors(structure=1))
    assert first == Copula(3.0) and first != other and fingerprint(first) != fingerprint(other)
    assert not np.array_equal(first.factors.matrix(5), other.factors.matrix(5))
    given = Copula(3, factors=GivenFactors(first.factors.matrix(30)))
    assert given == Copula(3, factors=GivenFactors(first.factors.matrix(30))) and len({given, first}) == 2
    assert len(fingerprint(given)) == 64
    # The same factors given or drawn: the same samples.
    samples = [law.sampler(30)(100, stream(8, "test")) for law in (first, given)]
    assert np.array_equal(samples[0].indices, samples[1].indices)
    assert first.rho_2(30) is None and World(30, 4, first).mean_active == 3


def test_long_rows_of_factors_are_shortened():
    F = RandomFactors(8, 2.0).matrix(50)
    assert np.linalg.norm(F, axis=1) == pytest.approx(math.sqrt(0.99))
    short = RandomFactors(8, 0.05).matrix(5_000)
    # 40,000 numbers N(0, 0.05^2): their mean square is 0.05^2 within 4 % except with probability below 1e-7.
    assert (short**2).mean() == pytest.approx(0.0025, rel=0.04)


def test_a_copula_without_correlation_is_bernoulli():
    # Rank 0 in all but the name: the row sizes of both have one law (two-sample Kolmogorov-Smirnov, 1e-7).
    f = np.geomspace(0.3, 0.01, 50)
    sizes = [
        np.diff(law.sampler(50)(50_000, stream(9, "test", k)).indptr)
        for k, law in enumerate((Copula.of(f, RandomFactors(2, 0.0)), Bernoulli.of(f)))
    ]
    assert scipy.stats.ks_2samp(*sizes).pvalue > 1e-7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copula(0), "mean number s of active features = 0"),
        (lambda: Copula.of((0.5, 1.5)), "must be <= 1, but the largest is 1.5"),
        (lambda: Copula(3).check(2), "= 3 exceeds the number of features n = 2"),
        (lambda: Copula(3, Zipf(2)).check(5), "would need frequency"),
        (lambda: RandomFactors(0), "rank of the copula = 0"),
        (lambda: RandomFactors(scale=-1), "scale of the copula = -1"),
        (lambda: RandomFactors(structure=-1), "structure of the copula = -1"),
        (lambda: GivenFactors(np.ones((3, 1))), "norm 1; every row needs a norm < 1"),
        (lambda: GivenFactors(np.ones(3)), "must have 2 dimension"),
        (lambda: World(4, 2, Copula(1, factors=GivenFactors(np.zeros((3, 1))))), "3 features, but .* n = 4"),
    ],
)  # fmt: skip
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
