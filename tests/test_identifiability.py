"""Identifiability: the procedure against enumeration, and the cases whose answer is known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from figures.identify import identify_files
from simulator.errors import RequestError
from theory.cones import cone_cosine, cosine_of, exact_epsilon, weights
from theory.counterexamples import FAMILIES
from theory.grouping import lower_bound, search
from theory.identifiability import compare
from theory.validation import unit_rows


def brute_force(V, rows):
    """Every map of rows to features or to nobody, without dynamic programming."""
    best = np.inf
    for owners in itertools.product(range(-1, len(V)), repeat=len(rows)):
        worst = 0.0
        for i, v in enumerate(V):
            part = rows[[j for j, owner in enumerate(owners) if owner == i]]
            worst = max(worst, 1 - (cosine_of(part, weights(part, v), v) if len(part) else 0.0))
        best = min(best, worst)
    return best


def test_enumeration_against_brute_force():
    rng = np.random.default_rng(0)
    for n, k, d in ((1, 3, 3), (2, 4, 3), (3, 4, 2), (2, 5, 4)):
        V, rows = unit_rows(rng.standard_normal((n, d))), unit_rows(rng.standard_normal((k, d)))
        assert exact_epsilon(V, rows) == pytest.approx(brute_force(V, rows), abs=1e-9)


def test_the_interval_contains_the_truth_and_is_mostly_closed():
    rng, closed, total = np.random.default_rng(1), 0, 0
    for _ in range(60):
        n, d = int(rng.integers(1, 5)), int(rng.integers(2, 6))
        k = int(rng.integers(n, 8))
        V, rows = unit_rows(rng.standard_normal((n, d))), unit_rows(rng.standard_normal((k, d)))
        truth, found = exact_epsilon(V, rows), search(V, rows)
        bound = lower_bound(V, rows, found.errors)
        assert bound.epsilon <= truth + 1e-8
        assert found.epsilon >= truth - 1e-8
        closed += found.epsilon - bound.epsilon < 1e-6
        total += 1
    assert closed / total > 0.75


def test_the_grouping_attains_what_is_claimed():
    rng = np.random.default_rng(2)
    V, rows = rng.standard_normal((6, 5)), rng.standard_normal((20, 5))
    told = compare(V, rows, draws=0).forward
    for i, v in enumerate(unit_rows(V)):
        part = told.group == i
        assert cosine_of(unit_rows(rows)[part], told.weights[part], v) == pytest.approx(told.cosines[i], abs=1e-9)
    assert told.eps_upper == pytest.approx(1 - told.cosines.min())


def test_the_case_that_nearest_cosines_get_wrong():
    """v1 = (r1 + r2) / 2 needs the row that lies nearest to v2; nearest cosine and NNLS reach 0.447."""
    v1, v2 = np.eye(4)[:2]
    told = compare(np.array([v1, v2]), np.array([v1 + 2 * v2, v1 - 2 * v2, v2]))
    assert told.forward.verdict == "equivalent"
    assert told.forward.eps_upper < 1e-9
    assert told.backward.verdict == "not equivalent"


def test_that_case_hidden_many_times():
    rng = np.random.default_rng(3)
    Q = np.linalg.qr(rng.standard_normal((64, 64)))[0][:32]
    rows = np.concatenate([Q[::2] + 2 * Q[1::2], Q[::2] - 2 * Q[1::2], Q[1::2]])
    rows = rng.permutation(rows + 1e-3 * rng.standard_normal(rows.shape))
    told = compare(Q, rows, draws=3).forward
    assert told.verdict == "equivalent"
    assert told.eps_upper < 1e-3


def test_splitting_is_allowed_and_merging_is_not():
    rng = np.random.default_rng(4)
    V = rng.standard_normal((20, 16))
    split = np.concatenate([V + 0.5 * V[::-1], V - 0.5 * V[::-1]])
    assert compare(V, split, draws=9).forward.verdict == "equivalent"
    merged = np.concatenate([V[:1] + V[1:2], V[2:], rng.standard_normal((1, 16))])
    told = compare(V, merged, draws=0).forward
    assert told.verdict == "not equivalent"
    assert told.eps_lower > 0.1


def test_fewer_rows_than_features_are_never_enough():
    told = compare(np.eye(3), np.eye(3)[:2], draws=0)
    assert told.forward.verdict == "not equivalent"
    assert told.forward.eps_lower == 1
    assert "empty" in told.forward.reason


def test_row_lengths_order_and_zero_rows_play_no_part():
    rng = np.random.default_rng(5)
    V, rows = rng.standard_normal((5, 6)), rng.standard_normal((9, 6))
    plain = compare(V, rows, draws=0).forward
    order = rng.permutation(9)
    scaled = np.concatenate([rows[order] * rng.uniform(0.1, 10, (9, 1)), np.zeros((2, 6))])
    again = compare(3 * V, scaled, draws=0).forward
    assert again.eps_upper == pytest.approx(plain.eps_upper, abs=1e-9)
    assert again.eps_lower == pytest.approx(plain.eps_lower, abs=1e-9)
    assert (again.group[-2:] == -1).all()


def test_a_random_dictionary_passes_when_it_is_large_and_is_not_called_equivalent():
    """Mean cosine at n = 64, d = 16: at least .77, .97 and 1.00 with 4 n, 16 n and 64 n random rows."""
    rng = np.random.default_rng(6)
    V = unit_rows(rng.standard_normal((64, 16)))
    for ratio, least in ((4, 0.75), (16, 0.97), (64, 0.999)):
        found = search(V, unit_rows(rng.standard_normal((64 * ratio, 16))))
        assert (1 - found.errors).mean() > least
    told = compare(V, rng.standard_normal((64 * 64, 16)), draws=5)
    assert told.forward.eps_upper < 0.05
    assert told.forward.verdict == "undecided"
    assert "independent dictionary" in told.forward.reason


def test_the_chance_quantile_is_the_smallest_of_99():
    rng = np.random.default_rng(7)
    V = rng.standard_normal((4, 4))
    chance = compare(V, rng.standard_normal((5, 4))).forward.chance
    assert (chance.draws, chance.method) == (99, "exact")
    assert chance.quantile <= chance.mean


def test_a_cone_bound_without_a_row_is_never_smaller():
    rng = np.random.default_rng(8)
    rows, v = unit_rows(rng.standard_normal((12, 6))), unit_rows(rng.standard_normal((1, 6)))[0]
    full, omega = cone_cosine(rows, v)
    assert full == pytest.approx(cosine_of(rows, weights(rows, v), v), abs=1e-9)
    for j in range(12):
        without = np.zeros(12, dtype=bool)
        without[j] = True
        less = cone_cosine(rows, v, without)[0]
        assert less <= full + 1e-9
        if omega[j] == 0:
            assert less == pytest.approx(full, abs=1e-7)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_counterexample_world_is_equivalent(name):
    family = FAMILIES[name]
    pair = family.build(family.values[0])
    told = compare(pair.V, pair.V_prime, draws=0)
    assert told.forward.verdict == "not equivalent"
    assert told.forward.eps_lower > 0.25


def test_with_coefficients_the_class_conditions_decide():
    pair = FAMILIES["H3"].build(FAMILIES["H3"].values[0])
    told = compare(pair.V, pair.V_prime, H=pair.H, H_prime=pair.H_prime, draws=0)
    assert told.difference is not None
    assert told.difference < 1e-12
    assert told.conditions[0] is not None
    assert not told.conditions[0].satisfied


def test_bad_input_is_refused_in_one_line():
    for V, rows, options in (
        (np.eye(3), np.eye(4), {}),
        (np.zeros((2, 3)), np.eye(3), {}),
        (np.eye(3), np.zeros((2, 3)), {}),
        (np.eye(3), np.eye(3), {"tolerance": 0.0}),
        (np.eye(3), np.eye(3), {"H": np.ones((4, 2))}),
        (np.array([[1.0, np.nan]]), np.eye(2), {}),
    ):
        with pytest.raises(RequestError) as caught:
            compare(V, rows, **options)
        assert "\n" not in str(caught.value)


def test_the_command_reads_files_and_writes_a_report(tmp_path):
    v1, v2 = np.eye(3)[:2]
    np.save(tmp_path / "V.npy", np.array([v1, v2]))
    np.save(tmp_path / "W.npy", np.array([v1 + 2 * v2, v1 - 2 * v2, v2]))
    options = SimpleNamespace(
        V=tmp_path / "V.npy", V_prime=tmp_path / "W.npy", H=None, H_prime=None, tolerance=0.05, draws=None, seed=0,
        out=tmp_path / "out",
    )  # fmt: skip
    result, text = identify_files(options)
    assert result["forward"]["verdict"] == "equivalent"
    assert result["backward"]["verdict"] == "not equivalent"
    assert "V' into V: equivalent" in text
    assert (tmp_path / "out" / "grouping.csv").exists()
