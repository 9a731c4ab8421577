"""Targets from a pilot: the estimate on pre-activations whose law is known, the choice, and its cost."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from figures import targets as study
from figures.cells import Cell, run_cell
from figures.cli import main
from llm_bridge.runs import method_text
from simulator import BA, GBA, Exactly, RequestError, Training, World
from simulator.config import fingerprint
from theory import targets
from theory.targets import ChosenTargets, choose_targets, feature_frequencies


def sparse_sums(frequencies, N=40_000, noise=0.05, seed=0):
    """X with independent coordinates Bernoulli(f_i) + noise: the identity learns every feature."""
    rng = np.random.default_rng(seed)
    active = rng.random((N, len(frequencies))) < np.asarray(frequencies)
    return active + noise * rng.standard_normal(active.shape), active


def test_frequency_of_a_neuron_on_its_feature_is_found():
    """The cumulants' own value of f (1 + O(f)), to sampling error; f = 0.1 is no longer far outside."""
    frequencies = np.array([0.002, 0.005, 0.01, 0.03, 0.05, 0.1])
    X, active = sparse_sums(frequencies, N=200_000)
    found, on = feature_frequencies(X - X.mean(axis=0), np.eye(6))
    assert on.tolist() == [True] * 5 + [False]
    f = active.mean(axis=0)[:5]
    np.testing.assert_allclose(found[:5], f * (1 - f) * (1 - 2 * f) ** 4 / (1 - 6 * f * (1 - f)) ** 3, rtol=0.03)
    np.testing.assert_allclose(found[:3], f[:3], rtol=0.15)


def test_what_else_a_neuron_sees_hardly_matters():
    """A Gaussian part adds nothing to the cumulants, small shares of other features nearly nothing."""
    X, active = sparse_sums([0.01] * 9, N=200_000, noise=0.2)
    mixed = np.array([[1.0] + [0.2] * 8])
    found, on = feature_frequencies(X - X.mean(axis=0), mixed)
    assert on.all()
    assert found[0] == pytest.approx(active[:, 0].mean(), rel=0.4)


def test_neurons_on_nothing_are_left_out():
    """Directions between many features, of Gaussian noise, and against a feature."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((20_000, 8))
    found, on = feature_frequencies(X, np.eye(8))
    assert not on.any()
    assert np.isnan(found).all()
    X, _ = sparse_sums([0.01] * 4)
    assert not feature_frequencies(X - X.mean(axis=0), -np.eye(4))[1].any()
    assert not feature_frequencies(np.zeros((100, 4)), np.eye(4))[1].any()


def test_blocks_do_not_change_the_estimate(monkeypatch):
    X, _ = sparse_sums([0.01] * 7, N=500)
    W = np.random.default_rng(2).standard_normal((23, 7))
    whole = feature_frequencies(X, W)
    monkeypatch.setattr(targets, "_BLOCK", 3 * 500)
    for one, other in zip(whole, feature_frequencies(X, W), strict=True):
        np.testing.assert_array_equal(one, other)


WORLD = World(128, 48, Exactly(2))
TRAINING = Training(GBA(), neurons=128, steps=600, batch=512, learning_rate=5e-3, decay=0.2, start_bias="quantile")


def test_choice_lies_around_the_planted_frequency_and_moves_with_it():
    chosen = choose_targets(WORLD.stream(0), TRAINING, 0)
    f = 2 / 128
    assert chosen.frequency is not None
    assert f < chosen.frequency < 4 * f
    assert chosen.ltf < f < chosen.htf
    rarer = choose_targets(World(512, 48, Exactly(2)).stream(0), replace(TRAINING, neurons=512), 0)
    assert rarer.htf < 0.6 * chosen.htf  # f falls by 4


def test_the_pilot_is_paid_for():
    chosen = choose_targets(WORLD.stream(0), TRAINING, 0)
    after = chosen.training(TRAINING)
    assert after.steps * 512 + chosen.samples == 600 * 512
    assert after.method == GBA(chosen.htf, chosen.ltf, chosen.groups)
    assert replace(after, method=TRAINING.method, steps=600) == TRAINING


def test_what_says_nothing_falls_back_to_the_paper():
    class Noise:
        n, d = None, 16

        def batch(self, t, size):
            rng = np.random.default_rng([7, t])
            return torch.from_numpy(rng.standard_normal((size, 16)).astype(np.float32))

        def config(self):
            return {"type": "noise"}

    source = Noise()
    chosen = choose_targets(source, replace(TRAINING, neurons=32), 0)
    assert chosen.frequency is None
    assert (chosen.htf, chosen.ltf, chosen.groups) == (0.1, 1e-3, 10)


def test_bad_requests():
    with pytest.raises(RequestError, match="chosen for GBA, not for BA"):
        choose_targets(WORLD.stream(0), replace(TRAINING, method=BA(0.1)), 0)
    with pytest.raises(RequestError, match="at least 10"):
        choose_targets(WORLD.stream(0), replace(TRAINING, steps=9), 0)


def test_cell_with_a_pilot(tmp_path):
    """The cell trains with the targets it chose, says so, and is another cell than the one without."""
    cell = Cell(WORLD, replace(TRAINING, steps=60), 3, samples=500, references=False, pilot=True)
    assert fingerprint(cell.config()) != fingerprint(replace(cell, pilot=False).config())
    result = run_cell(cell, tmp_path / "a", picture=False)
    chosen = choose_targets(WORLD.stream(3), cell.training, 3)
    assert isinstance(chosen, ChosenTargets)
    assert (result["htf"], result["ltf"], result["pilot_samples"]) == (chosen.htf, chosen.ltf, chosen.samples)
    assert result["steps"] == chosen.training(cell.training).steps
    assert run_cell(cell, tmp_path / "a", picture=False) == result


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_command_line(tmp_path, capsys):
    options = ["verify", "--method", "gba", "--targets", "pilot", "--n", "64", "--d", "24", "--neurons", "64"]
    folder = str(tmp_path / "a")
    assert run(*options, "--steps", "60", "--samples", "200", "--no-references", "--out", folder, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pilot_samples"] > 0
    assert method_text(result) == f"GBA {result['htf']:g}..{result['ltf']:g} in {result['groups']} groups, M = 64"
    assert run(*options, "--htf", "0.3") == 2
    assert "--htf belongs to --method gba with --targets given" in capsys.readouterr().err
    assert run("verify", "--method", "ba", "--targets", "pilot") == 2
    assert "--targets belongs to --method gba" in capsys.readouterr().err


def test_study_gives_every_range_the_same_samples():
    found = study.cells((0,), "tiny")
    assert {label["targets"] for label, _ in found} == set(study.SETTINGS)
    assert len({(one.training.steps, one.training.batch) for _, one in found}) == 1
    assert all(one.pilot == (label["targets"] == "pilot") for label, one in found)
    rare = next(one.world for label, one in found if label["world"] == "constant, rare")
    assert rare is not None
    known = study.method("min f..sqrt max f", rare)
    assert (known.ltf, known.htf) == pytest.approx((2 / 256, (2 / 256) ** 0.5))
