"""The explorer's scenes: what a page says is what the library measures; bad dials give one line; trainings stop."""

import json
import math
import shlex
import threading
import time

import numpy as np
import pytest
from scipy import integrate, sparse, stats

from figures.cli import _parse
from figures.explorer import background
from figures.explorer.background import Training
from figures.explorer.scenes import adaptation, identifiability, model, own_world, resonance
from simulator import BA, Exactly, RequestError, TwoSided, UnitSphere, World, fit
from simulator import Training as Settings
from theory.conditions import measure
from theory.geometry import best_cosines
from theory.identifiability import compare
from theory.resonance import predict


@pytest.mark.parametrize("d", [2, 3, 8])
def test_the_density_of_a_cosine_is_that_of_random_directions(d):
    assert integrate.quad(lambda c: float(model.cosine_density(np.array(c), d)), -1, 1)[0] == pytest.approx(1, abs=1e-3)
    c = np.array([0.1, 0.5, 0.9])
    # c^2 ~ Beta(1/2, (d-1)/2): the density of |c| is 2 c times that of c^2, half of it on either side
    assert model.cosine_density(c, d) == pytest.approx(c * stats.beta.pdf(c * c, 0.5, (d - 1) / 2), rel=1e-12)


def test_the_model_page_shows_the_coherence_of_what_it_draws():
    scene = model.show(7, 3, 2, seed=4)
    V = World(7, 3, Exactly(1), UnitSphere()).features(4)
    cosines = np.abs(V @ V.T)[np.triu_indices(7, 1)]
    assert scene.numbers["coherence"] == pytest.approx(cosines.max(), abs=1e-6)
    assert f"{cosines.max():.3f}" in scene.text and "Superposition" in scene.text
    assert scene.numbers["low"] < scene.numbers["typical"] < scene.numbers["high"]
    assert "Superposition" not in model.show(3, 3, 1).text


def test_the_interval_of_the_coherence_holds_what_it_promises():
    """Interval at 0.95 for n = 8, d = 3; 400 dictionaries, alarm at fewer than 366 inside.

    False alarms: P(Bin(400, 0.95) < 366) = 0.0011. An interval that held only 0.88 would pass with probability 0.016.
    """
    _, low, high = model.coherence_law(8, 3)
    inside = 0
    for seed in range(400):
        V = World(8, 3, Exactly(1), UnitSphere()).features(seed)
        inside += low <= np.abs(V @ V.T)[np.triu_indices(8, 1)].max() <= high
    assert inside >= 366


@pytest.mark.parametrize("arguments", [(6, 4, 2), (1, 2, 1), (3, 2, 4)])
def test_impossible_models_say_why(arguments):
    with pytest.raises(RequestError):
        model.show(*arguments)


def test_slack_crosses_zero_where_the_surrogates_say():
    def slack(name, *dials):
        return identifiability.show(*dials).numbers[name]

    assert slack("H1", 9, 0.2, 0.1) > 0 > slack("H1", 11, 0.2, 0.1)
    assert slack("V1", 3, 0.45, 0.1) > 0 > slack("V1", 3, 0.55, 0.1)
    n = identifiability.show(4, 0.3, 0.1).numbers["n"]
    edge = 1 / (2 * math.sqrt(n))
    assert slack("H3", 4, 0.3, edge - 0.02) > 0 > slack("H3", 4, 0.3, edge + 0.02)


@pytest.mark.parametrize(
    ("dials", "there"),
    [
        ((4, 0.2, 0.3), False),
        ((4, 0.3, 0.3), True),
        ((4, 0.3, 0.0), False),
        ((1, 0.9, 0.0), False),
        ((16, 0.5, 0.9), True),
    ],
)
def test_an_alternative_appears_where_a_composite_can_exist(dials, there):
    scene = identifiability.show(*dials)
    assert scene.numbers["alternative"] is there
    if there:
        assert scene.numbers["difference"] < 1e-12  # the same data
        assert scene.numbers["eps_lower"] > identifiability.TOLERANCE  # and another dictionary
        assert "Another dictionary" in scene.text
    else:
        assert scene.numbers["joint"] > 0 or dials[2] == 0


def test_a_rival_that_breaks_the_hypotheses_is_named():
    """V' = I and H' = X explain data without negative entries exactly, are another dictionary, and break H3."""
    H, V = identifiability.plain_world(2, 0.45, 0.1)
    X = sparse.csr_array(H @ V)
    found = compare(V, np.eye(len(V)), H=H, H_prime=X, draws=0, tolerance=identifiability.TOLERANCE)
    assert found.difference < 1e-12 and found.forward.verdict == "not equivalent"
    assert measure(X, np.eye(len(V))).H3.slack < 0
    text = identifiability.show(2, 0.45, 0.1).text
    assert "All four hypotheses hold" in text and "V' = I" in text and "break H3" in text
    assert "V' = I" not in identifiability.show(2, 0.0, 0.1).text  # there the axes are V


def test_the_coherence_dial_is_measured_where_features_never_meet():
    assert identifiability.show(1, 0.9, 0.0).numbers["V1"] == pytest.approx(math.log(0.5 / 0.9))


def test_impossible_co_occurrence_says_why():
    with pytest.raises(RequestError, match="s = 1"):
        identifiability.show(1, 0.3, 0.2)


def test_the_threshold_meets_its_target():
    two = adaptation.show(0.03, 0.9, 0.0).numbers
    assert two["two-sided frequency"] == pytest.approx(0.03, rel=0.1)
    assert two["one-sided frequency"] <= 0.03
    # below its ceiling and firing: the one-sided rule leaves it where it is
    resting = adaptation.show(0.1, 0.9, 0.4).numbers
    assert resting["one-sided threshold"] == 0.4 > resting["two-sided threshold"]
    # one that never fires is raised by its group
    assert adaptation.show(0.03, 0.9, 0.95).numbers["one-sided threshold"] < 0.95


def test_a_neuron_that_has_not_come_to_rest_is_said():
    assert "Still on its way" not in adaptation.show(0.03, 0.9, 0.0).text
    assert "adaptations: one-sided and two-sided" in adaptation.show(0.001, 0.9, 0.0).text
    assert "adaptations: two-sided" in adaptation.show(0.03, 0.9, 1.0).text


def test_one_neuron_moves_as_in_the_trainer():
    """The page's path of a bias against algorithm 2 written out for one neuron and its mate."""
    u, _ = adaptation.preactivations(0.9, 3, 0)
    mate, _ = adaptation.preactivations(0.0, 3, 0)
    path, frequencies = adaptation.adapted(u, mate, 0.03, TwoSided(), 0.2)
    buffers = u.reshape(-1, adaptation.BUFFER)
    b = -0.2
    for step in range(30):
        y = buffers[step % len(buffers)] + b
        assert frequencies[step] == np.mean(y > 0)
        if np.mean(y > 0) <= 0.03:
            break
        b = max(b - 0.01 * max(y.max(), 0), -1.0)
        assert path[step + 1] == pytest.approx(-b, rel=1e-6)  # r is measured in float32
    assert step > 5


def test_a_live_run_is_the_library_s_run():
    place = resonance.Place(64, 24, 2, 128)
    trial = resonance.Trial(place, 1.3 * place.f, seed=1)
    trial.train(lambda step, loss: None)
    source = World(64, 24, Exactly(2)).stream(1)
    training = Settings(
        BA(trial.p, buffer=resonance.BUFFER), 128, resonance.STEPS, resonance.BATCH, learning_rate=3e-3, decay=0.7,
        start_bias="quantile",
    )  # fmt: skip
    outcome = fit(source, training, 1, threads=1, record_every=50)
    assert np.array_equal(trial.cosines, best_cosines(source.V, outcome.W))
    assert trial.shares[-1] == np.mean(np.array(trial.cosines) > 0.9) > 0.5
    assert trial.steps[0] == 0 and trial.steps[-1] == resonance.STEPS and trial.shares[0] == 0
    scene = resonance.show(place, trial.p, [trial])
    assert scene.numbers["measured"] == trial.shares[-1]
    assert f"learned **{trial.shares[-1]:.2f}**" in scene.text


def test_a_run_is_drawn_while_it_appends():
    place = resonance.Place(64, 24, 2, 128)
    trial = resonance.Trial(place, 0.04, 0, steps=[0, 50], shares=[0.0])
    assert resonance.show(place, 0.04, [trial]).numbers["measured"] == 0


def test_the_edge_of_the_picture_is_no_edge_of_the_band():
    text = resonance.show(resonance.Place(), 0.01).text
    edge = float(text.split("p / f up to ")[1].rstrip("."))
    place = resonance.Place()
    found = predict([place.setting(ratio * place.f) for ratio in (edge - 0.15, edge + 0.15)], resonance.TAU).recovered
    assert found[0] > 0.5 > found[1]
    ratios = np.array([1.0, 2.0, 4.0])
    assert resonance._edges(ratios, np.array([0.0, 1.0, 0.0])) == "in 1.4 to 2.8"
    assert resonance._edges(ratios, np.array([0.0, 1.0, 1.0])) == "from 1.4 on"
    assert resonance._edges(ratios, np.array([1.0, 1.0, 1.0])) == "everywhere"
    assert resonance._edges(ratios, np.array([0.1, 0.5, 0.1])) == "nowhere"


def test_the_band_is_drawn_where_p_is_below_a_half_and_refused_beyond():
    place = resonance.Place(64, 24, 8, 128)
    ratios, shares = resonance.band(place)
    assert ratios.max() * place.f < 0.5 and len(ratios) == len(shares)
    with pytest.raises(RequestError, match="p"):
        resonance.show(place, 0.6)


def test_a_training_in_the_background_stops_and_tells_errors():
    reached = threading.Event()

    def endless(progress):
        for step in range(10**9):
            progress(step, 1.0)
            reached.set()
            time.sleep(1e-3)

    training = Training(endless, 10**9)
    assert reached.wait(10) and training.running
    training.stop()
    assert training.wait(10) and training.stopped and training.result is None and training.error == ""

    def bad(progress):
        raise RequestError("s = 5 is too many; take 4")

    refused = Training(bad, 1)
    assert refused.wait(10) and refused.error == "s = 5 is too many; take 4"
    done = Training(lambda progress: 7, 1)
    assert done.wait(10) and done.result == 7 and not done.running


def test_a_training_that_nobody_watches_ends(monkeypatch):
    monkeypatch.setattr(background, "PATIENCE", 0.2)

    def endless(progress):
        for step in range(10**9):
            progress(step, 1.0)
            time.sleep(1e-3)

    training = Training(endless, 10**9)
    for _ in range(10):
        time.sleep(0.05)
        assert training.running  # who asks goes on watching
    time.sleep(1.0)
    assert not training.running and training.stopped and training.error == ""
    other = Training(endless, 10**9)
    background.stop_all(10)
    assert other.stopped and not other.running


def test_an_empty_dial_and_an_impossible_seed_are_one_line():
    for name in ("n", "d", "s", "neurons", "steps", "seed"):
        with pytest.raises(RequestError, match=f"{name} is empty"):
            own_world.options(**SMALL | {name: None})
    with pytest.raises(RequestError, match="seed"):
        own_world.options(**SMALL | {"seed": 1.5})


SMALL = {"n": 32, "d": 16, "s": (2,), "method": "ba", "p": 0.08, "neurons": 64, "steps": 60}


def test_the_command_line_repeats_the_page():
    for dials in (
        SMALL,
        SMALL | {"noise": 0.1, "coefficients": "half-normal", "rule": "two-sided"},
        SMALL | {"dictionary": "coherent", "mean_cosine": 0.2, "seed": 3},
        {"n": 32, "d": 16, "s": (2,), "method": "topk", "k": 2, "neurons": 64, "steps": 60, "zipf": 0.5},
    ):
        asked = own_world.options(**dials)
        parsed = _parse(shlex.split(own_world.command_line(asked))[1:])
        assert parsed.cell().config() == asked.cell().config()
        assert json.loads(own_world.config_text(asked)) == json.loads(json.dumps(asked.cell().config()))


def test_the_verdict_is_that_of_verify(tmp_path, capsys):
    from figures.cli import main

    asked = own_world.options(**SMALL)
    result = own_world.train(asked, lambda step, loss: None)
    scene = own_world.show(asked, result)
    words = shlex.split(own_world.command_line(asked))[1:]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(tmp_path / "x"), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    for key in ("frr_090", "mcc", "feature_f1", "mean_l0", "loss"):
        assert printed[key] == result[key]
    assert f"**{scene.numbers['learned']} of 32 features recovered**" in scene.text


@pytest.mark.parametrize(
    "dials",
    [
        {"s": (80,), "n": 64},
        {"n": 10**6},
        {"dictionary": "orthonormal", "n": 64, "d": 24},
        {"support": "paired", "zipf": 0.5},
        {"method": "topk", "k": 100, "neurons": 50},
        {"method": "gba", "htf": 0.01, "ltf": 0.1},
        {"noise": -1.0},
    ],
)
def test_impossible_worlds_say_why(dials):
    with pytest.raises(RequestError) as reason:
        own_world.options(**dials)
    assert "\n" not in str(reason.value)
