"""Proxies: exact where the answer is known, blind to what must not matter, refusing noise; and their figure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from figures.experiments import run_experiment
from figures.proxies import EXPERIMENT, SETS, correlation, interval, worlds
from figures.runner import write_figure
from llm_bridge.proxies import CALIBRATION, NAMES, TRUSTED, activities, most_together, proxies, select_features, trusted
from simulator import Exactly, Orthonormal, RequestError, World
from theory.conditions import measure
from theory.consistency import max_cosines
from theory.theorems import THEOREMS, Case


@pytest.fixture(scope="module")
def exact():
    """Orthonormal V, unit rows of H with 2 of 8 features each: W = V and codes = H are a perfect autoencoder."""
    world = World(8, 12, Exactly(2), Orthonormal())
    return world.sample(2_000, 0, dtype=np.float64)


def test_a_perfect_autoencoder_gives_the_truth(exact):
    found = proxies(exact.V, exact.H, np.ones(8), mean=exact.X.mean(axis=0))
    law = measure(exact.H, exact.V)
    assert (found.n, found.d, found.M) == (8, 12, 8)
    assert found.s == pytest.approx(2)
    assert found.s_upper == pytest.approx(2)
    assert found.coverage == pytest.approx(1)
    frequencies = np.bincount(exact.H.indices, minlength=8) / 2_000
    np.testing.assert_array_equal(found.frequencies, np.sort(frequencies)[::-1])
    assert found.rho_2 == pytest.approx(law.H3.measured)
    assert found.coherence_max < 1e-7  # activities are float32
    values = found.values()
    assert values["f_median"] == np.median(frequencies)
    assert values["f_high"] == frequencies.max()
    assert values["htf"] == 0.5  # twice 1/4 and some
    assert values["H3"] == pytest.approx(law.H3.slack)
    assert values["H1"] == pytest.approx(law.H1.slack)
    hypotheses = THEOREMS.recovery.hypotheses(Case(8, 12, 2, 8, float(np.median(frequencies))))
    assert values["width"] == pytest.approx(hypotheses[0].slack)
    assert values["recovery"] == pytest.approx(min(one.slack for one in hypotheses))
    assert not any(slack.exact for slack in found.slacks().values())
    asked = proxies(exact.V, exact.H, np.ones(8), p=0.01)
    assert asked.case().p == 0.01


def test_sparsity_survives_missed_features(exact):
    """Half of the features unknown: n and the coverage halve, s stays (sampling error of the share: 0.01)."""
    found = proxies(exact.V[:4], exact.H[:, :4], np.ones(4))
    assert found.n == 4
    assert found.coverage == pytest.approx(0.5, abs=0.03)
    assert found.s == pytest.approx(2)


def test_copies_mixtures_and_dead_neurons_do_not_count(exact):
    """The mixture v_1 + v_2 fires where both do, with their sum / sqrt 2; an unstable neuron has a low MCS."""
    V, H = exact.V, exact.H.toarray()
    both = (H[:, 0] > 0) & (H[:, 1] > 0)
    W = np.vstack([V, 3 * V[2], V[0] + V[1], V[3] + V[4], np.zeros((1, 12)), V[5] - V[6]])
    codes = np.column_stack(
        [
            H,
            0.9 * H[:, 2] * (H[:, 2] > 0.5),
            both * (H[:, 0] + H[:, 1]) / np.sqrt(2),
            np.zeros(len(H)),
            H[:, 1],
            H[:, 0],
        ]
    )
    mcs = np.append(np.ones(12), 0.5)
    chosen = select_features(W, sparse.csr_array(codes), mcs)
    assert sorted(chosen.tolist()) == list(range(8))
    assert proxies(W, sparse.csr_array(codes), mcs).n == 8
    by_score = select_features(W, sparse.csr_array(codes), mcs, np.where(np.arange(13) == 8, 9.0, 1.0))
    assert by_score[0] == 8  # the copy is preferred, and its original merged
    assert 2 not in by_score


def test_an_untrained_network_has_no_features():
    draw = np.random.default_rng(0)
    W, other, X = draw.standard_normal((256, 32)), draw.standard_normal((256, 32)), draw.standard_normal((500, 32))
    z = X @ (W / np.linalg.norm(W, axis=1)[:, None]).T
    codes = sparse.csr_array(np.where(z > 1.5, z, 0))
    assert len(select_features(W, codes, max_cosines(W, other))) == 0
    with pytest.raises(RequestError, match="0 of 256 neurons"):
        proxies(W, codes, max_cosines(W, other))


def planted(seed: int = 3):
    """Codes as a network with W = V has them: projections, with interference, above a threshold."""
    world = World(40, 30, Exactly(3))
    drawn = world.sample(1_500, seed, dtype=np.float64)
    V = drawn.V / np.linalg.norm(drawn.V, axis=1)[:, None]
    X = drawn.X / np.linalg.norm(drawn.X, axis=1)[:, None]
    z = X @ V.T
    return V, sparse.csr_array(np.where(z > 0.25, z, 0)), X, drawn.H


def test_order_and_length_of_the_neurons_do_not_matter():
    V, codes, X, _ = planted()
    mcs = np.linspace(0.85, 1, 40)
    first = proxies(V, codes, mcs, mean=X.mean(axis=0)).values()
    order = np.random.default_rng(1).permutation(40)
    scaled = V[order] * np.linspace(0.1, 50, 40)[:, None]
    again = proxies(scaled, sparse.csr_array(codes[:, order]), mcs[order], mean=X.mean(axis=0)).values()
    for name, value in first.items():
        # Equal frequencies may be merged in another order; the rest is rounding.
        assert again[name] == pytest.approx(value, rel=1e-3), name


def test_pursuit_takes_interference_off():
    """Most false activities go, hardly a true one does."""
    V, codes, _, H = planted()
    clean = activities(codes, V)
    true = H.toarray() > 0
    before, after = codes.toarray() > 0, clean.toarray() > 0
    assert (after & ~true).sum() < 0.5 * (before & ~true).sum()
    assert (after & true).sum() > 0.95 * (before & true).sum()
    assert clean.shape == codes.shape


def test_co_occurrence_by_hand():
    H = sparse.csr_array(np.array([[1.0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 2]]))
    np.testing.assert_array_equal(most_together(H), [2, 2, 1])


def test_rows_grey_what_was_not_followed(exact):
    assert set(CALIBRATION) == set(NAMES)
    assert list(proxies(exact.V, exact.H, np.ones(8)).values()) == list(NAMES)
    rows = proxies(exact.V, exact.H, np.ones(8), mean=exact.X.mean(axis=0)).rows()
    for name, row in zip(NAMES, rows, strict=True):
        assert (row.quantity, row.correlation) == (NAMES[name], CALIBRATION[name])
        assert -1 <= row.correlation <= 1
        assert trusted(name) == (row.correlation >= TRUSTED)
        assert row.note == (
            "trusted" if row.correlation >= TRUSTED else f"greyed: rank correlation {row.correlation:.2f}"
        )
    slacks = [row.quantity for row in rows if row.slack is not None]
    assert slacks == [NAMES[name] for name in tuple(NAMES)[13:]]
    alone = proxies(exact.V, exact.H).rows()
    assert all(row.note.startswith("greyed: no second seed") for row in alone)
    without = proxies(exact.V, exact.H, np.ones(8)).rows()
    assert [row.quantity for row in without if "mean" in row.note] == [
        NAMES[name] for name in NAMES if name.startswith(("coherence", "V1"))
    ]


def test_no_firm_feature_leaves_pairs_open(exact):
    """MCS between 0.8 and 0.9 everywhere: there is an n, but nothing is said about pairs."""
    found = proxies(exact.V, exact.H, np.full(8, 0.85))
    assert found.n == 8
    assert np.isnan([found.rho_2, found.co_occurrence, found.coherence_max, found.values()["H3"]]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"W": np.ones((7, 12))}, "columns where 7"),
        ({"W": np.full((8, 12), np.nan)}, "finite"),
        ({"mcs": np.ones(5)}, "mcs has shape"),
        ({"mcs": np.zeros(8)}, "0 of 8 neurons"),
        ({"z_score": np.ones(3)}, "z_score"),
        ({"mean": np.ones(3)}, "mean"),
        ({"codes": sparse.csr_array(-np.ones((5, 8)))}, "negative"),
        ({"energy": 0.0}, "energy"),
        ({"p": 0.7}, "target frequency"),
    ],
)
def test_bad_input(exact, change, words):
    given = {"W": exact.V, "codes": exact.H, "mcs": np.ones(8)} | change
    with pytest.raises(RequestError, match=words) as caught:
        proxies(**given)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_proxy():
    with pytest.raises(RequestError, match="there are n, s"):
        trusted("sparsity")


def test_worlds_of_the_two_sets_differ_and_vary():
    tuning, held = (worlds(chosen) for chosen in SETS)
    assert (len(tuning), len(held)) == (24, 30)
    assert not {world for _, world, _ in tuning} & {world for _, world, _ in held}
    for found in (tuning, held):
        n = np.array([world.n for _, world, _ in found])
        s = np.array([world.mean_active for _, world, _ in found])
        assert n.max() > 5 * n.min()
        assert s.max() >= 5 * s.min()
        assert abs(np.corrcoef(np.log(n), [M for *_, M in found])[0, 1]) < 0.5  # the width tells nothing about n


def test_correlation_by_hand():
    part = pd.DataFrame({"estimate": [1.0, 2, 4, np.nan], "truth": [10.0, 30, 20, 5]})
    assert correlation(part) == pytest.approx(0.5)
    low, high = interval(part)
    assert -1 <= low <= 0.5 <= high <= 1
    assert np.isnan(correlation(part[:2]))
    assert np.isnan(interval(part[:2])).all()


@pytest.mark.slow
def test_figure_runs_and_draws(tmp_path):
    table, _ = run_experiment(EXPERIMENT, tmp_path / "f", size="tiny", jobs=1, store=tmp_path)
    assert set(table["proxy"]) == set(NAMES)
    assert table["set"].unique().tolist() == ["held out"]
    assert len(table) == 3 * len(NAMES)
    short = write_figure(EXPERIMENT, table, tmp_path / "f", "proxies")
    assert short["proxy"].tolist() == list(NAMES.values())
    assert (tmp_path / "f" / "proxies.png").stat().st_size > 10_000


def test_figure_where_nothing_was_learned(tmp_path):
    """Untrained networks have no consistent neurons: no estimate, and the picture says so with empty panels."""
    cells = EXPERIMENT.cells((0, 1), "tiny")[:2]
    untrained = [(label, replace(cell, training=replace(cell.training, steps=0), samples=500)) for label, cell in cells]
    some = replace(EXPERIMENT, cells=lambda seeds, size: untrained)
    table, _ = run_experiment(some, tmp_path / "f", size="tiny", jobs=1, store=tmp_path)
    assert table["estimate"].isna().all()
    assert table["truth"].notna().all()
    short = write_figure(some, table, tmp_path / "f", "proxies")
    assert (short["no estimate"] == 1).all()
    assert not short["trusted"].any()


def test_too_little_energy_is_greyed():
    """Two of twenty features found: a tenth of the energy, less than any planted world had."""
    W, codes = np.eye(20), sparse.csr_array(np.eye(20)[np.arange(2_000) % 20])
    found = proxies(W, codes, mcs=np.where(np.arange(20) < 2, 1.0, 0.0), mean=np.full(20, 0.05))
    assert found.coverage == pytest.approx(0.1)
    assert all("carry 10% of the energy" in row.note for row in found.rows())
    whole = proxies(W, codes, mcs=np.ones(20), mean=np.full(20, 0.05))
    assert not any("carry" in row.note for row in whole.rows())
