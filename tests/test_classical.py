"""Classical learners: what they learn on data that gives the dictionary away, and the common encoder."""

import sys

import numpy as np
import pytest

from simulator import Exactly, Orthonormal, RequestError, World
from theory.baselines import fit_threshold
from theory.classical import LEARNERS, NOT_INSTALLED, classical_dictionary, threshold_codes
from theory.codes import code_metrics
from theory.geometry import check

MODULES = {"scikit-learn": "sklearn", "SPAMS": "spams", "k-means": "numpy"}


@pytest.mark.parametrize("name", list(LEARNERS))
def test_one_feature_per_sample_is_learned(name):
    """With s = 1 and noise every learner has to find the features."""
    pytest.importorskip(MODULES[name])
    world = World(8, 12, Exactly(1), noise=0.02)
    sample = world.sample(3_000, 0)
    found = classical_dictionary(name, sample.X, 40, penalty=0.1, seed=1, batch=128)
    assert found.dictionary is not None
    assert found.dictionary.shape == (40, 12)
    assert check(sample.V, found.dictionary).rate(0.9) == 1
    assert found.samples == 3_000


@pytest.mark.parametrize("name", ["scikit-learn", "SPAMS"])
def test_a_missing_package_is_said(name, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    found = classical_dictionary(name, np.eye(3), 2, penalty=0.1)
    assert (found.dictionary, found.note) == (None, NOT_INSTALLED)


def test_fewer_samples_than_rows():
    X = np.eye(3)
    found = classical_dictionary("k-means", X, 5, penalty=0.1)
    assert found.dictionary is not None
    assert found.dictionary.shape == (5, 3)
    assert (np.linalg.norm(found.dictionary, axis=1) > 0).sum() == 3


def test_codes_of_the_common_encoder(monkeypatch):
    world = World(16, 16, Exactly(2), Orthonormal())
    sample = world.sample(1_000, 0)
    fit = fit_threshold(sample.V, sample.X)
    monkeypatch.setattr("theory.classical._BLOCK", 16 * 300)
    codes, a, W, b_pre = threshold_codes(sample.V, sample.X, fit)
    z = sample.X @ sample.V.T
    np.testing.assert_allclose(codes.toarray(), np.where(z > fit.theta, z, 0), atol=1e-6)
    measured = code_metrics(codes, a, W, b_pre, sample.X, sample.H, check(sample.V, W))
    assert measured.features.f1.min() == 1
    assert measured.loss < 1e-6


def test_bad_requests():
    with pytest.raises(RequestError, match="unknown learner 'ICA'"):
        classical_dictionary("ICA", np.eye(3), 3, penalty=0.1)
    with pytest.raises(RequestError, match="penalty"):
        classical_dictionary("k-means", np.eye(3), 3, penalty=0)
