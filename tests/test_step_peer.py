"""One training step of every method against the real sae-lens: same weights, same batch, same loss and gradients.

Needs a Python with sae-lens in an environment of its own, which does the other side (step_peer.py):
    SAE_LENS_PYTHON=/path/to/python pytest tests/test_step_peer.py

Ours has tied weights w_m with output scales a_m and the loss 1/2 ||f(x) - x||^2; the same network there is
W_enc = W^T, W_dec = a W with the input centred by b_dec, and its loss without the 1/2: twice ours, with penalties twice
as heavy. By the chain rule dL/dw_m = (dL/dW_enc)_m + a_m (dL/dW_dec)_m and dL/da_m = (dL/dW_dec)_m . w_m.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from simulator.engine import make_engine
from simulator.methods import L1, BatchTopK, Gated, JumpReLU, Matryoshka, TopK
from simulator.sae import Parameters, reference_step

pytestmark = pytest.mark.slow

N, D = 96, 20
AUXILIARY = {"auxiliary_k": D // 2}


def weight(dead: int, coefficient: float = 1.0) -> float:
    """Of our auxiliary loss for sae-lens': its coefficient, less where fewer than d / 2 are dead."""
    return coefficient * min(dead / (D // 2), 1.0)


# name: (method, M, number of dead neurons, sae-lens' settings, its coefficients)
PLAIN = {"rescale_acts_by_decoder_norm": False}
CASES = {
    "topk": (TopK(5), 64, 0, {"k": 5, **PLAIN}, {}),
    "topk, narrow": (TopK(3), 12, 0, {"k": 3, **PLAIN}, {}),
    "topk, many dead": (
        TopK(5, **AUXILIARY, auxiliary_weight=weight(30, 0.5)), 64, 30, {"k": 5, "aux_loss_coefficient": 0.5, **PLAIN},
        {},
    ),
    "topk, few dead": (TopK(5, auxiliary_k=4, auxiliary_weight=weight(4)), 64, 4, {"k": 5, **PLAIN}, {}),
    "batch topk": (BatchTopK(4.5), 64, 0, {"k": 4.5, **PLAIN}, {}),
    "batch topk, few positive": (BatchTopK(40), 64, 0, {"k": 40, **PLAIN}, {}),
    "batch topk, dead": (
        BatchTopK(4, **AUXILIARY, auxiliary_weight=weight(20)), 64, 20, {"k": 4, **PLAIN}, {}
    ),
    "matryoshka": (
        Matryoshka(4, widths=(8, 24, 64)), 64, 0, {"k": 4, "matryoshka_widths": [8, 24, 64], **PLAIN}, {}
    ),
    "matryoshka, dead": (
        Matryoshka(4, **AUXILIARY, auxiliary_weight=weight(20), widths=(16, 64)), 64, 20,
        {"k": 4, "matryoshka_widths": [16, 64], "use_matryoshka_aux_loss": False, **PLAIN}, {},
    ),
    "jumprelu": (
        JumpReLU(0.02, bandwidth=0.25), 64, 0,
        {"jumprelu_bandwidth": 0.25, "jumprelu_sparsity_loss_mode": "step", "pre_act_loss_coefficient": None},
        {"l0": 0.04},
    ),
    "gated": (Gated(0.03), 64, 0, {}, {"l1": 0.06}),
    "gated, narrow": (Gated(0.3), 12, 0, {}, {"l1": 0.6}),
    "l1": (L1(0.05), 64, 0, {}, {"l1": 0.1}),
}  # fmt: skip
PRECISIONS = ("float64", "float32")


def network(method, M, dead, precision, seed):
    draw = np.random.default_rng(seed)
    W = draw.standard_normal((M, D))
    lengths = draw.uniform(0.5, 2.0, (M, 1)) if isinstance(method, L1) else 1.0
    W *= lengths / np.linalg.norm(W, axis=1, keepdims=True)
    X = draw.standard_normal((N, D))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    # Their L1 is on the decoder's norm a |w|, ours on |w|: equal at a = 1.
    given = {"W": W, "a": np.ones(M) if isinstance(method, L1) else draw.uniform(0.2, 1.5, M), "X": X}
    given |= {"b": draw.uniform(-0.25, 0.05, M), "b_pre": 0.1 * draw.standard_normal(D), "dead": np.zeros(M)}
    given["dead"][draw.permutation(M)[:dead]] = 1
    # Theirs takes negative pre-activations of dead latents too, ours positive ones only: here all are positive.
    given["b"] += 2.5 * given["dead"]
    if isinstance(method, JumpReLU):
        given["threshold"] = draw.uniform(0, 0.3, M).astype(np.float32)  # kept in float32 over there
    if isinstance(method, Gated):
        given["a"] *= draw.choice([-1, 1], M)
        given |= {"log_gain": 0.3 * draw.standard_normal(M), "magnitude_bias": 0.2 * draw.standard_normal(M)}
    dtype = getattr(torch, precision)
    return {name: torch.as_tensor(value).to(dtype).contiguous() for name, value in given.items()}


def seeds(name):
    return (11, 12) if name in ("topk", "batch topk", "jumprelu", "gated", "l1") else (11,)


RUNS = [(name, precision, seed) for name in CASES for precision in PRECISIONS for seed in seeds(name)]


def stem(name, precision, seed):
    return f"{name}-{precision}-{seed}".replace(" ", "_").replace(",", "")


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Path:
    """The folder after tests/step_peer.py has been there."""
    python = os.environ.get("SAE_LENS_PYTHON")
    if not python:
        pytest.skip("SAE_LENS_PYTHON is not set: name a Python with sae-lens to compare with the real one")
    folder = tmp_path_factory.mktemp("steps")
    for name, precision, seed in RUNS:
        method, M, dead, config, coefficients = CASES[name]
        about = {"method": type(method).__name__, "config": config, "coefficients": coefficients}
        save_file(
            network(method, M, dead, precision, seed), folder / f"{stem(name, precision, seed)}.safetensors",
            {key: json.dumps(value) for key, value in about.items()},
        )  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("step_peer.py")
    result = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def expected_gradients(method, given, answer):
    """Theirs as gradients of our parameters, halved. Their L1 penalty prices a too, which is taken off again."""
    W, a = given["W"], given["a"]
    decoder = answer["grad_W_dec"]
    found = {
        "W": answer["grad_W_enc"].T + a[:, None] * decoder,
        "a": (decoder * W).sum(dim=1),
        "b_pre": answer["grad_b_dec"],
        "b": answer["grad_b_gate" if "log_gain" in given else "grad_b_enc"],
    }
    if isinstance(method, L1):
        phi = ((given["X"] - given["b_pre"]) @ W.T + given["b"]).relu()
        found["a"] = found["a"] - 2 * method.weight * phi.mean(dim=0) * W.norm(dim=1)
    if "threshold" in given:
        found["threshold"] = answer["grad_threshold"].to(W.dtype)
    if "log_gain" in given:
        found |= {"log_gain": answer["grad_r_mag"], "magnitude_bias": answer["grad_b_mag"]}
    return {name: value / 2 for name, value in found.items()}


@pytest.mark.parametrize(("name", "precision", "seed"), RUNS)
def test_same_loss_and_gradients(peer, name, precision, seed):
    method = CASES[name][0]
    file = peer / f"{stem(name, precision, seed)}.safetensors"
    given, answer = load_file(file), load_file(file.with_suffix(".answer.safetensors"))
    own = {
        key: given[key] for key in ("W", "a", "b", "b_pre", "threshold", "log_gain", "magnitude_bias") if key in given
    }
    parameters, dead = Parameters(**own), given["dead"].bool()
    tolerance = 1e-10 if precision == "float64" and "threshold" not in given else 1e-5
    expected = expected_gradients(method, given, answer)
    reference = reference_step(parameters, given["X"], method, "relu", dead)
    assert reference.objective is not None
    assert 2 * reference.objective == pytest.approx(float(answer["loss"]), rel=tolerance)
    engines = [make_engine(kind, method, "relu", torch.device("cpu"), 1) for kind in ("torch", "sparse")]
    for step in [reference, *(engine.step(parameters, given["X"], dead) for engine in engines)]:
        assert 2 * step.loss == pytest.approx(float(answer["mse"]), rel=tolerance)
        assert torch.equal(step.counts, answer["active"].sum(dim=0))
        for key, value in expected.items():
            error = float((step.gradients.tensors()[key] - value).abs().max())
            assert error <= tolerance * float(value.abs().max()), f"{key}: {error} against {float(value.abs().max())}"
