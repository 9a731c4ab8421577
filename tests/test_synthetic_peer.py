"""Our worlds against the real sae_lens.synthetic: the laws of what both generate, and the reader of its folders.

Needs a Python with sae-lens in an environment of its own, which does the other side (synthetic_peer.py):
    SAE_LENS_PYTHON=/path/to/python pytest tests/test_synthetic_peer.py

Error rates. For equal laws and random seeds all comparisons of this file together fail with probability below 1e-6
(ALARM; Bonferroni over every single number). Counts are compared by the exact hypergeometric test, numbers of a sample
by the two-sample Kolmogorov-Smirnov test, means by normal approximations over at least 1,000 terms. A difference is
found with probability > 1 - 1e-6 from (z_alarm + 4.75) standard errors on: `test_the_detectable_differences`.
"""

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from simulator.coefficients import ClippedNormal
from simulator.copula import Copula, GivenFactors, RandomFactors
from simulator.dictionaries import orthogonalised
from simulator.synthbench import synth_sae_bench
from simulator.synthetic_model import read_synthetic_model
from simulator.world import World

pytestmark = pytest.mark.slow

ALARM = 1e-6
CASES = ("scaled", "gated", "plain", "mixed")
KINDS = ("frequencies", "law", "pairs", "levels", "means", "squares", "sizes", "norms", "totals", "energies")
LEVEL = ALARM / len(CASES) / len(KINDS)
"""False-alarm rate of all comparisons of one kind in one case."""
N = 100_000


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Path:
    """The folder after tests/synthetic_peer.py has been there; half a minute."""
    python = os.environ.get("SAE_LENS_PYTHON")
    if not python:
        pytest.skip("SAE_LENS_PYTHON is not set: name a Python with sae-lens to compare with the real one")
    folder = tmp_path_factory.mktemp("peer")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    script = Path(__file__).with_name("synthetic_peer.py")
    result = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


class Ours(NamedTuple):
    """N samples of a world of ours."""

    world: World
    H: scipy.sparse.csr_array
    norms: np.ndarray


def draw(world: World) -> Ours:
    batches = world.stream(11)
    norms = [batches.batch(t, 5_000).norm(dim=1).double().numpy() for t in range(N // 5_000)]
    H = scipy.sparse.vstack([batches.sparse_batch(t, 5_000) for t in range(N // 5_000)]).astype(np.float64)
    return Ours(world, H, np.concatenate(norms))


def equal_counts(first, n_first, second, n_second) -> float:
    """P-value of all counts together: hypergeometric given the sum, two-sided, Bonferroni."""
    first, second = np.ravel(first), np.ravel(second)
    law = scipy.stats.hypergeom(int(n_first + n_second), (first + second).astype(int), int(n_first))
    return 2 * first.size * min(law.cdf(first).min(), law.sf(first - 1).min())


def equal_means(first, second, error) -> float:
    """P-value of all means together."""
    return 2 * np.size(first) * scipy.stats.norm.sf(np.abs((first - second) / error).max())


def p_values(ours: Ours, theirs) -> dict[str, float]:
    """One p-value for each of KINDS."""
    world, H, norms = ours
    active = H.copy()
    active.data[:] = 1
    counts, n_theirs = active.sum(axis=0), int(theirs["N"])
    found = {"frequencies": equal_counts(counts, N, theirs["active"], n_theirs)}
    tails = scipy.stats.binom(n_theirs, world.frequencies())
    low, high = tails.cdf(theirs["active"]).min(), tails.sf(theirs["active"] - 1).min()
    found["law"] = 2 * world.n * min(low, high)
    some = active[:, theirs["chosen"]]
    upper = np.triu_indices(some.shape[1], 1)
    found["pairs"] = equal_counts((some.T @ some).toarray()[upper], N, theirs["pairs"][upper], n_theirs)
    # Number of active features on each level; its variance is that of our sample.
    levels = world.hierarchy.levels if world.hierarchy else (np.arange(world.n),)
    per_level = np.array([active[:, level].sum(axis=1) for level in levels])
    per_level_theirs = [theirs["active"][level].sum() / n_theirs for level in levels]
    deviation = per_level.std(axis=1) * np.sqrt(1 / N + 1 / n_theirs)
    found["levels"] = equal_means(per_level.mean(axis=1), per_level_theirs, deviation)
    often = (counts >= 1_000) & (theirs["active"] >= 1_000)
    powers = {k: (H**k).sum(axis=0)[often] / counts[often] for k in (1, 2, 4)}
    for kind, power, name in (("means", 1, "first"), ("squares", 2, "second")):
        spread = np.sqrt(np.maximum(powers[2 * power] - powers[power] ** 2, 0))
        error = spread * np.sqrt(1 / counts[often] + 1 / theirs["active"][often])
        found[kind] = equal_means(powers[power], theirs[name][often] / theirs["active"][often], error)
    found["sizes"] = scipy.stats.ks_2samp(active.sum(axis=1), theirs["sizes"]).pvalue
    # Rounded: all samples without an active feature have the norm of the bias, up to float32.
    found["norms"] = scipy.stats.ks_2samp(norms.round(4), theirs["norms"].round(4)).pvalue
    found["totals"] = scipy.stats.ks_2samp(H.sum(axis=1), theirs["totals"]).pvalue
    F = factors(world)
    energies = ((active @ F) ** 2).sum(axis=1) - active @ (F**2).sum(axis=1)
    error = max(energies.std() * np.sqrt(1 / N + 1 / n_theirs), 1e-300)
    found["energies"] = equal_means(energies.mean(), theirs["energies"].mean(), error)
    return found


def factors(world: World) -> np.ndarray:
    return world.support.factors.matrix(world.n) if isinstance(world.support, Copula) else np.zeros((world.n, 1))


def alarms(ours: Ours, theirs) -> set[str]:
    found = p_values(ours, theirs)
    assert tuple(found) == KINDS
    return {kind for kind, p in found.items() if not p > LEVEL}


@pytest.mark.parametrize("case", CASES)
def test_the_same_law(peer, case):
    assert alarms(draw(read_synthetic_model(peer / case)), np.load(peer / f"{case}.npz")) == set()


@pytest.mark.parametrize("case", CASES)
def test_what_is_stored_and_what_is_drawn_again(peer, case):
    theirs, world = np.load(peer / f"{case}.npz"), read_synthetic_model(peer / case)
    assert np.array_equal(np.broadcast_to(world.coefficients.mean, world.n).astype(np.float32), theirs["mean"])
    assert np.array_equal(np.broadcast_to(world.coefficients.std, world.n).astype(np.float32), theirs["std"])
    # Their product is in float32: up to 20 terms, each up to 10.
    assert np.abs(theirs["H"] @ world.features(0) + world.offset(0) - theirs["X"]).max() < 1e-4


def test_what_is_detected(peer):
    """Each planted error raises the alarm that it should."""
    theirs, world = np.load(peer / "scaled.npz"), read_synthetic_model(peer / "scaled")
    forest, law = world.hierarchy, world.coefficients
    F = factors(world)
    mean, std = np.broadcast_to(law.mean, world.n), np.broadcast_to(law.std, world.n)

    def changed(**more) -> set[str]:
        return alarms(draw(dataclasses.replace(world, **more)), theirs)

    def forest_with(**more):
        return dataclasses.replace(forest, **more)

    gated = changed(hierarchy=forest_with(scaled=np.zeros(world.n)))
    assert {"squares", "totals", "norms"} <= gated and not gated & {"frequencies", "pairs", "sizes", "levels"}
    shared = changed(hierarchy=forest_with(groups=np.full(world.n, -1)))
    assert {"frequencies", "law", "pairs", "levels", "sizes", "norms"} <= shared
    free = changed(hierarchy=None)
    assert {"frequencies", "law", "sizes"} <= free
    weaker = Copula(world.support.s, world.support.frequencies, GivenFactors(F * 0.8))
    assert {"energies"} <= changed(support=weaker)
    lone = Copula(world.support.s, world.support.frequencies, RandomFactors(25, 0.1, structure=99))
    assert {"pairs"} <= changed(support=lone)
    assert {"means", "squares", "norms"} <= changed(coefficients=ClippedNormal(mean * 1.02, std))
    assert {"squares", "norms"} <= changed(coefficients=ClippedNormal(mean, std * 1.3))


def test_the_detectable_differences():
    # With 60,000 of their samples and 1,024 features: a frequency of 0.01 that is wrong by 0.006, one of 0.1 by 0.018,
    # and the mean number of active features, 7.2, by 0.27 on a level.
    z = scipy.stats.norm.isf(LEVEL / 2 / 1024) + scipy.stats.norm.isf(1e-6)
    error = np.sqrt(1 / N + 1 / 60_000)
    assert z == pytest.approx(6.7 + 4.75, abs=0.3)
    assert z * np.sqrt(0.01 * 0.99) * error == pytest.approx(0.006, abs=5e-4)
    assert z * 0.3 * error == pytest.approx(0.018, abs=1e-3)
    z = scipy.stats.norm.isf(LEVEL / 2 / 4) + scipy.stats.norm.isf(1e-6)
    assert z * 4.7 * error == pytest.approx(0.27, abs=0.02)


def placed(groups: np.ndarray) -> np.ndarray:
    """Groups named by their first members."""
    first = {group: i for i, group in reversed(list(enumerate(groups.tolist())))}
    return np.array([-1 if group < 0 else first[group] for group in groups.tolist()])


@pytest.mark.parametrize("scale", [True, False])
def test_the_preset_is_their_recipe(peer, scale):
    """All but the random structure (factors, spreads, V) is equal; that has the same law (KS test at 1e-7)."""
    theirs, ours = read_synthetic_model(peer / ("scaled" if scale else "gated")), synth_sae_bench(
        1024, 128, scale_children=scale
    )  # fmt: skip
    assert ours.support.feature_frequencies(1024) == pytest.approx(theirs.support.feature_frequencies(1024), rel=2e-5)
    assert ours.coefficients.mean == pytest.approx(theirs.coefficients.mean, rel=1e-6)
    for name in ("parents", "scaled"):
        assert np.array_equal(getattr(ours.hierarchy, name), getattr(theirs.hierarchy, name))
    assert np.array_equal(placed(ours.hierarchy.groups), placed(theirs.hierarchy.groups))
    assert ours.hierarchy.means == pytest.approx(theirs.hierarchy.means, rel=1e-6)
    assert np.linalg.norm(theirs.bias) == pytest.approx(ours.bias, rel=1e-6)
    for of_ours, of_theirs in ((ours.coefficients.std, theirs.coefficients.std), (factors(ours), factors(theirs))):
        assert scipy.stats.ks_2samp(np.ravel(of_ours), np.ravel(of_theirs)).pvalue > 1e-7
    # Their true L0 differs from draw to draw of the factors by about 0.1.
    assert ours.mean_active == pytest.approx(theirs.mean_active, abs=0.3)


def test_orthogonalised_as_there(peer):
    """From an equal start, 100 steps in float32: the rows move by 0.05 and agree to 1e-6."""
    with np.load(peer / "apart.npz") as both:
        found = orthogonalised(both["start"], 100, 3e-4)
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
        assert np.abs(both["end"] - both["start"]).max() > 0.04
        assert np.abs(found - both["end"]).max() < 2e-6
