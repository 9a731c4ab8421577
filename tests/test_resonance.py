"""The resonance predictor: limits that the mathematics states, and its honesty about what was fitted."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, poisson

from simulator.errors import RequestError
from theory.resonance import CONSTANTS, Rectangle, Setting, fit_rectangle, held_activations, predict

BASE = Setting(512, 64, 3, 2048, 1.5 * 3 / 512)


def test_at_high_targets_recovery_falls_with_p():
    settings = [replace(BASE, p=relative * 3 / 512) for relative in (1.5, 3, 5, 8, 12, 20)]
    recovered = predict(settings).recovered
    assert (np.diff(recovered) <= 1e-6).all()
    assert recovered[0] > 0.95
    assert recovered[-1] < 0.01


def test_more_dimensions_help():
    recovered = predict([replace(BASE, d=d) for d in (12, 20, 32, 64)]).recovered
    assert (np.diff(recovered) > 0).all()


def test_without_overcompleteness_the_energy_of_others_matters_less():
    few, many = predict([replace(BASE, M=M, p=8 * 3 / 512) for M in (512, 8192)]).cosine
    assert few > many


def test_a_lower_threshold_is_never_harder():
    settings = [replace(BASE, p=relative * 3 / 512, d=d) for relative in (0.3, 2, 6) for d in (16, 48)]
    assert (predict(settings, 0.8).recovered >= predict(settings, 0.9).recovered - 1e-12).all()


def test_count_balance_holds_the_one_sided_frequency_below_the_target():
    """P(Pois(l) > 3) = P(Pois(l) = 0) at l = 1.98: with p B = 3.5 the total frequency ends near 1.98 / B."""
    setting = replace(BASE, p=3.5 / 512, buffer=512, adaptations=20_000)
    told = predict([setting])
    held = 512 * (3 / 512 * told.own[0] + told.spurious[0])
    assert held == pytest.approx(1.98, abs=0.1)


def test_roots_of_the_count_balance():
    """0.69 = log 2 and so on, read in the paper's notes for floor(p B) = 0 .. 5."""
    roots = [held_activations(count) for count in (0.3, 1, 2.9, 3, 4.5, 5)]
    np.testing.assert_allclose(roots, [0.69, 1.15, 1.57, 1.98, 2.38, 2.77], atol=0.006)
    for count in (10, 60, 425):
        root = held_activations(count)
        tail = np.logaddexp.reduce(poisson.logpmf(np.arange(count + 1, count + 800), root))
        assert tail == pytest.approx(-root, rel=1e-6)
    assert 0 < held_activations(5_000) < 5_000


def test_the_two_sided_rule_holds_a_large_buffer_at_its_target():
    setting = replace(BASE, p=2 * 3 / 512, buffer=10**6, adaptations=500, rule="two-sided")
    told = predict([setting])
    assert 3 / 512 * told.own[0] + told.spurious[0] == pytest.approx(setting.p, rel=0.05)


def test_where_no_neuron_can_hold_a_feature_chance_is_left():
    setting = Setting(512, 8, 3, 2048, 0.4)
    told = predict([setting], 0.8)
    by_chance = 1 - (1 - beta.sf(0.64, 0.5, 3.5) / 2) ** 2048
    assert told.recovered[0] == pytest.approx(by_chance, abs=0.05)


def test_a_batch_of_settings_is_each_of_them():
    settings = [BASE, replace(BASE, d=20, rule="two-sided"), replace(BASE, n=64, M=64, s=2, p=0.1)]
    together = predict(settings).recovered
    alone = [predict([setting]).recovered[0] for setting in settings]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_every_constant_names_its_origin():
    assert all(constant.origin for constant in CONSTANTS.values())
    assert sum("fitted" in constant.origin for constant in CONSTANTS.values()) == 7


def test_rectangle_is_found_again():
    settings = [replace(BASE, p=r * 3 / 512, d=3 * d) for r in (0.5, 1, 2, 4, 8) for d in (5, 10, 20, 40)]
    truth = Rectangle(0.7, 5.0, 14.0)
    found = fit_rectangle(settings, truth.predict(settings))
    np.testing.assert_array_equal(found.predict(settings), truth.predict(settings))


@pytest.mark.parametrize("change", [{"p": 0.0}, {"p": 0.7}, {"s": 600}, {"d": 1}, {"M": 0}, {"buffer": 0}])
def test_impossible_settings_are_refused_in_one_line(change):
    with pytest.raises(RequestError) as caught:
        replace(BASE, **change)
    assert "\n" not in str(caught.value)


def test_nothing_to_predict_is_refused():
    with pytest.raises(RequestError):
        predict([])
    with pytest.raises(RequestError):
        predict([BASE], 1.0)
