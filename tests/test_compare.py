"""The comparison: knobs, choice and matching against worked examples; the command from end to end at size tiny."""

import json

import numpy as np
import pandas as pd
import pytest

from figures.cli import main
from figures.compare import (
    SEARCHES,
    cell,
    digest,
    first_values,
    own_best,
    paired,
    question,
    summary,
)
from figures.contenders import CONTENDERS, VALIDATION_SEED, WORLDS, perfect_l0
from figures.run_options import Compare
from figures.sparsity_match import close, matched
from simulator import BA, GBA, RequestError, TopK


def trials(knobs, l0, **columns):
    rows = {"method": "L1", "knob": knobs, "mean_l0": l0, "frr_090": 0.0, "mean_feature_cosine": 0.5, "mcc": 0.1}
    return pd.DataFrame(rows | columns)


def test_matching_inverts_a_power_law_inside_and_outside():
    knobs = np.array([0.01, 0.03, 0.1])
    table = trials(knobs, 2.0 * knobs**-0.5)
    assert matched(table, 2.0 * 0.05**-0.5, 64) == pytest.approx(0.05)
    assert matched(table, 2.0 * 0.2**-0.5, 64) == pytest.approx(0.2)
    # Never further than four times the last value tried, or a quarter of the first.
    assert matched(table, 1e-3, 64) == pytest.approx(0.4)
    assert matched(table, 1e3, 64) == pytest.approx(0.0025)


def test_matching_where_little_is_known():
    assert matched(trials([0.1, 0.2], [np.nan, 3.0]), 5.0, 64) == pytest.approx(0.2)
    assert matched(trials([0.1, 0.2], [np.nan, np.nan]), 5.0, 64) == 0.1
    assert matched(trials([0.1, 0.2, 0.4], [3.0, 3.0, 3.0]), 5.0, 64) == pytest.approx(0.1)
    assert matched(trials([2.0, 4.0], [2.0, 4.0], method="TopK"), 2.9, 64) == 3  # TopK: L0 is k
    assert matched(trials([2.0, 4.0], [2.0, 4.0], method="TopK"), 0.2, 64) == 1
    assert matched(trials([0.3, 0.6], [1.0, 2.0], method="BA"), 10.0, 64) == 0.9  # a share


def test_matching_where_l0_turns_round():
    """L0 need not be monotone in the knob: a line through two trials must not lead away from the goal."""
    # A valley whose floor lies above the goal: the floor is the best there is, at an end or not.
    valley = trials([0.01, 0.02, 0.04, 0.06], [31.0, 14.0, 11.3, 13.7])
    assert matched(valley, 3.0, 64) == pytest.approx(0.04)
    assert matched(valley.iloc[2:], 3.0, 64) == pytest.approx(0.01)  # outward, downhill, a quarter
    # The last trial is the nearest, and L0 falls towards it: outward.
    assert matched(trials([0.1, 0.2, 0.4], [4.0, 16.0, 8.0]), 2.0, 64) == pytest.approx(0.1 / 2**0.5)
    # Two crossings: the one between trials that recover more.
    twice = trials([1.0, 2.0, 4.0, 8.0], [2.0, 8.0, 2.0, 1.0], frr_090=[0.1, 0.5, 0.6, 0.2])
    assert matched(twice, 4.0, 64) == pytest.approx(8**0.5)
    assert matched(twice.assign(frr_090=[0.6, 0.5, 0.1, 0.2]), 4.0, 64) == pytest.approx(2**0.5)


def test_matching_stays_near_what_was_tried_and_never_moves_away():
    """On 2,000 random curves: inside an enclosing pair, at most four times beyond an end, or the nearest trial."""
    rng = np.random.default_rng(0)
    for _ in range(2_000):
        knobs = np.sort(rng.uniform(0.01, 1, 5))
        l0, wanted = np.exp(rng.normal(1, 1, 5)), float(np.exp(rng.normal(1, 1)))
        value = matched(trials(knobs, l0), wanted, 64)
        gaps = np.log(l0 / wanted)
        encloses = (gaps.min() <= 0) and (gaps.max() >= 0)
        if encloses:
            pairs = np.flatnonzero(gaps[:-1] * gaps[1:] <= 0)
            assert any(knobs[k] * (1 - 1e-9) <= value <= knobs[k + 1] * (1 + 1e-9) for k in pairs)
        elif not knobs[0] <= value <= knobs[-1]:
            end = 0 if value < knobs[0] else 4
            assert np.abs(gaps).argmin() == end
            assert 0.25 * (1 - 1e-9) <= value / knobs[end] <= 4 * (1 + 1e-9)
        else:
            assert value == pytest.approx(knobs[np.abs(gaps).argmin()])


def test_close_means_within_a_tenth():
    assert close(trials([0.1, 0.2], [2.0, 4.3]), 4.0)
    assert not close(trials([0.1, 0.2], [2.0, 4.5]), 4.0)
    assert not close(trials([0.1], [0.0]), 4.0)
    assert not close(trials([0.1], [np.nan]), 4.0)


def test_own_best_breaks_ties_by_the_mean_cosine():
    table = trials([1.0, 2.0, 3.0], [1, 2, 3], frr_090=[0.5, 0.5, np.nan], mean_feature_cosine=[0.6, 0.7, 0.9])
    assert own_best(table, "frr") == 2.0
    assert own_best(table.assign(mcc=[0.3, 0.2, 0.1]), "mcc") == 1.0


def test_differences_are_taken_seed_by_seed():
    rows = [("GBA", 0, 0.1), ("GBA", 1, 0.9), ("TopK", 1, 0.8), ("TopK", 0, 0.02)]
    table = pd.DataFrame(rows, columns=["method", "seed", "frr_090"]).assign(world="mixture", M=8, point="best")
    found = paired(table).iloc[0]
    assert found["method"] == "TopK" and found["seeds"] == 2
    assert found["FRR 0.9 minus GBA's"] == pytest.approx(-0.09)
    # t(0.975, 1) sd / sqrt(2) with the differences -0.08 and -0.1; the means alone are 0.8 apart from seed to seed
    assert found["FRR 0.9 minus GBA's ±"] == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert paired(table[table["method"] == "GBA"]).empty


@pytest.mark.parametrize("world", list(WORLDS))
def test_every_method_gets_the_same_budget_and_its_own_number_of_trials(world):
    asked = question(Compare(worlds=(world,)))
    law = asked.world(world)
    for _, method, M in asked.entries():
        contender = CONTENDERS[method]
        values = first_values(asked, world, method, M)
        assert values == sorted(values)
        for best in values if not contender.pilot else ():
            more = contender.refined(values, best, M)
            # Five trials for everybody, but where a whole k or a limit leaves no others.
            assert len({*values, *more}) == len(values) + len(more) == 5 or contender.whole
            values = [*values, *more] if best == values[-1] else values
        for value in values:
            training = cell(asked, world, method, M, value, 0).training
            assert (training.steps, training.batch, training.neurons) == (600, 512, M)
            assert training.learning_rate == 5e-3
    assert perfect_l0(law, asked.budget.n) == pytest.approx(law.mean_active)
    assert perfect_l0(law, asked.budget.n // 4) < law.mean_active


def test_whole_knobs_differ():
    law = WORLDS["mixture"][1](256, 64)
    values = CONTENDERS["TopK"].values(law, 256, 5)
    assert len(set(values)) == 5
    assert [TopK(int(k)).k for k in values] == [2, 3, 4, 5, 6]


def test_second_round_looks_around_the_best_and_beyond_the_ends():
    contender = CONTENDERS["L1"]
    assert contender.refined([0.01, 0.04, 0.16], 0.04, 64) == [0.02, 0.08]
    assert contender.refined([0.01, 0.04, 0.16], 0.16, 64) == [0.08, 0.64]
    assert contender.refined([0.01, 0.04, 0.16], 0.01, 64) == [0.0025, 0.02]
    whole = CONTENDERS["TopK"]
    assert whole.refined([2.0, 4.0, 6.0], 4.0, 64) == [3, 5]
    assert whole.refined([1.0, 2.0, 3.0], 1.0, 64)[0] > 3  # nothing below, 2 is known
    assert whole.refined([1.0, 2.0, 3.0], 1.0, 3) == []
    # A share cannot leave the unit interval: something nearer takes its place.
    below, near = CONTENDERS["BA"].refined([0.1, 0.3, 0.9], 0.9, 64)
    assert 0.3 < below < 0.9
    assert 0.3 < near < 0.9


def test_methods_are_what_their_names_say():
    law = WORLDS["mixture"][1](256, 64)
    two_sided = CONTENDERS["GBA two-sided"].method(0.2, law, 256)
    assert isinstance(two_sided, GBA)
    assert (two_sided.htf, two_sided.ltf, type(two_sided.rule).__name__) == (0.2, 1e-3, "TwoSided")
    assert CONTENDERS["BA"].method(0.02, law, 256) == BA(0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worlds": ("mixtur",)}, "unknown world 'mixtur'"),
        ({"methods": ("GBA", "GBA")}, "twice"),
        ({"widths": (0.0,)}, "must give 1 to"),
        ({"widths": (float("nan"),)}, "width nan n must give"),
        ({"widths": (1.0, 1.001)}, "one width twice"),
        ({"seeds": (0, 0)}, "different"),
        ({"seeds": (VALIDATION_SEED,)}, "tuned on"),
    ],
)
def test_impossible_questions(options, message):
    with pytest.raises(RequestError, match=message):
        question(Compare(**options))


def test_digest_shows_a_matched_value_only_where_it_was_reached():
    base = {"world": "mixture", "M": 64, "seed": 0, "benchmark_mcc": 0.5, "seconds": 1.0, "knob": 1.0, "true L0": 4.0}
    table = pd.DataFrame(
        [
            base | {"method": "BA", "point": "best", "feature_frr_090": 0.9, "benchmark_l0": 8.0},
            base | {"method": "BA", "point": "matched L0", "feature_frr_090": 0.7, "benchmark_l0": 4.5},
            base | {"method": "L1", "point": "best", "feature_frr_090": 0.3, "benchmark_l0": 9.0},
            base | {"method": "L1", "point": "matched L0", "feature_frr_090": 0.2, "benchmark_l0": 6.0},
        ]
    )
    told = digest(summary(table)).set_index("method")
    assert told.loc["BA", "FRR at matched L0"] == 0.7
    assert np.isnan(told.loc["L1", "FRR at matched L0"])
    assert told.loc["L1", "FRR 0.9"] == 0.3


@pytest.fixture
def command(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *arguments])
        return stop.value.code, capsys.readouterr()

    return run


def test_the_search_for_a_sparsity_match_counts_for_nothing_else(tmp_path, command):
    arguments = ["--size", "tiny", "--worlds", "mixture", "--methods", "BA", "Gated", "--widths", "1", "--jobs", "1",
                 "--out", str(tmp_path)]  # fmt: skip
    code, _ = command(*arguments)
    folder = tmp_path / "figures" / "compare-tiny"
    assert code == 0
    tuning, table = pd.read_csv(folder / "tuning.csv"), pd.read_csv(folder / "table.csv")
    wanted = perfect_l0(question(Compare(size="tiny")).world("mixture"), 128)
    for method in ("BA", "Gated"):
        mine, found = tuning[tuning["method"] == method], table[table["method"] == method]
        first, later = mine[mine["round"] == "knob"], mine[mine["round"] == "L0"]
        assert len(first) == 2 + 2
        assert len(later) <= SEARCHES
        assert bool(len(later)) or close(first, wanted)
        assert (found[found["point"] == "best"]["knob"] == own_best(first, "frr")).all()
        aim = matched(mine, wanted, 128)
        assert found[found["point"] == "matched L0"]["knob"].to_numpy() == pytest.approx(aim, rel=1e-5)
    assert "L0" in set(tuning["round"])


def test_command_end_to_end(tmp_path, command):
    arguments = ["--size", "tiny", "--worlds", "mixture", "synth-sae-bench", "--methods", "GBA data-driven", "TopK",
                 "--widths", "0.5", "1", "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    code, told = command(*arguments, "--json")
    assert code == 0
    assert "cells to compute" in told.err
    result = json.loads(told.out)
    folder = tmp_path / "figures" / "compare-tiny"
    table = pd.read_csv(folder / "table.csv")
    # 2 worlds, 2 widths, 2 seeds; TopK at two points, the pilot at one.
    assert len(table) == 2 * 2 * 2 * (2 + 1)
    assert (table["samples"] == 1_000).all()
    # One thread even where a single job leaves cores idle: the numbers must not depend on --jobs.
    assert (table["threads"] == 1).all()
    piloted = table[table["method"] == "GBA data-driven"]
    assert (piloted["steps"] * 256 + piloted["pilot_samples"] == 40 * 256).all()
    assert len(pd.read_csv(folder / "tuning.csv")) == 2 * 2 * (2 + 2)
    bounds = pd.read_csv(folder / "bounds.csv").query("world == 'mixture'").set_index("row")
    assert float(bounds["FRR 0.9"]["true dictionary"]) == 1
    assert float(bounds["F1, all features"]["logistic probe"]) > 0.6
    assert len(result["rows"]) == 2 * 2 * (2 + 1)
    assert (folder / "compare.png").stat().st_size > 10_000
    # The same command computes nothing anew and says the same.
    before = {file: file.stat().st_mtime_ns for part in ("cells", "rows") for file in (tmp_path / part).rglob("*")}
    code, again = command(*arguments, "--json")
    assert (code, {**json.loads(again.out), "wall_seconds": 0}) == (0, {**result, "wall_seconds": 0})
    assert before == {f: f.stat().st_mtime_ns for part in ("cells", "rows") for f in (tmp_path / part).rglob("*")}
    # Another criterion under the same name is refused.
    code, told = command(*arguments, "--criterion", "mcc")
    assert code == 2
    assert "criterion" in told.err
