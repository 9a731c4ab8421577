"""Finished runs as autoencoders: report folders of `sae-recovery train`, and folders that SAELens wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_bridge.autoencoder import Autoencoder
from simulator.checks import whole
from simulator.errors import RequestError
from simulator.storage import load_tensors

FIT, RESULT, SAELENS = "fit.safetensors", "result.json", "cfg.json"


def of_network(
    W: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    b_pre: np.ndarray,
    *,
    gate: str,
    threshold: np.ndarray | None = None,
    k: int | None = None,
    offset: np.ndarray | None = None,
    normalise: bool = True,
) -> Autoencoder:
    """The tied network of `simulator.sae` as an `Autoencoder`: same codes, same reconstruction.

    Args:
        W, a, b, b_pre: (M, d), (M,), (M,), (d,).
        gate: "jumprelu" (the bias only gates) or "relu" (it also shifts).
        threshold: (M,), a neuron is active where its pre-activation lies above it; None: above 0.
        k: neurons kept per sample (TopK).
        offset: (d,), taken off the activations first.
        normalise: whether the network sees rows of unit norm.
    """
    W, a, b, b_pre = (np.asarray(value, np.float32) for value in (W, a, b, b_pre))
    jump = gate == "jumprelu"
    if jump and (b > 0).any():
        raise RequestError("a JumpReLU gate with a positive bias lets negative codes through; biases <= 0 are needed")
    bar = None if threshold is None else np.asarray(threshold, np.float32)
    if jump:
        bar = -b if bar is None else bar - b
    return Autoencoder(
        W, W * a[:, None], np.zeros_like(b) if jump else b, b_pre, threshold=bar, k=k,
        offset=None if offset is None else np.asarray(offset, np.float32), rows="unit" if normalise else "none",
    )  # fmt: skip


def load_run(folder: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder of a folder, and what is known about it.

    Returns:
        Autoencoder, and result.json of a run, or for a SAELens folder {"saelens": cfg.json}.

    Raises:
        RequestError: no finished run and no SAELens folder, a damaged one, or a run that diverged.
    """
    folder = Path(folder)
    if not (folder / RESULT).is_file() and (folder / SAELENS).is_file():
        from llm_bridge.saelens import read_saelens

        autoencoder, known = read_saelens(folder)
        return autoencoder, {"saelens": known}
    if not (folder / RESULT).is_file() or not (folder / FIT).is_file():
        raise RequestError(
            f"{folder} holds no finished run ({RESULT} and {FIT}) and no SAELens folder ({SAELENS}); "
            "sae-recovery train makes a run"
        )
    result = _result(folder / RESULT)
    tensors, header = load_tensors(folder / FIT)
    arrays, training = _checked(tensors, header, folder / FIT)
    if header.get("status") == "diverged" or not all(np.isfinite(value).all() for value in arrays.values()):
        raise RequestError(f"the run in {folder} diverged; train again with a lower --learning-rate")
    method = training["method"]
    return of_network(
        arrays["W"], arrays["a"], arrays["b"], arrays["b_pre"],
        gate="relu" if training["activation"] == "relu" else "jumprelu", threshold=arrays.get("threshold"),
        k=method["k"] if method["type"] == "TopK" else None, offset=arrays.get("offset"),
        normalise=training["normalise"],
    ), result  # fmt: skip


def _result(file: Path) -> dict[str, Any]:
    """result.json of a single run, with all that is read from it later."""
    try:
        result = json.loads(file.read_text())
        config, origin = result["config"], result.get("origin", {})
        method_text(result)
        if not all(isinstance(part, dict) for part in (config["data"], origin)):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise RequestError(f"{file} is damaged or no result of a run; train again into another folder") from None
    return result


def _checked(
    tensors: Mapping[str, Any], header: Any, file: Path
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:  # fmt: skip
    """The arrays of a fit, shapes known to fit, and how it was trained."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}
    M, d = arrays["W"].shape if "W" in arrays and arrays["W"].ndim == 2 else (0, 0)
    shapes = {"W": (M, d), "a": (M,), "b": (M,), "b_pre": (d,)}
    shapes |= {name: shape for name, shape in (("offset", (d,)), ("threshold", (M,))) if name in arrays}
    if not M or any(name not in arrays or arrays[name].shape != shape for name, shape in shapes.items()):
        raise RequestError(f"{file} holds no W (M x d) with its a, b and b_pre; train again into another folder")
    try:
        training = header["training"]
        known = (training["activation"], training["normalise"], training["method"]["type"])
        if known[2] == "TopK":
            whole("k", training["method"]["k"], 1, M)
    except (KeyError, TypeError):
        raise RequestError(f"{file} does not say how it was trained; train again into another folder") from None
    return {name: arrays[name] for name in shapes}, training


def method_text(result: Mapping[str, Any]) -> str:
    """Method and width in words: `GBA 0.1..0.001 in 10 groups, M = 4096`."""
    if "saelens" in result:
        return f"SAELens {result['saelens'].get('architecture', 'standard')}"
    training = result["config"]["training"]
    method = training["method"]
    if "pilot_samples" in result:  # the targets that the pilot chose, not those that were asked for
        method = {**method, **{key: result[key] for key in ("htf", "ltf", "groups")}}
    name = method["type"]
    told = {
        "GBA": lambda: f"GBA {method['htf']:g}..{method['ltf']:g} in {method['groups']} groups",
        "BA": lambda: f"BA p = {method['p']:g}",
        **dict.fromkeys(("TopK", "BatchTopK", "Matryoshka"), lambda: f"{name} K = {method['k']:g}"),
        **dict.fromkeys(("L1", "JumpReLU", "Gated"), lambda: f"{name} lambda = {method['weight']:g}"),
    }.get(name, lambda: name)()  # fmt: skip
    return f"{told}, M = {training['neurons']}"
