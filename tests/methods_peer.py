"""The other side of test_methods_peer.py, run by a Python that has sae-lens: `python methods_peer.py FOLDER`.

Reads   FOLDER/CASE.json (architecture, config: fields of its training config, coefficients),
        FOLDER/CASE.safetensors (the network under sae-lens' names, X (N, d), dead (M,) where there is a mask).
Writes  FOLDER/answers/CASE.safetensors: of one training_forward_pass in the precision of X
        active (N, M), codes (N, M), threshold (batch top-k), for every term of the loss and for their sum `total`
        TERM (its value) and TERM/PARAMETER (its gradient; zero where the term does not see the parameter).
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file, save_file


def training_sae(architecture, config, network):
    """The training autoencoder with these weights. Assigned, not copied: sae-lens would round JumpReLU's thresholds."""
    sae_class, config_class = get_sae_training_class(architecture)
    M, d = network["W_dec"].shape
    dtype = str(network["W_dec"].dtype).removeprefix("torch.")
    sae = sae_class(config_class(d_in=d, d_sae=M, dtype=dtype, apply_b_dec_to_input=True, **config))
    assert {name for name, _ in sae.named_parameters()} == set(network)
    for name, value in network.items():
        setattr(sae, name, torch.nn.Parameter(value))
    return sae


def answer(file, into):
    case = json.loads(file.read_text())
    network = load_file(file.with_suffix(".safetensors"))
    X, dead = network.pop("X"), network.pop("dead", None)
    sae = training_sae(case["architecture"], case["config"], network)
    output = sae.training_forward_pass(TrainStepInput(X, case["coefficients"], dead, 1, False))
    found = {"codes": output.feature_acts.detach(), "active": output.feature_acts.detach() > 0}
    if hasattr(sae, "topk_threshold"):
        found["threshold"] = sae.topk_threshold
    parameters = dict(sae.named_parameters())
    for term, value in (output.losses | {"total": output.loss}).items():
        assert value.dtype == X.dtype
        found[term] = value.detach()
        gradients = [None] * len(parameters)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            found[f"{term}/{name}"] = torch.zeros_like(parameter) if gradient is None else gradient
    save_file({name: value.detach().clone().contiguous() for name, value in found.items()}, into)


def main(folder):
    torch.set_num_threads(1)
    (folder / "answers").mkdir()
    for file in sorted(folder.glob("*.json")):
        answer(file, folder / "answers" / f"{file.stem}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
