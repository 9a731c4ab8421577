"""Laws of the dictionaries. False-alarm rate of every statistical test: at most 1e-7 (ALARM)."""

import math

import numpy as np
import pytest
import scipy.stats

from simulator.dictionaries import Coherent, Gaussian, GivenDictionary, Orthonormal, UnitSphere
from simulator.errors import RequestError
from simulator.rng import stream

ALARM = 1e-7

LAWS = [
    Gaussian(),
    UnitSphere(),
    Orthonormal(),
    Coherent(0.3),
    GivenDictionary(np.arange(1.0, 25.0).reshape(4, 6)),
]


def largest_gap(sample: np.ndarray, distribution) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance and its bound by Dvoretzky-Kiefer-Wolfowitz at ALARM.

    A law that differs by more than twice the bound is missed with probability below ALARM.
    """
    bound = math.sqrt(math.log(2 / ALARM) / (2 * sample.size))
    return float(scipy.stats.kstest(sample, distribution).statistic), bound


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_every_law(law):
    law.check(4, 6)
    V = law.draw(4, 6, stream(0, "dictionary"))
    assert V.shape == (4, 6) and V.dtype == np.float64 and V.flags.c_contiguous and V.flags.writeable
    assert np.isfinite(V).all() and V.any(axis=1).all()
    assert np.array_equal(V, law.draw(4, 6, stream(0, "dictionary")))


@pytest.mark.parametrize("law", [UnitSphere(), Orthonormal(), Coherent(0.3), Coherent(0.0)])
def test_unit_rows(law):
    assert np.linalg.norm(law.draw(5, 7, stream(1, "dictionary")), axis=1) == pytest.approx(1, abs=1e-12)


def test_gaussian_entries():
    # 200,000 entries: bound 0.0065.
    gap, bound = largest_gap(Gaussian().draw(4000, 50, stream(2, "dictionary")).ravel(), "norm")
    assert gap < bound


def test_unit_sphere_is_uniform():
    # A coordinate t of a uniform unit vector in R^5: (t + 1) / 2 is Beta(2, 2). 20,000 rows: bound 0.021.
    V = UnitSphere().draw(20_000, 5, stream(3, "dictionary"))
    for column in (0, 4):
        gap, bound = largest_gap((V[:, column] + 1) / 2, scipy.stats.beta(2, 2).cdf)
        assert gap < bound


def test_orthonormal_rows():
    V = Orthonormal().draw(6, 9, stream(4, "dictionary"))
    assert pytest.approx(np.eye(6), abs=1e-12) == V @ V.T


def test_orthonormal_is_uniform():
    # The first coordinate of a row is that of a uniform unit vector in R^3: uniform on [-1, 1]. 2,000
    # draws: bound 0.065. Without the sign of the diagonal of R the first row would have a first coordinate
    # of one sign: gap 0.5.
    rng = stream(5, "dictionary")
    V = np.stack([Orthonormal().draw(2, 3, rng) for _ in range(2000)])
    for row in (0, 1):
        gap, bound = largest_gap(V[:, row, 0], scipy.stats.uniform(-1, 2).cdf)
        assert gap < bound


@pytest.mark.parametrize("mean_cosine", [0.0, 0.1, 0.6])
def test_coherent_mean_cosine(mean_cosine):
    # Mean over the pairs i != j of cos = c + (1 - c) (|G|^2 - n) / (n (n - 1)), G the sum of n unit vectors
    # in d - 1 dimensions, |G|^2 (d - 1) / n nearly chi2(d - 1). n = 3000, d = 40: |G|^2 / n in [0.10, 2.9]
    # at 1e-7, so the mean is within 7e-4 of c; detectable discrepancy 1.3e-3.
    n, d = 3000, 40
    V = Coherent(mean_cosine).draw(n, d, stream(6, "dictionary"))
    mean = (np.sum(V.sum(axis=0) ** 2) - n) / (n * (n - 1))
    low, high = scipy.stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], d - 1) / (d - 1)
    assert (low - 1) / (n - 1) < (mean - mean_cosine) / (1 - mean_cosine) < (high - 1) / (n - 1)


def test_coherent_spread_of_cosines():
    # Standard deviation (1 - c) / sqrt(d - 1) = 0.7 / 3 for c = 0.3, d = 10; 1,000 disjoint pairs are
    # independent. ((cos - c) / (1 - c) + 1) / 2 is Beta((d - 2) / 2, (d - 2) / 2); bound 0.092 with 1,000
    # pairs.
    V = Coherent(0.3).draw(2000, 10, stream(7, "dictionary"))
    cosines = np.sum(V[:1000] * V[1000:], axis=1)
    gap, bound = largest_gap(((cosines - 0.3) / 0.7 + 1) / 2, scipy.stats.beta(4, 4).cdf)
    assert gap < bound


def test_given_dictionary_is_copied():
    matrix = np.eye(3)
    law = GivenDictionary(matrix)
    matrix[0, 0] = 7.0
    V = law.draw(3, 3, stream(0, "dictionary"))
    V[1, 1] = 5.0
    assert np.array_equal(law.draw(3, 3, stream(0, "dictionary")), np.eye(3))
    assert law == GivenDictionary(np.eye(3)) and hash(law) == hash(GivenDictionary(np.eye(3)))
    assert law != GivenDictionary(2 * np.eye(3)) and law != Gaussian()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Orthonormal().check(5, 4),
            "5 orthonormal rows do not fit into d = 4 dimensions; choose n <= d",
        ),
        (
            lambda: Coherent(1.0),
            r"mean cosine = 1 is out of range: it must be a finite number and >= 0 and < 1",
        ),
        (lambda: Coherent(-0.1), "mean cosine = -0.1"),
        (lambda: Coherent(math.nan), "mean cosine = nan"),
        (lambda: Coherent(0.1).check(3, 1), "needs d >= 2 dimensions, not d = 1"),
        (lambda: GivenDictionary(np.eye(3)).check(3, 4), r"shape \(3, 3\).*\(n, d\) = \(3, 4\)"),
        (lambda: GivenDictionary(np.array([[1.0, math.nan]])), "1 entries are NaN or infinite"),
        (lambda: GivenDictionary(np.array([[1.0, 0.0], [0.0, 0.0]])), r"1 zero row\(s\), the first is row 1"),
        (lambda: GivenDictionary(np.ones(3)), r"shape \(3,\)"),
        (lambda: GivenDictionary(np.empty((0, 3))), "it is empty"),
        (lambda: GivenDictionary(np.array([["a", "b"]])), "not an array of real numbers"),
        (lambda: GivenDictionary(np.array([[1j, 1]])), "not an array of real numbers"),
    ],
)
def test_impossible_requests(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
