"""One step of every method against the real training autoencoder of sae-lens: same weights and batch, same numbers.

Needs a Python with sae-lens in an environment of its own, which does the other side (methods_peer.py):
    SAE_LENS_PYTHON=/path/to/python pytest tests/test_methods_peer.py

How the two are brought together. Here W is tied and a_m scales a neuron's output; there, with b_dec subtracted from
the input,
    W_enc = W^T,    W_dec = diag(a) W,    b_enc = b (Gated: b_gate, with b_mag, r_mag),    b_dec = b_pre.
Their loss is the square without the 1/2, so their coefficients are twice ours and their loss and gradients halve to
    dL/dW = (dL/dW_enc)^T + diag(a) dL/dW_dec,    dL/da_m = w_m . (dL/dW_dec)_m,    dL/db_pre = dL/db_dec.

L1: their price |a_m| ||w_m|| phi_m counts the output scale, ours ||w_m|| phi_m does not. The price's part is therefore
taken from a second network of theirs with W_dec = W, and from it a gets no gradient.
Auxiliary loss: their coefficient is multiplied by min(dead neurons / auxiliary_k, 1) with auxiliary_k = d // 2.
"""

import json
import os
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engine import network
from torch import Tensor

from simulator.engine import make_engine
from simulator.methods import L1, BatchTopK, Gated, JumpReLU, Matryoshka, Method, TopK
from simulator.sae import Activation, Parameters, Step, active_mask
from simulator.sparse import SparseEngine

ENGINES = ("reference", "torch", "sparse")
SHAPES = ((12, 24, 64), (90, 16, 128), (150, 32, 256))
"""M, d, N."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
MARGIN = {torch.float64: 1e-12, torch.float32: 5e-7}
"""Distance of every pre-activation from the next decision about it: some units of rounding."""


@dataclass(frozen=True)
class Case:
    method: Method
    bias: float = -0.1
    activation: Activation = "relu"
    """"jumprelu" with biases of 0, where it is the same function."""
    dead: int = 0
    """Neurons of the auxiliary loss, every one positive on every sample if there are at most auxiliary_k."""
    by_norm: bool = False
    """Theirs selects by y ||w_dec||, the default there: the same for unit rows and a = 1."""
    shape: tuple[int, int, int] = SHAPES[0]
    seed: int = 0
    dtype: torch.dtype = torch.float64


def auxiliary(method: TopK | BatchTopK, shape: tuple[int, int, int]) -> Method:
    return replace(method, auxiliary_k=shape[1] // 2, auxiliary_weight=0.7)


def variants(shape: tuple[int, int, int]) -> dict[str, Case]:
    M, d, _ = shape
    nested = (M // 6, M // 3, M)
    many, few = (3 * M) // 5, d // 2 - 3
    fixed = {"bias": 0.0, "activation": "jumprelu"}
    found = {
        "topk": Case(TopK(3)),
        "topk, fixed biases": Case(TopK(3), **fixed),
        "topk, by norm": Case(TopK(3), by_norm=True),
        "topk, more than are positive": Case(TopK(M // 2), bias=-0.3),
        "topk, few dead": Case(auxiliary(TopK(4), shape), dead=few),
        "batch topk": Case(BatchTopK(2.3)),
        "batch topk, fixed biases": Case(BatchTopK(2.3), **fixed),
        "batch topk, by norm": Case(BatchTopK(2.3), by_norm=True),
        "batch topk, more than are positive": Case(BatchTopK(M / 3), bias=-0.3),
        "batch topk, few dead": Case(auxiliary(BatchTopK(1.7), shape), dead=few),
        "matryoshka": Case(Matryoshka(2.2)),
        "matryoshka, fixed biases": Case(Matryoshka(2.2, widths=nested), **fixed),
        "matryoshka, by norm": Case(Matryoshka(2.2, widths=nested), by_norm=True),
        "matryoshka, more than are positive": Case(Matryoshka(M / 3, widths=nested), bias=-0.3),
        "matryoshka, few dead": Case(auxiliary(Matryoshka(1.7, widths=nested), shape), dead=few),
        "jumprelu": Case(JumpReLU(0.05, bandwidth=0.2)),
        "jumprelu, fixed biases": Case(JumpReLU(0.02, bandwidth=0.1), **fixed),
        "gated": Case(Gated(0.05)),
        "l1": Case(L1(0.1)),
        "l1, fixed biases": Case(L1(0.1), **fixed),
    }
    if d < M:
        for name, method in (("topk", TopK(4)), ("batch topk", BatchTopK(1.7)), ("matryoshka", Matryoshka(1.7))):
            found[f"{name}, many dead"] = Case(auxiliary(method, shape), bias=0.0, dead=many)
    return {name: replace(case, shape=shape) for name, case in found.items()}


NAMES = list(variants(SHAPES[-1]))
CASES = {
    f"{name}, {shape[0]}, {seed}, {str(dtype)[6:]}": replace(case, seed=seed, dtype=dtype)
    for shape in SHAPES
    for name, case in variants(shape).items()
    for seed in (1, 2)
    for dtype in (torch.float64, torch.float32)
}
# The one known difference: dead neurons with negative pre-activations.
BELOW = Case(auxiliary(TopK(3), SHAPES[1]), bias=-0.4, dead=54, shape=SHAPES[1], seed=3)


@cache
def problem(case: Case) -> tuple[Parameters, Tensor, Tensor | None]:
    """Network, batch, dead neurons. Rows are of unit norm for odd seeds; signs of a are mixed."""
    M, d, N = case.shape
    unit = case.by_norm or case.seed % 2 == 1
    parameters, X = network(M, d, N, case.seed, case.bias, unit, method=case.method)
    draw = np.random.default_rng(100 + case.seed)
    a, b = parameters.a.abs() * torch.from_numpy(draw.choice([-1.0, 1.0], M)), parameters.b
    if case.by_norm:
        a = torch.ones_like(a)
    if case.activation == "jumprelu":
        b = torch.zeros_like(b)
    dead = None
    if case.dead:
        dead = torch.zeros(M, dtype=torch.bool)
        dead[torch.from_numpy(draw.permutation(M)[: case.dead])] = True
        if case.dead <= d // 2:
            lowest = ((X - parameters.b_pre) @ parameters.W.T).amin(dim=0)
            b = torch.where(dead, 0.02 - lowest, b)
    parameters = replace(parameters, a=a, b=b)
    return Parameters(**{k: v.to(case.dtype) for k, v in parameters.tensors().items()}), X.to(case.dtype), dead


def to_peer(case: Case) -> tuple[str, dict, dict, dict[str, Tensor]]:
    """sae-lens' name of the architecture, its config, coefficients, and the network with its batch."""
    parameters, X, dead = problem(case)
    method, M, half = case.method, case.shape[0], case.shape[1] // 2
    weights = {
        "W_enc": parameters.W.T,
        "W_dec": parameters.a[:, None] * parameters.W,
        "b_enc": parameters.b,
        "b_dec": parameters.b_pre,
        "X": X,
    }
    if dead is not None:
        weights["dead"] = dead
    if isinstance(method, JumpReLU):
        assert parameters.threshold is not None
        weights["threshold"] = parameters.threshold
        config = {"jumprelu_bandwidth": method.bandwidth, "jumprelu_sparsity_loss_mode": "step"}
        return "jumprelu", config, {"l0": 2 * method.weight}, weights
    if isinstance(method, Gated):
        assert parameters.log_gain is not None and parameters.magnitude_bias is not None
        weights["b_gate"] = weights.pop("b_enc")
        weights |= {"r_mag": parameters.log_gain, "b_mag": parameters.magnitude_bias}
        return "gated", {}, {"l1": 2 * method.weight}, weights
    if isinstance(method, L1):
        return "standard", {"lp_norm": 1.0}, {"l1": 2 * method.weight}, weights
    assert isinstance(method, TopK | BatchTopK)
    config: dict = {"k": method.k, "rescale_acts_by_decoder_norm": case.by_norm}
    if case.dead:
        config["aux_loss_coefficient"] = method.auxiliary_weight / min(case.dead / half, 1)
    if isinstance(method, TopK):
        return "topk", config, {}, weights
    config["topk_threshold_lr"] = 1.0
    if not isinstance(method, Matryoshka):
        return "batchtopk", config, {}, weights
    config["matryoshka_widths"] = [past for _, past in method.levels(M)]
    return "matryoshka_batchtopk", config, {}, weights


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """What tests/methods_peer.py answers; importing sae-lens takes ten seconds, so once."""
    python = os.environ.get("SAE_LENS_PYTHON")
    if not python:
        pytest.skip("SAE_LENS_PYTHON is not set: name a Python with sae-lens to compare with the real one")
    return ask(python, tmp_path_factory.mktemp("methods"))


def ask(python: str, folder: Path) -> dict[str, dict[str, Tensor]]:
    for name, case in (CASES | {"below": BELOW}).items():
        architecture, config, coefficients, weights = to_peer(case)
        networks = {name: weights}
        if isinstance(case.method, L1):
            networks[f"{name}, price"] = weights | {"W_dec": problem(case)[0].W}
        for title, tensors in networks.items():
            about = {"architecture": architecture, "config": config, "coefficients": coefficients}
            (folder / f"{title}.json").write_text(json.dumps(about))
            save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / f"{title}.safetensors")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    script = Path(__file__).with_name("methods_peer.py")
    result = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return {file.stem: load_file(file) for file in (folder / "answers").iterdir()}


def expected(name: str, answers: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Loss, objective and gradients of ours, from theirs."""
    case, answer = CASES[name], answers[name]
    parameters = problem(case)[0]
    W, a = parameters.W, parameters.a
    bias = "b_gate" if isinstance(case.method, Gated) else "b_enc"

    def gradients(answer: dict[str, Tensor], term: str, scales: Tensor) -> dict[str, Tensor]:
        theirs = {"b": bias, "b_pre": "b_dec", "log_gain": "r_mag", "magnitude_bias": "b_mag", "threshold": "threshold"}
        decoder = answer[f"{term}/W_dec"]
        found = {"W": answer[f"{term}/W_enc"].T + scales[:, None] * decoder, "a": (decoder * W).sum(dim=1)}
        return found | {ours: answer[f"{term}/{own}"] for ours, own in theirs.items() if f"{term}/{own}" in answer}

    if isinstance(case.method, L1):
        price = answers[f"{name}, price"]
        found = gradients(answer, "mse_loss", a)
        for ours, gradient in gradients(price, "l1_loss", torch.ones_like(a)).items():
            if ours != "a":
                found[ours] = found[ours] + gradient
        total = answer["mse_loss"] + price["l1_loss"]
    else:
        found, total = gradients(answer, "total", a), answer["total"]
    if case.activation == "jumprelu":
        found["b"] = torch.zeros_like(found["b"])  # not trained
    return {"loss": answer["mse_loss"] / 2, "objective": total / 2} | {k: v / 2 for k, v in found.items()}


def deviations(step: Step, wanted: dict[str, Tensor]) -> dict[str, float]:
    """Largest deviation over the largest value: of the loss, the objective (the reference knows it), each gradient."""
    loss, objective = (torch.tensor(value or 0.0, dtype=torch.float64) for value in (step.loss, step.objective))
    ours = {"loss": loss} | ({} if step.objective is None else {"objective": objective}) | step.gradients.tensors()
    assert ours.keys() >= wanted.keys() - {"objective"}
    found = {}
    for name, value in ours.items():
        error, size = float((value - wanted[name]).abs().max()), float(wanted[name].abs().max())
        assert np.isfinite(error)
        found[name] = error / size if size else error
    return found


def take_step(case: Case, engine_name: str) -> tuple[Step, bool]:
    """Ours, and whether the sparse engine worked on pairs alone."""
    parameters, X, dead = problem(case)
    engine = make_engine(engine_name, case.method, case.activation, torch.device("cpu"), threads=1)  # type: ignore[arg-type]
    step = engine.step(parameters, X, dead)
    return step, isinstance(engine, SparseEngine) and not any(any(blocks) for blocks in engine.dense)


def pre_activations(case: Case) -> Tensor:
    parameters, X, _ = problem(case)
    return (X - parameters.b_pre) @ parameters.W.T + parameters.b


def named(kind: str) -> list[str]:
    """The cases of a kind: shapes, seeds, precisions."""
    names = [name for name in CASES if name.rsplit(", ", 3)[0] == kind]
    assert len(names) in (8, 12)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", NAMES)
def test_a_step_equals_theirs(kind, engine, answers):
    pairs_alone = False
    for name in named(kind):
        case, answer = CASES[name], answers[name]
        step, from_pairs = take_step(case, engine)
        pairs_alone |= from_pairs
        assert torch.equal(step.counts, answer["active"].sum(dim=0)), name
        tolerance = TOLERANCE[case.dtype]
        for what, error in deviations(step, expected(name, answers)).items():
            assert error <= tolerance, f"{name}: {what} deviates by {error}"
        if not isinstance(case.method, Gated):
            torch.testing.assert_close(step.maxima, answer["codes"].amax(dim=0), rtol=tolerance, atol=tolerance)
        if isinstance(case.method, BatchTopK) and not case.by_norm:
            assert step.smallest == pytest.approx(float(answer["threshold"]), abs=tolerance / 10)
    assert engine != "sparse" or pairs_alone or "fixed biases" in kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_the_same_latents_are_active(kind, answers):
    for name in named(kind):
        assert_same_latents(name, CASES[name], answers[name]["active"])


def assert_same_latents(name: str, case: Case, active: Tensor) -> None:
    parameters, _X, _ = problem(case)
    y = pre_activations(case)
    if isinstance(case.method, Gated):
        assert parameters.log_gain is not None and parameters.magnitude_bias is not None
        size = (y - parameters.b) * parameters.log_gain.exp() + parameters.magnitude_bias
        mask = (y > 0) & (size > 0)
    else:
        mask = active_mask(y, case.method, parameters.threshold)
    assert torch.equal(mask, active), name
    M, _, N = case.shape
    assert 0 < int(active.sum()) < M * N * 0.9
    if "more than are positive" in name:
        assert isinstance(case.method, TopK | BatchTopK)
        assert int(active.sum()) < case.method.k * N * 0.95
        assert torch.equal(active, y > 0) or isinstance(case.method, TopK)


@pytest.mark.slow
def test_what_the_cases_exercise(answers):
    for name, case in CASES.items():
        answer = answers[name]
        if case.dead:
            value = answer["auxiliary_reconstruction_loss"]
            assert value > 0.01 * answer["mse_loss"]
        if isinstance(case.method, JumpReLU):
            assert (answer["total/threshold"] != 0).sum() > case.shape[0] / 2
        if isinstance(case.method, Gated | L1):
            assert answer["l1_loss"] > 0.001 * answer["mse_loss"]
        if isinstance(case.method, Matryoshka):
            assert sum(key.startswith("inner_mse_loss") and "/" not in key for key in answer) >= 2


@pytest.mark.slow
def test_dead_neurons_below_zero_differ(answers):
    # Theirs lets the largest dead pre-activations explain the residual whatever their sign, ours the positive ones.
    parameters, X, dead = problem(BELOW)
    assert dead is not None and isinstance(BELOW.method, TopK)
    k, y = BELOW.method.auxiliary_k, pre_activations(BELOW)
    largest, where = torch.where(dead, y, torch.full_like(y, -torch.inf)).topk(k, dim=1)
    assert 0.2 < float((largest < 0).double().mean()) < 0.9

    def value(codes: Tensor) -> float:
        """weight * mean ||sum of the codes' outputs - (x - f(x))||^2."""
        miss = (torch.zeros_like(y).scatter(1, where, codes) * parameters.a) @ parameters.W - residual
        return BELOW.method.auxiliary_weight * float(miss.square().sum(dim=1).mean())  # type: ignore[union-attr]

    f = (active_mask(y, BELOW.method) * y * parameters.a) @ parameters.W + parameters.b_pre
    residual = X - f
    theirs = float(answers["below"]["auxiliary_reconstruction_loss"])
    step, _ = take_step(BELOW, "reference")
    assert step.objective is not None
    assert theirs == pytest.approx(value(largest), rel=1e-12)
    assert 2 * (step.objective - step.loss) == pytest.approx(value(largest.clamp(min=0)), rel=1e-12)
    assert abs(value(largest) / value(largest.clamp(min=0)) - 1) > 1e-4


@pytest.mark.parametrize("kind", NAMES)
def test_nothing_lies_at_an_edge(kind):
    # Where it did, rounding alone would decide what is active.
    for name in named(kind):
        assert distance_from_edges(CASES[name]) > MARGIN[CASES[name].dtype], name


def distance_from_edges(case: Case) -> float:
    """Of every pre-activation from where the decisions about it change; asserts that enough dead ones are positive."""
    parameters, X, dead = problem(case)
    exact = Parameters(**{k: v.double() for k, v in parameters.tensors().items()})
    z = (X.double() - exact.b_pre) @ exact.W.T
    y, method = z + exact.b, case.method
    edges = [y if exact.threshold is None else y - exact.threshold]
    if isinstance(method, JumpReLU):
        edges += [edges[0] - method.bandwidth / 2, edges[0] + method.bandwidth / 2]
    if isinstance(method, Gated):
        assert exact.log_gain is not None and exact.magnitude_bias is not None
        edges.append(z * exact.log_gain.exp() + exact.magnitude_bias)

    def gap(values: Tensor, k: int) -> None:
        """Between the k-th and the next of the positive values of a row."""
        if k < values.shape[1]:
            high = values.clamp(min=0).topk(k + 1, dim=1).values[:, k - 1 :]
            edges.append((high[:, 0] - high[:, 1])[high[:, 0] > 0])

    if isinstance(method, TopK):
        gap(y, method.k)
    if isinstance(method, BatchTopK):
        gap(y.reshape(1, -1), method.kept(case.shape[2]))
    if dead is not None and isinstance(method, TopK | BatchTopK):
        hidden = torch.where(dead, y, torch.zeros_like(y))
        gap(hidden, method.auxiliary_k)
        positive = (hidden > 0).sum(dim=1)
        assert int(positive.min()) >= min(method.auxiliary_k, case.dead)
    return min(float(edge.abs().min()) for edge in edges if edge.numel())
