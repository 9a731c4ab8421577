"""The finite-size step: its closed forms against quadrature, its predictions against real gradients."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import dblquad, quad

from simulator.errors import RequestError
from simulator.rng import stream
from theory import finite
from theory.bounds import threshold


def normal(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(("p", "s", "mu"), [(0.03, 3, 0.7), (0.2, 2, -0.4), (1e-4, 10, 3.0), (1e-3, 3, 6.0)])
def test_activation_mean_by_quadrature(p, s, mu):
    spread, beta = math.sqrt(1 - 1 / s), threshold(p)
    expected = quad(lambda u: 2 * u * normal((u - mu) / spread) / spread, beta, max(mu, beta) + 12, epsabs=0)[0]
    assert finite.activation_mean(mu, p, s) == pytest.approx(expected, rel=1e-9)


def test_activation_mean_limits():
    """Far above the threshold psi is linear; one active feature leaves no spread; averaged over zeta it is 2 phi(beta),
    the mean of psi."""
    assert finite.activation_mean(40.0, 0.01, 3) == pytest.approx(80.0)
    beta = threshold(0.01)
    assert [finite.activation_mean(mu, 0.01, 1) for mu in (beta - 1e-9, beta + 1e-9)] == pytest.approx([0, 2 * beta])
    h = 1 / math.sqrt(3)
    mean = quad(lambda z: finite.activation_mean(h * z, 0.01, 3) * normal(z), -10, 12)[0]
    assert mean == pytest.approx(2 * normal(beta), rel=1e-8)


@pytest.mark.parametrize("p", [0.3, 0.03, 1e-4])
def test_self_gain_is_the_second_moment_and_the_sum_of_the_gains(p):
    """E[2 u^2 1(u > beta)] = 2 (p + beta phi(beta)) = n E[alpha_j zeta_j]."""
    expected = quad(lambda u: 2 * u * u * normal(u), threshold(p), 40)[0]
    assert finite.self_gain(p) == pytest.approx(expected, rel=1e-8)
    summed = 50 * quad(lambda z: finite.feature_gain(z, 50, 4, p) * z * normal(z), -12, 15)[0]
    assert summed == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("s", "p"), [(2, 0.05), (3, 0.01), (10, 0.1)])
def test_noise_is_the_mean_product_of_two_samples_that_share_a_feature(s, p):
    """Int A(h z)^2 phi(z) dz = E[psi(u) psi(u')], u and u' with correlation h^2: a double integral without A or h z."""
    beta, r = threshold(p), 1 / s

    def density(v: float, u: float) -> float:
        return math.exp(-(u * u - 2 * r * u * v + v * v) / (2 * (1 - r * r))) / (2 * math.pi * math.sqrt(1 - r * r))

    product = dblquad(lambda v, u: 4 * u * v * density(v, u), beta, beta + 8, beta, beta + 8, epsrel=1e-7)[0]
    # At zeta -> -infinity the feature itself never fires: no interference.
    for centred, expected in ((False, product), (True, product - (2 * normal(beta)) ** 2)):
        step = finite.population_step(-60.0 if not centred else 0.0, 100, s, p, centred=centred)
        shared = (-(100 - s) / 9900 if centred else 0.0) * step.gain
        assert step.noise**2 == pytest.approx(99 * (s * 1e-4 * expected + shared**2), rel=1e-6)


def test_noise_with_one_active_feature():
    """A jumps at beta there, so the integral has its own branch: Int 4 z^2 over z > beta."""
    beta = threshold(0.02)
    for centred, offset in ((False, 0.0), (True, 2 * normal(beta))):
        parts = [
            quad(lambda z, o=offset: o * o * normal(z), -12, beta)[0],
            quad(lambda z, o=offset: (2 * z - o) ** 2 * normal(z), beta, 14)[0],
        ]
        step = finite.population_step(0.0, 30, 1, 0.02, centred=centred)
        shared = (-1 / 30 if centred else 0.0) * step.gain
        assert step.noise**2 == pytest.approx(29 * (sum(parts) / 900 + shared**2), rel=1e-7)


def gradient(zetas: np.ndarray, p: float, centred: bool) -> np.ndarray:
    """alpha_j for every j at s = 2, summed over all n (n - 1) / 2 supports."""
    n, h = len(zetas), 1 / math.sqrt(2)
    u = h * (zetas[:, None] + zetas[None, :] - (2 * zetas.mean() if centred else 0.0))
    psi = np.where(u > threshold(p), 2 * u, 0.0)
    np.fill_diagonal(psi, 0.0)
    pairs = n * (n - 1)
    return 2 * h * (psi.sum(axis=1) / pairs - (psi.sum() / n / pairs if centred else 0.0))


@pytest.mark.parametrize("centred", [False, True])
def test_step_against_sums_over_all_supports(centred):
    """60 draws of n = 600 overlaps, one set to 4. Their means lie within 5 standard errors (at most 5 % each) of the
    formulas (false alarm below 2e-5 over all), plus what is left out: the cross term, 3 %; with centring the feature
    itself in the mean, 8 %. A factor 2 or 1 / sqrt(2) in any of the three is caught."""
    n, p, found = 600, 0.05, []
    for draw in range(60):
        zetas = stream(3, "finite step", draw).standard_normal(n)
        zetas[0] = 4.0
        alpha = gradient(zetas, p, centred)
        found.append((alpha @ zetas, alpha[0], alpha[1:] @ alpha[1:]))
    step = finite.population_step(4.0, n, 2, p, centred=centred)
    expected = np.array([step.along, step.gain, step.noise**2])
    error = np.std(found, axis=0, ddof=1) / math.sqrt(60)
    assert np.all(error < 0.05 * expected)
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 5 * error + (0.08 if centred else 0.03) * expected)


@pytest.mark.parametrize("centred", [False, True])
def test_cosine_after_step_against_real_gradients(centred):
    """40 draws of V (n = 300, d = 100), a neuron at cosine .4 with a feature of length sqrt(d). The mean cosine lies
    within 5 standard errors (about .03) of the prediction, plus .03 for what is left out."""
    n, d, p, found = 300, 100, 0.02, []
    for draw in range(40):
        rng = stream(4, "finite cosine", draw)
        V, w = rng.standard_normal((n, d)), np.zeros(d)
        w[0] = 1.0
        side = V[0, 1:] / np.linalg.norm(V[0, 1:])
        V[0] = math.sqrt(d) * np.r_[0.4, math.sqrt(1 - 0.16) * side]
        g = gradient(V @ w, p, centred) @ V
        found.append(g @ V[0] / np.linalg.norm(g) / math.sqrt(d))
    predicted = finite.cosine_after_step(0.4, n, d, 2, p, centred=centred)
    error = float(np.std(found, ddof=1)) / math.sqrt(40)
    assert error < 0.02
    assert abs(np.mean(found) - predicted) < 5 * error + 0.03
    assert predicted > 0.5  # the step turns the neuron, so that "no step at all" fails here


def test_cosine_after_step_limits():
    # No step leaves the neuron where it is, whatever the feature; a feature's own direction stays.
    assert finite.cosine_after_step(0.3, 64, 32, 3, 0.05, step_size=1e-12) == pytest.approx(0.3)
    # d without bound at n fixed: only the interference of co-occurring features is left.
    assert finite.cosine_after_step(0.9, 64, 10**9, 3, 0.05) == pytest.approx(
        finite.interference_ceiling(64, 3), abs=1e-6
    )
    assert finite.cosine_after_step(0.9, 64, 10**9, 3, 0.05, centred=True) > 0.99
    steps = [finite.cosine_after_step(0.4, 64, 32, 3, 0.05, step_size=eta) for eta in (0.1, 1.0, 10.0, math.inf)]
    assert steps == sorted(steps) and steps[-1] - steps[0] > 0.1
    luck = [finite.cosine_after_step(0.4, 64, 32, 3, 0.05, deviation=delta) for delta in (-2.0, 0.0, 2.0)]
    assert luck == sorted(luck)


def test_cosines_stay_cosines():
    for start in (-1.0, -0.3, 0.0, 0.7, 1.0):
        for d in (2, 8, 100):
            for deviation in (-1.0, 0.0, 1.0):
                after = finite.cosine_after_step(start, 64, d, 3, 0.05, deviation=deviation)
                assert -1.0 - 1e-12 <= after <= 1.0 + 1e-12


def test_growth_and_its_limit():
    """Rare activations on a strong feature: kappa - 1 -> d / (n p beta^2); at p = 1e-250 beta^2 is 1,144."""
    p, n, d = 1e-250, 10**15, 30
    zeta = 2 * threshold(p) * math.sqrt(3)
    # n p is not large there, so S is the neuron's own feature alone: kappa - 1 = d / zeta^2.
    assert finite.growth(zeta, n, d, 3, p) == pytest.approx(d / zeta**2)
    p, n = 1e-12, 2**53 - 1
    zeta = 2 * threshold(p) * math.sqrt(3)
    own = finite.feature_gain(zeta, n, 3, p) * zeta / finite.self_gain(p)
    assert finite.growth(zeta, n, d, 3, p) * (1 + own) == pytest.approx(finite.growth_limit(n, d, p), rel=2.5 / 49)
    growths = [finite.growth(5.0, 1_000, 50, 3, p) for p in (0.2, 0.05, 0.01)]
    assert growths == sorted(growths)


@pytest.mark.parametrize(("d", "M"), [(2, 3), (12, 1_000), (48, 65_536), (512, 262_144)])
def test_best_start_is_the_quantile(d, M):
    """P(c > t) = 1/M with the density of a cosine, (1 - c^2)^{(d-3)/2}."""
    start = finite.best_start(d, M)
    if d == 2:
        tail = math.acos(start) / math.pi
    else:
        area = math.sqrt(math.pi) * math.exp(math.lgamma((d - 1) / 2) - math.lgamma(d / 2))
        tail = quad(lambda c: (1 - c * c) ** ((d - 3) / 2) / area, start, 1, epsabs=0)[0]
    assert tail * M == pytest.approx(1, rel=1e-7)
    # At this cosine one neuron is expected above: none is with probability 1/e.
    assert finite.untrained_share(d, M, start) == pytest.approx(1 - (1 - 1 / M) ** M)


def test_untrained_neurons_reach_a_cosine_of_09_in_twelve_dimensions():
    """What 300,000 random neurons do before training: most features in d = 12, next to none in d = 24."""
    shares = [finite.untrained_share(d, 300_000, 0.9) for d in (8, 12, 14, 16, 24)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] > 0.98 and shares[3] < 0.2 and shares[4] < 1e-3


def test_starting_neurons():
    """M P(zeta >= beta sqrt(s) / (1 - eps)); with s = 1 and eps = 0 that is M p."""
    assert finite.log_starting_neurons(1_000, 0.02, 1, 0.0) == pytest.approx(math.log(20))
    fewer = [finite.log_starting_neurons(10**6, p, 3, eps) for p, eps in ((0.1, 0.0), (0.1, 0.3), (0.01, 0.3))]
    assert fewer == sorted(fewer, reverse=True)
    assert finite.log_starting_neurons(10**6, 1e-300, 10, 0.5) < -10_000  # no underflow


def test_mean_direction_is_exact_in_the_mean_square():
    """||E x||^2 = f^2 h^2 ||sum v||^2 and ||sum v||^2 / n ~ chi^2_d: 2,000 draws of d = 8 give the mean of squares to
    1.1 %; 5 standard errors allow 5.6 % (false alarm 6e-7), leaving out h or a square root is far outside."""
    n, d, s = 20, 8, 5
    V = stream(5, "mean direction").standard_normal((2_000, n, d))
    squared = ((s / n / math.sqrt(s) * V.sum(axis=1)) ** 2).sum(axis=1)
    assert squared.mean() == pytest.approx(finite.mean_direction_norm(n, d, s) ** 2, rel=0.056)


def test_trajectory_repeats_the_step():
    found = finite.trajectory(64, 56, 2, 65_536, 0.01, 3, centred=True)
    assert found[0] == finite.best_start(56, 65_536)
    for before, after in pairwise(found):
        assert after == finite.cosine_after_step(float(before), 64, 56, 2, 0.01, centred=True)
    assert np.all(np.diff(found) > 0) and found[-1] > 0.95
    assert len(finite.trajectory(64, 56, 2, 10, 0.01, 0)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: finite.best_start(5, 1), "M = 1"),
        (lambda: finite.untrained_share(1, 5, 0.9), "d = 1"),
        (lambda: finite.feature_gain(1.0, 5, 6, 0.1), "s = 6"),
        (lambda: finite.population_step(math.nan, 5, 2, 0.1), "mu"),
        (lambda: finite.cosine_after_step(1.1, 5, 4, 2, 0.1), "cosine"),
        (lambda: finite.cosine_after_step(0.1, 5, 4, 2, 0.1, step_size=0.0), "step_size"),
        (lambda: finite.cosine_after_step(0.1, 5, 4, 2, 0.1, deviation=2.0), "deviation"),
        (lambda: finite.growth(0.0, 5, 4, 2, 0.1), "zeta"),
        (lambda: finite.trajectory(5, 4, 2, 9, 0.7, 1), "target frequency"),
    ],
)
def test_what_cannot_be_computed(call, message):
    with pytest.raises(RequestError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
