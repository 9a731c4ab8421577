"""Laws of the coefficients. False-alarm rate of every statistical test: at most 1e-7."""

import math

import numpy as np
import pytest
import scipy.stats

from simulator.coefficients import ConstantCoefficients, Exponential, HalfNormal, Uniform
from simulator.errors import RequestError
from simulator.rng import stream


@pytest.mark.parametrize(
    ("law", "distribution"),
    [
        (Uniform(0.5, 2.0), scipy.stats.uniform(0.5, 1.5)),
        (Uniform(0, 1), scipy.stats.uniform(0, 1)),
        (Exponential(2.0), scipy.stats.expon(scale=2.0)),
        (HalfNormal(0.5), scipy.stats.halfnorm(scale=0.5)),
    ],
)
def test_distribution(law, distribution):
    # Dvoretzky-Kiefer-Wolfowitz: the distance of 100,000 draws exceeds sqrt(ln(2e7) / 2e5) = 0.0092 with
    # probability below 1e-7; a law at distance 0.0184 is missed with probability below 1e-7.
    values = law.draw(np.zeros(100_000, dtype=np.int32), stream(0, "test"))
    assert values.dtype == np.float64 and values.min() > 0
    assert scipy.stats.kstest(values, distribution.cdf).statistic < 0.0092


def test_constant():
    assert ConstantCoefficients(2).draw(np.zeros(3, dtype=np.int32), stream(0, "test")).tolist() == [2, 2, 2]


@pytest.mark.parametrize("law", [ConstantCoefficients, Exponential, HalfNormal])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_scale_must_be_positive(law, value):
    with pytest.raises(RequestError, match=r"is out of range: it must be a finite number and > 0$"):
        law(value)


@pytest.mark.parametrize("ends", [(-0.1, 1), (1, 1), (2, 1), (math.nan, 1), (0, math.inf), (0, math.nan)])
def test_the_ends_must_be_in_order(ends):
    with pytest.raises(RequestError, match=r"of the uniform coefficients = .* is out of range"):
        Uniform(*ends)
