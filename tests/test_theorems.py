"""Theorems: quadrants, controls that must behave, and a wrong bound that real runs must catch."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from figures.options import TheoremOptions
from figures.theorem import Run, compute, facts, run_theorem, theorem_report, wrong_by
from simulator import BA
from simulator.errors import RequestError
from simulator.modified import ModifiedBA
from theory.evidence import assess
from theory.one_step import missed_share
from theory.theorems import THEOREMS, Case, quadrant, recovery_epsilon

FINITE = Case(40, 36, 2, 16_384, 0.02, 1.0, 0.75, 0.3)
SEEDS = 16


def outcomes(case, control="none", theorem="finite-recovery"):
    return [facts(compute(Run(theorem, case, seed, True, control)), case.tau) for seed in range(SEEDS)]


def judged(theorem, case, found):
    failures = sum(row["smallest cosine"] <= case.tau for row in found)
    evidence = assess(len(found), failures, theorem.promise(case))
    return theorem.judge(case, evidence, float(np.mean([row["untrained"] for row in found])))


def test_the_four_quadrants():
    assert quadrant(True, True) == "confirmed"
    assert quadrant(True, False) == "counterexample"
    assert quadrant(False, True) == "beyond"
    assert quadrant(False, False) == "outside"
    assert quadrant(True, None) == "undecided"


def test_the_finite_size_statement_has_a_confirmed_cell_that_is_not_vacuous():
    verdict = judged(THEOREMS.finite_recovery, FINITE, outcomes(FINITE))
    assert verdict.quadrant == "confirmed"
    assert not verdict.vacuous
    assert verdict.slack > 0


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("oracle", "confirmed"), ("permuted", "confirmed"), ("independent", "counterexample"),
        ("untrained", "counterexample"), ("frozen", "counterexample"),
    ],
)  # fmt: skip
def test_controls_behave(control, expected):
    """Dictionaries that were not learned: only the true one, in any order, may be confirmed."""
    assert judged(THEOREMS.finite_recovery, FINITE, outcomes(FINITE, control)).quadrant == expected


def test_a_permuted_dictionary_is_the_oracle():
    assert compute(Run("recovery", FINITE, 3, True, "oracle")) == compute(Run("recovery", FINITE, 3, True, "permuted"))


def test_a_bound_wrong_by_a_hundred_is_caught_by_real_runs():
    case = replace(FINITE, p=0.3)
    wrong = wrong_by(THEOREMS.finite_recovery, 100.0)
    found = outcomes(case)
    assert min(slack.slack for slack in wrong.hypotheses(case)) > 0
    assert judged(wrong, case, found).quadrant == "counterexample"
    assert judged(THEOREMS.finite_recovery, case, found).quadrant == "outside"


def test_missed_share_is_what_runs_miss():
    """20 dictionaries of 40 features, predicted and measured number of missed features: within 5 Poisson deviations."""
    case = replace(FINITE, M=2_000, p=0.05, tau=0.9)
    predicted = 40 * missed_share(case.n, case.d, case.s, case.M, case.p, case.tau)
    runs = [facts(compute(Run("finite-recovery", case, seed)), case.tau) for seed in range(20)]
    found = [round((1 - run["recovered"]) * 40) for run in runs]
    assert 0.5 < predicted < 20
    assert abs(np.mean(found) - predicted) < 5 * math.sqrt(predicted / 20) + 0.3 * predicted


def test_missed_share_moves_as_it_must():
    base = {"n": 24, "d": 20, "s": 2, "M": 2_000, "p": 0.03, "tau": 0.8}
    reference = missed_share(**base)
    assert missed_share(**{**base, "M": 20_000}) < reference
    assert missed_share(**{**base, "tau": 0.7}) < reference
    assert missed_share(**{**base, "tau": 0.95}) > reference
    assert missed_share(**{**base, "p": 0.4}) > reference
    with pytest.raises(RequestError):
        missed_share(**{**base, "n": 2_000})


def test_recovery_slacks_and_epsilon():
    case = Case(16, 15, 3, 300_000, 0.0896)
    assert all(slack.slack > 0 for slack in THEOREMS.recovery.hypotheses(case))
    eps = recovery_epsilon(case)
    assert eps == pytest.approx(0.142, abs=1e-3)
    assert THEOREMS.recovery.promise(case) == pytest.approx(16 ** (-4 * eps))
    outside = replace(case, p=0.3)
    assert min(slack.slack for slack in THEOREMS.recovery.hypotheses(outside)) < 0
    assert THEOREMS.recovery.promise(outside) == 1
    assert recovery_epsilon(outside) is None


def test_a_promise_above_one_half_is_vacuous():
    case = Case(64, 60, 3, 300_000, 0.0611)
    verdict = THEOREMS.recovery.judge(case, assess(10, 0, THEOREMS.recovery.promise(case)), 0.0)
    assert verdict.vacuous
    assert THEOREMS.finite_recovery.judge(FINITE, assess(10, 0, 0.3), 0.6).vacuous


def test_the_resonance_band_is_a_conjecture_with_slack():
    case = Case(256, 48, 3, 1_024, 2 * 3 / 256)
    lower, upper = THEOREMS.resonance.hypotheses(case)
    assert lower.slack == pytest.approx(math.log(2))
    assert upper.slack == pytest.approx(math.log(math.sqrt(3 / 256) / case.p))
    assert "conjecture" in THEOREMS.resonance.status


def test_a_theorem_refuses_another_method():
    THEOREMS.recovery.refuse_other(ModifiedBA(0.1, 10))
    with pytest.raises(RequestError, match="Modified BA"):
        THEOREMS.recovery.refuse_other(BA(0.1))


def test_unknown_names_are_refused():
    with pytest.raises(RequestError):
        THEOREMS["fermat"]
    with pytest.raises(RequestError):
        run_theorem("identifiability", SimpleNamespace())


def test_runs_are_kept_and_found_again(tmp_path):
    case = Case(10, 8, 2, 200, 0.1, 1.0, 0.8)
    table, _ = run_theorem("finite-recovery", tmp_path, seeds=3, jobs=1, cases=[case])
    before = sorted(file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir())
    more, _ = run_theorem("finite-recovery", tmp_path, seeds=4, jobs=1, cases=[case])
    after = sorted(file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir())
    assert after[:3] == before
    damaged = next((tmp_path / "runs").iterdir())
    damaged.write_text("junk")
    again, _ = run_theorem("finite-recovery", tmp_path, seeds=4, jobs=1, cases=[case])
    assert again["recovered"][0] == more["recovered"][0]
    assert (table["runs"][0], more["runs"][0]) == (3, 4)


def test_identifiability_on_every_family():
    options = SimpleNamespace(name="identifiability", size="tiny", out=None, n=None)
    result, text = theorem_report(options)
    assert {row["violates"] for row in result["rows"]} == {"H1", "H2", "H3", "V1"}
    for row in result["rows"]:
        assert row["verdict"] == "outside"
        assert row["eps lower"] > 0.05
        assert row[row["violates"]] <= -math.log(2) + 1e-12
    assert "H1" in text


def test_a_world_of_your_own(tmp_path):
    options = TheoremOptions(
        "finite-recovery", n=10, d=8, s=2, neurons=300, p=0.1, tau=0.8, seeds=3, jobs=1, out=tmp_path
    )
    result, _ = theorem_report(options)
    assert [row["n"] for row in result["rows"]] == [10]
    told, text = theorem_report(TheoremOptions("identifiability", n=512, d=256))
    assert told["satisfied"]
    assert "All four hold: yes" in text
    assert not theorem_report(TheoremOptions("identifiability", n=64, d=8))[0]["satisfied"]
    with pytest.raises(RequestError):
        theorem_report(TheoremOptions("recovery", n=10))
