"""Algorithm 2, against a worked example and against a plain loop over neurons."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.adaptation import OneSided, TwoSided, adapt, group_bounds
from simulator.errors import RequestError


def test_worked_example():
    # Two groups of three neurons, gamma = 0.1, epsilon = 0.05.
    # Group 1, p = 0.5: r = (2, 1, 0), rbar = (2 + 1) / 2 = 1.5.
    #   m0: q = 0.6 > p        b = -0.1 - 0.1 * 2    = -0.3
    #   m1: q = 0.2 in between b = -0.4              = -0.4
    #   m2: q = 0.0 < epsilon  b = -0.5 + 0.1 * 1.5  = -0.35
    # Group 2, p = 0.1: r = (9, 0, 4), rbar = (9 + 4) / 2 = 6.5.
    #   m3: q = 0.2 > p        b = max(-0.5 - 0.9, -1) = -1
    #   m4: q = 0.0 < epsilon  b = min(-0.2 + 0.65, 0) = 0
    #   m5: q = 0.1 = p        unchanged (neither above the target nor below epsilon)
    b = torch.tensor([-0.1, -0.4, -0.5, -0.5, -0.2, -0.7], dtype=torch.float64)
    q = torch.tensor([0.6, 0.2, 0.0, 0.2, 0.0, 0.1], dtype=torch.float64)
    r = torch.tensor([2.0, 1.0, 0.0, 9.0, 0.0, 4.0], dtype=torch.float64)
    p = torch.tensor([0.5] * 3 + [0.1] * 3, dtype=torch.float64)
    new = adapt(b, q, r, p, [(0, 3), (3, 6)], OneSided(0.1, 0.1, 0.05))
    np.testing.assert_allclose(new, [-0.3, -0.4, -0.35, -1.0, 0.0, -0.7], atol=1e-15)
    # Two-sided: m1 lies below its target and is raised by 0.1 * 1.5 as well; m5 stays on its target.
    new = adapt(b, q, r, p, [(0, 3), (3, 6)], TwoSided(0.1, 0.1))
    np.testing.assert_allclose(new, [-0.3, -0.25, -0.35, -1.0, 0.0, -0.7], atol=1e-15)


def test_group_without_any_activation_stays():
    b = torch.tensor([-0.3, -0.2])
    zero = torch.zeros(2)
    assert torch.equal(adapt(b, zero, zero, torch.full((2,), 0.1), [(0, 2)], OneSided()), b)


def plain_loop(b, q, r, targets, groups, gamma_plus, gamma_minus, epsilon):
    new = list(b)
    for start, stop in groups:
        fired = [r[m] for m in range(start, stop) if r[m] > 0]
        mean = sum(fired) / len(fired) if fired else 0.0
        for m in range(start, stop):
            if q[m] > targets[m]:
                new[m] = max(b[m] - gamma_minus * r[m], -1.0)
            elif q[m] < epsilon:
                new[m] = min(b[m] + gamma_plus * mean, 0.0)
    return new


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-6, 0.3]),
    st.sampled_from([(0.01, 0.01), (0.5, 0.02), (3.0, 4.0)]),
)
def test_equals_a_plain_loop(M, K, seed, epsilon, gammas):
    K = min(K, M)
    draw = np.random.default_rng(seed)
    groups = group_bounds(M, K)
    sizes = [stop - start for start, stop in groups]
    targets = np.repeat(draw.uniform(0.01, 0.9, K), sizes)
    b = -draw.uniform(0, 1, M)
    q = np.where(draw.random(M) < 0.3, 0.0, draw.random(M))
    r = np.where(q > 0, draw.exponential(1.0, M), 0.0)
    new = adapt(*map(torch.from_numpy, (b, q, r, targets)), groups, OneSided(*gammas, epsilon))
    expected = plain_loop(b, q, r, targets, groups, *gammas, epsilon)
    # b and its step can cancel, so rounding is relative to them (here up to about 4), not to their sum.
    np.testing.assert_allclose(new, expected, rtol=1e-13, atol=1e-15 * (1 + max(gammas) * r.max()))
    assert ((new >= -1) & (new <= 0)).all()


@given(st.integers(1, 1000), st.integers(1, 50))
def test_groups_cover_all_neurons_in_nearly_equal_parts(M, K):
    K = min(K, M)
    bounds = group_bounds(M, K)
    assert [m for start, stop in bounds for m in range(start, stop)] == list(range(M))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rule", [lambda: OneSided(gamma_plus=0), lambda: TwoSided(gamma_minus=float("nan"))])
def test_impossible_rates_are_refused(rule):
    with pytest.raises(RequestError, match="gamma"):
        rule()
