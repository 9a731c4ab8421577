"""Our benchmark scores against the real eval_sae_on_synthetic_data, on the same dictionaries, samples and codes.

Needs a Python with sae-lens in an environment of its own, which does the other side (benchmark_peer.py):
    SAE_LENS_PYTHON=/path/to/python pytest tests/test_benchmark_peer.py
"""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from theory.benchmark import benchmark_scores

pytestmark = pytest.mark.slow


def given(M=20, n=30, d=12, N=1000, *, seed=0, threshold=False, near=0.5):
    """Features, coefficients and a network half of whose neurons point near features; float64."""
    generator = np.random.default_rng(seed)
    V = generator.standard_normal((n, d))
    W = generator.standard_normal((M, d)) * near
    W += V[generator.integers(0, n, M)]
    V, W = V / np.linalg.norm(V, axis=1, keepdims=True), W / np.linalg.norm(W, axis=1, keepdims=True)
    H = np.abs(generator.standard_normal((N, n))) * (generator.random((N, n)) < 0.1)
    case = {"V": V, "H": H, "bias": np.zeros(d), "W_dec": W, "W_enc": W.T.copy()}
    case |= {"b_enc": np.full(M, -0.2), "b_dec": np.zeros(d)}
    return case | ({"threshold": generator.random(M)} if threshold else {})


def cases() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    found = {
        "narrow": given(M=20, n=30),
        "wide": given(M=50, n=30, seed=1),
        "square-perfect": given(M=30, n=30, seed=2),
        "thresholds": given(seed=3, threshold=True),
        "bias": given(seed=4),
        "dead": given(seed=5),
        "zero-rows": given(seed=6),
        "lengths": given(seed=7),
        "unrecovered": given(seed=8, near=50.0),
        "opposite": given(seed=9),
        "never": given(seed=10),
    }
    found["square-perfect"]["W_dec"] = found["square-perfect"]["V"].copy()
    found["square-perfect"]["W_enc"] = found["square-perfect"]["V"].T.copy()
    found["bias"]["bias"], found["bias"]["b_dec"] = generator.standard_normal((2, 12))
    found["dead"]["b_enc"][::3] = -100.0
    found["zero-rows"]["W_dec"][[2, 7]] = 0.0
    found["lengths"]["W_dec"] *= generator.random((20, 1)) + 0.1
    found["lengths"]["V"] *= generator.random((30, 1)) + 0.1
    found["opposite"]["W_dec"] *= -1.0
    found["never"]["H"][:, ::2] = 0.0
    # Codes of either sign, coefficients of either sign; some inputs too short to have a shrinkage, some zero.
    signed = given(seed=11)
    codes = generator.standard_normal((1000, 20)) * (generator.random((1000, 20)) < 0.2)
    found["signed-codes"] = {**given(seed=11), "codes": codes}
    found["short-inputs"] = {**given(seed=11), "codes": codes}
    found["short-inputs"]["H"][:400] *= 1e-8
    found["signed-coefficients"] = {**signed, "codes": codes}
    found["signed-coefficients"]["H"] = signed["H"] * generator.choice([-1.0, 1.0], size=signed["H"].shape)
    # Constant inputs, reconstructed exactly and not.
    for name, offset in (("constant-exact", 0.0), ("constant-off", 0.5)):
        found[name] = {**given(seed=12), "codes": np.zeros((1000, 20)), "H": np.zeros((1000, 30))}
        found[name]["bias"] = np.full(12, 0.5)
        found[name]["b_dec"] = np.full(12, 0.5 + offset)
    return found


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Path:
    """The folder after tests/benchmark_peer.py has been there."""
    python = os.environ.get("SAE_LENS_PYTHON")
    if not python:
        pytest.skip("SAE_LENS_PYTHON is not set: name a Python with sae-lens to compare with the real one")
    folder = tmp_path_factory.mktemp("peer")
    (folder / "given").mkdir()
    for name, case in cases().items():
        np.savez(folder / "given" / f"{name}.npz", **case)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    script = Path(__file__).with_name("benchmark_peer.py")
    result = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def ours_and_theirs(peer: Path, name: str) -> tuple[dict[str, float], dict[str, float]]:
    with np.load(peer / "found" / f"{name}.npz") as arrays:
        case = {key: arrays[key] for key in arrays.files}
    codes, H = sparse.csr_array(case["codes"]), sparse.csr_array(case["H"])
    scores = benchmark_scores(codes, 1.0, case["W_dec"], case["b_dec"], case["X"], H, case["V"])
    ours = {key: float(value) for key, value in asdict(scores).items()}
    assert ours.pop("mcc_gap") == 0.0
    theirs = json.loads((peer / "found" / f"{name}.json").read_text())
    theirs |= theirs.pop("classification")
    theirs["f1"], theirs["l0"] = theirs.pop("f1_score"), theirs.pop("sae_l0")
    return ours, theirs


@pytest.mark.parametrize("name", [*cases(), "sampled-48", "sampled-300"])
def test_every_metric_agrees(peer, name):
    ours, theirs = ours_and_theirs(peer, name)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_the_cases_reach_what_they_are_for(peer):
    """Otherwise the agreement above would say little."""
    found = {path.stem: ours_and_theirs(peer, path.stem)[1] for path in (peer / "found").glob("*.json")}
    assert len(found) == 18
    assert found["dead"]["dead_latents"] >= 7 and found["zero-rows"]["uniqueness"] < 1
    assert found["square-perfect"]["mcc"] == pytest.approx(1) and found["square-perfect"]["uniqueness"] == 1
    assert found["unrecovered"]["mcc"] < 0.7 < found["narrow"]["mcc"]
    assert found["constant-exact"]["explained_variance"] == 1 and found["constant-off"]["explained_variance"] == 0
    assert found["never"]["true_l0"] < 0.6 * found["narrow"]["true_l0"]
    for name in ("narrow", "wide", "thresholds", "bias", "sampled-48", "sampled-300"):
        scores = found[name]
        for metric in ("precision", "recall", "f1", "accuracy", "uniqueness", "mcc"):
            assert 0.03 < scores[metric] < 0.999, (name, metric)
        assert abs(scores["explained_variance"]) > 0.01 and scores["shrinkage"] > 0.1
