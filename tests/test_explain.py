"""Explanations: one planted cause at a time, the numbers and the conclusion."""

import numpy as np
import pytest
from scipy import sparse

from simulator.errors import RequestError
from theory.explain import explain
from theory.geometry import check

V = np.eye(4)


def test_a_learned_feature_with_everything_known():
    W = np.array([[0.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    # Feature 1 on rows 0, 1; feature 0 on rows 0, 2, 3; neuron 0 fires on rows 0, 1, 2.
    H = sparse.csr_array([[1.0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    codes = sparse.csr_array([[1.0, 0], [2, 0], [1, 0], [0, 1]])
    found = explain(1, V, W, H=H, codes=codes, targets=np.array([0.4, 0.01]))
    assert found.learned and found.neuron == 0 and found.cosine == 1.0
    assert found.frequency == 0.5  # measured on H
    assert (found.near_targets, found.targets_above, found.targets_below) == (1, 0, 1)
    assert (found.neuron_target, found.neuron_frequency) == (0.4, 0.75)
    assert found.precision == pytest.approx(2 / 3) and found.recall == 1.0
    assert found.partners == ((0, 0.5),) and found.neighbours == () and not found.mixture
    lines = found.text().splitlines()
    assert lines[0] == "feature 1: learned at cosine > 0.9"
    assert lines[-1].startswith("Learned: neuron 0") and 4 <= len(lines) <= 8


def test_targets_too_high():
    W = np.array([[1.0, 0.0, 0.0, 0.0]])
    found = explain(3, V, W, frequencies=np.full(4, 0.01), targets=np.array([0.3]))
    assert (found.near_targets, found.targets_above) == (0, 1)
    assert "no neuron's target" in found.conclusion and "fire more often" in found.conclusion


def test_a_mixture():
    # (1, 1, 0, 0): cosine 1/sqrt 2 with features 0 and 1.
    found = explain(0, V, np.array([[1.0, 1.0, 0.0, 0.0]]))
    assert found.mixture and found.on_neuron == ((1, pytest.approx(np.sqrt(0.5))),)
    assert "mixture" in found.conclusion and "1" in found.conclusion


def test_a_partner_that_is_nearly_always_there():
    H = sparse.csr_array(np.array([[1.0, 0, 0, 1]] * 3 + [[1.0, 0, 0, 0]]))
    found = explain(0, V, np.array([[1.0, 0, 0, 1]]), H=H)
    assert found.partners == ((3, 0.75),) and "feature 3 is present on 75%" in found.conclusion


def test_a_coherent_neighbour():
    close = np.array([[1.0, 0.0], [0.8, 0.6]])
    found = explain(1, close, np.array([[1.0, 0.0]]))
    assert found.neighbours == ((0, 0.8),) and "close to it" in found.conclusion


def test_never_there_and_nothing_there():
    assert "does not occur" in explain(0, V, V[1:], H=sparse.csr_array((5, 4))).conclusion
    silent = explain(0, V, np.zeros((2, 4)), codes=sparse.csr_array((5, 2)), targets=np.ones(2))
    assert silent.neuron == -1 and silent.neuron_target is None and "zero row" in silent.conclusion
    assert silent.text().endswith(silent.conclusion)


def test_taken_by_another_feature():
    leaning = np.array([[1.0, 0.1, 0.0, 0.0]])
    assert "belongs to feature 0" in explain(1, V, leaning).conclusion


def test_a_given_recovery_is_used(generator):
    left, W = generator.standard_normal((7, 4)), generator.standard_normal((9, 4))
    assert explain(2, left, W) == explain(2, left, W, recovery=check(left, W))


@pytest.mark.parametrize(
    "i, options, words",
    [
        (4, {}, "feature 4 does not exist; V has 4 features"),
        (-1, {}, "feature -1 does not exist"),
        (0, {"targets": np.ones(3)}, "targets has shape (3,)"),
        (0, {"H": sparse.csr_array((5, 3))}, "H has 3 columns"),
        (0, {"H": sparse.csr_array((5, 4)), "codes": sparse.csr_array((6, 4))}, "codes has 6 rows where 5"),
        (0, {"threshold": 3.0}, "threshold = 3.0"),
        (0, {"recovery": check(V[:2], V)}, "recovery belongs to"),
    ],
)
def test_impossible_requests(i, options, words):
    with pytest.raises(RequestError) as error:
        explain(i, V, V, **options)
    assert words in str(error.value) and "\n" not in str(error.value)
