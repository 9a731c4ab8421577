"""The counterexamples: exact factorisations, one slack that moves, and a direction that cannot be built."""

import math

import numpy as np
import pytest
from scipy.optimize import nnls

from simulator import RequestError
from theory.counterexamples import FAMILIES, violating_H1, violating_H2, violating_H3, violating_V1

EVERY = [(name, dial) for name, family in FAMILIES.items() for dial in family.values]


@pytest.mark.parametrize(("name", "dial"), EVERY)
def test_both_factorisations_are_exact_and_proper(name, dial):
    pair = FAMILIES[name].build(dial)
    X, X_prime = pair.H @ pair.V, pair.H_prime @ pair.V_prime
    assert (np.linalg.norm(X - X_prime, axis=1) <= 1e-12 * np.linalg.norm(X, axis=1)).all()
    assert (pair.condition, pair.dial) == (name, dial) and pair.V.shape == pair.V_prime.shape
    for H in (pair.H, pair.H_prime):
        assert H.data.min() >= 1e-6
        assert np.bincount(H.indices, minlength=H.shape[1]).min() >= 20


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dial_moves_one_slack_through_zero_and_no_other(name):
    family = FAMILIES[name]
    sides = [family.build(dial).conditions() for dial in family.values]
    moved = np.array([[getattr(side, name).slack for side in pair] for pair in sides])
    others = [[c.slack for side in pair for c in side if c.name != name] for pair in sides]
    assert all(row == others[0] for row in others), "not one bit may move"
    assert min(others[0]) >= math.log(2)
    assert moved[0].min() <= -math.log(2) and moved[-1].min() > 0
    assert (np.diff(moved, axis=0) > 0).all()


def test_slack_along_each_dial_is_the_formula():
    for name, formula in {
        "H1": lambda k: math.log(10 / k),
        "H2": lambda delta: math.log(delta / 0.1),
        "H3": lambda rho: -math.log(2 * math.sqrt(11) * rho),
        "V1": lambda cosine: -math.log(2 * cosine),
    }.items():
        for dial in FAMILIES[name].values:
            for side in FAMILIES[name].build(dial).conditions():
                assert getattr(side, name).slack == pytest.approx(formula(dial), abs=1e-11)


def need(target: np.ndarray, rows: np.ndarray) -> float:
    """1 - the largest cosine of a unit vector with the cone of the rows (0 for the zero combination)."""
    weights, _ = nnls(rows.T, target)
    length = np.linalg.norm(weights @ rows)
    return 1 - target @ (weights @ rows) / length if length > 1e-9 else 1.0


def certified(V: np.ndarray, V_prime: np.ndarray, size: int) -> float:
    """Lower bound of epsilon for building V from V': each v_i of the block (rows 0..size-1) loses need_i unless it
    has row i of V'; if all have, the composite (last row of V) must do with the others."""
    own = min(need(V[i], np.delete(V_prime, i, axis=0)) for i in range(size))
    return min(own, need(V[-1], V_prime[size:]))


@pytest.mark.parametrize("name", ["H1", "H3", "V1"])
@pytest.mark.parametrize("which", [0, -1])
def test_the_composite_cannot_be_built(name, which):
    """Both ways, at both ends of the dial; the second block needs its rows turned round."""
    pair = FAMILIES[name].build(FAMILIES[name].values[which])
    block = {"H1": 64, "H3": 5, "V1": 5}[name]
    size = int(pair.dial) if name == "H1" else 5
    for i in range(size):
        assert np.array_equal(pair.V[i], pair.V_prime[i])
    assert certified(pair.V, pair.V_prime, size) > 0.99
    order = [*range(block, 2 * block), *range(block), *range(2 * block, len(pair.V))]
    assert certified(pair.V_prime[order], pair.V[order], size) > 0.99


@pytest.mark.parametrize("dial", [0.025, 0.2])
def test_two_features_need_one_row_in_the_h2_family(dial):
    """e_1 and e_2 of the plain copy both need e_1 + e_2; whichever goes without has cosine <= 1 / sqrt 2."""
    pair = violating_H2(dial)
    for target, rows, start, end in ((pair.V, pair.V_prime, 144, 144), (pair.V_prime, pair.V, 289, 290)):
        first, last = target[start], target[start + 1]
        assert first @ rows[end] == last @ rows[end] == 1.0
        without = np.delete(rows, end, axis=0)
        assert min(need(first, without), need(last, without)) >= 1 - 1 / math.sqrt(2) - 1e-9


def test_the_surrogates_one_by_one_do_not_exclude_the_alternatives():
    """All four slacks positive: composites with s max |cos| = 1, and the H2 family even with 0.4."""
    for pair, joint in ((violating_H3(0.05), 1.0), (violating_H1(8), 1.0), (violating_H2(0.2), 0.4)):
        for side in pair.conditions():
            assert side.satisfied and side.joint.measured == pytest.approx(joint, abs=1e-11)


def test_composites_have_the_cosines_they_claim():
    for k in (8, 20, 64):
        pair = violating_H1(k)
        assert pair.V[:k] @ pair.V[-1] == pytest.approx(np.full(k, 1 / 8))
        assert np.linalg.norm(pair.V, axis=1) == pytest.approx(np.ones(129))
    parallel = violating_V1(1.0)
    assert np.array_equal(parallel.V[-1], parallel.V[0])


@pytest.mark.parametrize(
    ("build", "dial"),
    [(violating_H1, 7), (violating_H1, 65), (violating_H2, 0.3), (violating_H3, 0.01), (violating_V1, 1.01)],
)
def test_a_dial_outside_its_range(build, dial):
    with pytest.raises(RequestError, match="dial of"):
        build(dial)
