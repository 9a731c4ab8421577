"""The other side of test_step_peer.py, run by a Python that has sae-lens: `python step_peer.py FOLDER`.

Reads   FOLDER/CASE.safetensors (W, a, b, b_pre, X, dead, and what else a method has) with the method in its metadata.
Writes  FOLDER/CASE.answer.safetensors: loss, which latents are active, the gradient of every parameter of sae-lens.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from safetensors import safe_open
from safetensors.torch import save_file

KINDS = {
    "TopK": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "BatchTopK": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "Matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
    "JumpReLU": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "Gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "L1": (StandardTrainingSAE, StandardTrainingSAEConfig),
}


def step(file):
    with safe_open(file, "pt") as saved:
        given = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        about = {name: json.loads(text) for name, text in saved.metadata().items()}
    X, W = given["X"], given["W"]
    kind, config = KINDS[about["method"]]
    dtype = str(X.dtype).removeprefix("torch.")
    sae = kind(config(d_in=X.shape[1], d_sae=len(W), apply_b_dec_to_input=True, dtype=dtype, **about["config"]))
    values = {"W_enc": W.T, "W_dec": given["a"][:, None] * W, "b_dec": given["b_pre"]}
    if about["method"] == "Gated":
        values |= {"b_gate": given["b"], "b_mag": given["magnitude_bias"], "r_mag": given["log_gain"]}
    else:
        values["b_enc"] = given["b"]
    if "threshold" in given:
        values["threshold"] = given["threshold"]
    parameters = dict(sae.named_parameters())
    assert set(parameters) == set(values), set(parameters) ^ set(values)
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    dead = given["dead"].bool()
    out = sae.training_forward_pass(TrainStepInput(X, about["coefficients"], dead if dead.any() else None, 0, False))
    out.loss.backward()
    answer = {f"grad_{name}": p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    answer |= {"loss": out.loss.detach(), "mse": out.losses["mse_loss"].detach(), "active": out.feature_acts != 0}
    save_file({name: value.contiguous() for name, value in answer.items()}, file.with_suffix(".answer.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        if not case.name.endswith(".answer.safetensors"):
            step(case)
