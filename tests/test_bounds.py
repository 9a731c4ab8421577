"""Bounds: the numbers that the paper's map gives, and the monotonicity that the mathematics states."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from simulator.errors import RequestError
from theory import bounds, finite

HEAT = {"n": 65_536, "s": 3, "p": 8.2e-5}


def test_widths_at_a_cell_of_the_heat_map():
    """1.2e17 and 2e15 where 2.6e5 neurons were enough: sufficient is far from necessary."""
    power = bounds.log_width_power_form(HEAT["n"], HEAT["p"], HEAT["s"], 0.0)
    tail = bounds.log_width_exact_tail(HEAT["n"], HEAT["p"], HEAT["s"], 0.0, log_factor=False)
    assert math.exp(power) == pytest.approx(1.2e17, rel=0.02)
    assert math.exp(tail) == pytest.approx(2e15, rel=0.03)
    with_log = bounds.log_width_exact_tail(HEAT["n"], HEAT["p"], HEAT["s"], 0.0)
    assert with_log - tail == pytest.approx(math.log(math.log(65_536)))


def test_edges_of_the_map():
    f = 3 / 65_536
    assert bounds.frequency_upper_sparsity(65_536, 3) / f == pytest.approx(13.4, abs=0.05)
    assert math.sqrt(f) / f == pytest.approx(147.8, abs=0.1)
    assert bounds.light_superposition_border(65_536, 3) == pytest.approx(40.3, abs=0.1)
    assert bounds.light_superposition_border(65_536) == 256


@pytest.mark.parametrize(("n", "eps", "failure"), [(16, 0.142, 0.21), (32, 0.069, 0.38), (64, 0.004, 0.94)])
def test_the_corner_that_a_machine_can_reach(n, eps, failure):
    found = bounds.frequency_of_largest_epsilon(n, n, 3, 300_000, 0.5)
    assert found is not None
    assert found[1] == pytest.approx(eps, abs=6e-4)
    assert bounds.failure_probability(n, found[1]) == pytest.approx(failure, abs=0.01)
    assert (found[0] < 3 / n) == (n <= 32)
    grid = np.geomspace(1e-3, 0.4, 400)
    others = [bounds.largest_epsilon(n, n, 3, 300_000, float(p), 0.5) for p in grid]
    assert max(e for e in others if e is not None) <= found[1] + 1e-9


def test_for_two_active_features_the_interval_is_empty():
    for n in (16, 256, 65_536):
        band = bounds.frequency_band(n, n, 2, 0.01, 0.5)
        assert band.low > band.high
        assert band.binding == "interference"


def test_width_grows_with_eps_and_as_p_falls():
    for width in (bounds.log_width_power_form, bounds.log_width_exact_tail):
        assert np.all(np.diff([width(64, 0.05, 3, eps) for eps in (0.0, 0.1, 0.3, 0.6)]) > 0)
        assert np.all(np.diff([width(64, p, 3, 0.1) for p in (0.2, 0.1, 0.01, 1e-4)]) > 0)
    for p in (0.2, 0.05, 1e-3, 1e-5):
        assert bounds.log_width_exact_tail(64, p, 3, 0.1, log_factor=False) < bounds.log_width_power_form(64, p, 3, 0.1)


def test_frequency_bounds_move_as_stated():
    assert np.all(np.diff([bounds.frequency_upper_sparsity(5_000, s) for s in (1, 2, 5, 1000)]) > 0)
    assert np.all(np.diff([bounds.frequency_upper_interference(64, 3, eps) for eps in (0, 0.2, 0.8)]) < 0)
    assert np.all(np.diff([bounds.frequency_upper_dimension(64, d, 0.5) for d in (4, 16, 64)]) > 0)
    assert bounds.steps(0.5) == 2
    assert bounds.steps(0.34) == 3
    low, high = bounds.resonance_band_limit(0.01, 4)
    assert (low, high) == (0.01, 0.04)
    assert bounds.resonance_band_limit(0.01, 400)[1] == pytest.approx(0.1)


def test_largest_epsilon_meets_its_hypotheses_and_no_more():
    n, s, M, p = 16, 3, 300_000, 0.09
    eps = bounds.largest_epsilon(n, 16, s, M, p, 0.5)
    assert eps is not None
    slacks = [
        math.log(M) - bounds.log_width_power_form(n, p, s, eps),
        math.log(bounds.frequency_upper_interference(n, s, eps) / p),
    ]
    assert min(slacks) == pytest.approx(0, abs=1e-8)
    assert bounds.largest_epsilon(n, 16, s, 100, p, 0.5) is None
    tail = bounds.largest_epsilon(n, 16, s, M, p, 0.5, width="exact")
    assert tail is not None
    assert tail >= eps


def test_the_tail_is_never_above_the_power_form():
    """-log Phibar(sqrt(t)) is concave and positive at 0; equality only at s = 1, eps = 0, where both are n / p."""
    for p in (0.49, 0.3, 0.05, 1e-5, 1e-200):
        for s in (1, 2, 3, 10):
            for eps in (0.0, 0.2, 0.9):
                tail = bounds.log_width_exact_tail(64, p, s, eps, log_factor=False)
                gap = bounds.log_width_power_form(64, p, s, eps) - tail
                assert gap > 0 if (s, eps) != (1, 0.0) else gap == pytest.approx(0, abs=1e-9)
        assert bounds.log_width_exact_tail(64, p, 1, 0.0, log_factor=False) == pytest.approx(math.log(64 / p))


def test_noise_and_interference_are_where_the_bounds_come_from():
    """n p^{2s/(s+1)} is 1 at n^{-(1 + 1/s)/2}; beta sqrt(s) = 2 (1 + eps) sqrt(log n) near n^{-2 (1 + eps)^2 / s}."""
    for n, s in ((64, 3), (65_536, 2), (10**9, 7)):
        assert bounds.other_features_noise(n, s, bounds.frequency_upper_sparsity(n, s)) == pytest.approx(1)
    for n in (10**6, 10**12):
        p = bounds.frequency_upper_interference(n, 3, 0.1)
        # Phibar(beta) <= exp(-beta^2/2), so that the exact beta is a little smaller, by log(beta) / beta^2.
        gap = bounds.no_other_feature_slack(n, 3, p, 0.1)
        assert -(math.log(bounds.threshold(p)) + 1) / bounds.threshold(p) ** 2 < gap < 0
    assert bounds.co_occurrence_mass(64, 0.0625) == 0.5
    assert bounds.uniform_co_occurrence(65, 3) == 1 / 32


def test_steps_and_their_sigma_are_inverse():
    assert all(bounds.steps(bounds.smallest_sigma(T)) == T for T in range(1, 2_000))


def test_best_frequency_at_the_lower_edge():
    """n = 8, M = 3e5: width and interference alone would ask for p < 1/n; the best allowed p is 1/n itself, where
    n^{-1} = n^{-2 (1 + eps)^2 / 3} gives 1 + eps = sqrt(3/2)."""
    p, eps = bounds.frequency_of_largest_epsilon(8, 8, 3, 300_000, 0.0)
    assert (p, eps) == (0.125, pytest.approx(math.sqrt(1.5) - 1))
    grid = [bounds.largest_epsilon(8, 8, 3, 300_000, float(q), 0.0) for q in np.geomspace(0.125, 0.4, 200)]
    assert max(e for e in grid if e is not None) <= eps + 1e-9
    assert bounds.frequency_of_largest_epsilon(64, 60, 2, 10**9, 0.1) is None


def _normal(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_finite_pieces_against_quadrature():
    p, s = 0.03, 3
    beta, spread = bounds.threshold(p), math.sqrt(2 / 3)
    mean = quad(lambda z: 2 * (0.7 + spread * z) * _normal(z), (beta - 0.7) / spread, 12)[0]
    assert finite.activation_mean(0.7, p, s) == pytest.approx(mean, rel=1e-9)
    assert finite.self_gain(p) == pytest.approx(quad(lambda z: 2 * z * z * _normal(z), beta, 12)[0], rel=1e-9)
    assert finite.feature_gain(2.0, 64, 3, p) == pytest.approx(
        3 / 64 / math.sqrt(3) * finite.activation_mean(2 / math.sqrt(3), p, 3)
    )


def test_interference_ceiling_and_mean_direction():
    ceilings = [finite.interference_ceiling(n, 3) for n in (16, 32, 64)]
    np.testing.assert_allclose(ceilings, [0.889, 0.941, 0.970], atol=6e-4)
    rng = np.random.default_rng(0)
    norms = [np.linalg.norm(rng.standard_normal((64, 32)).sum(axis=0) / 64 * math.sqrt(3)) for _ in range(200)]
    assert np.mean(norms) == pytest.approx(finite.mean_direction_norm(64, 32, 3), rel=0.05)


def test_growth_falls_with_n_and_grows_with_d():
    assert finite.growth(3, 64, 32, 3, 0.03) > finite.growth(3, 128, 32, 3, 0.03)
    assert finite.growth(3, 64, 48, 3, 0.03) > finite.growth(3, 64, 32, 3, 0.03)
    assert bounds.other_features_noise(64, 3, 1e-4) < 1 < bounds.other_features_noise(64, 3, 0.2)


def test_untrained_share_matches_random_directions():
    """50 draws of 64 features and 500 neurons: a share off by 0.02 would be 4 standard deviations away."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(50):
        V, W = rng.standard_normal((64, 6)), rng.standard_normal((500, 6))
        cosine = (V / np.linalg.norm(V, axis=1)[:, None]) @ (W / np.linalg.norm(W, axis=1)[:, None]).T
        found.append((cosine.max(axis=1) > 0.9).mean())
    assert np.mean(found) == pytest.approx(finite.untrained_share(6, 500, 0.9), abs=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bounds.threshold(0.6), lambda: bounds.log_width_power_form(64, 0.1, 3, 1.0),
        lambda: bounds.frequency_upper_sparsity(2, 3), lambda: bounds.steps(0.0),
        lambda: bounds.resonance_band_limit(0, 4),
    ],
)  # fmt: skip
def test_impossible_arguments_are_refused(call):
    with pytest.raises(RequestError):
        call()
