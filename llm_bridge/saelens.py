"""SAELens folders (cfg.json and sae_weights.safetensors) as an `Autoencoder`, and an `Autoencoder` as such a folder.

Compared with sae-lens 6.54, whose `SAE.load_from_disk` reads what is written here and gives the same codes:

    v   = norm(x)                            none | x sqrt(d) / ||x|| | (x - mean x) / (std x + 1e-5)
    h   = (v - b_dec) W_enc + b_enc          (without b_dec where apply_b_dec_to_input is False)
    phi = relu(h) 1(h > threshold)           jumprelu;  relu(h): standard;  relu of the k largest: topk
    x^  = norm^-1(phi W_dec + b_dec)

Weights travel in safetensors and settings in JSON: nothing is ever unpickled.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from llm_bridge.autoencoder import Autoencoder, Rows
from simulator.errors import RequestError
from simulator.storage import save_tensors, write_atomically

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
INPUT = "sae_recovery_input.safetensors"
"""Beside the two: what is done to the activations before SAELens' network sees them, where it cannot do that itself."""
SCALER = "activation_scaler.json"
"""SAELens' own file with the factor of "expected_average_only_in", beside a checkpoint in the middle of training."""

_WORKING = "standard, topk and jumprelu work (batchtopk and matryoshka_batchtopk too: SAELens saves them as jumprelu)"
_ROWS: dict[str, Rows] = {
    "none": "none", "expected_average_only_in": "none", "constant_norm_rescale": "rms", "layer_norm": "layer_norm"
}  # fmt: skip
_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64
}  # fmt: skip
# The release whose layout is followed. Without it SAELens takes a file for one from before 6.0: no metadata then.
_LAYOUT = "6.0.0"
_DEFAULT_K = 100  # SAELens' own, where a topk file names none

logger = logging.getLogger(__name__)


def read_saelens(folder: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder of a SAELens folder, as `SAE.load_from_disk` of sae-lens 6.54 computes it.

    Weights are rounded to the dtype that cfg.json names, as SAELens does, and then held in float32. For
    "expected_average_only_in" SAELens multiplies inputs by a factor in training and folds it into the weights
    at the end; such a folder that was not folded is read with the factor of `activation_scaler.json` where that lies
    beside it, and with factor 1 otherwise, as SAELens does.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.

    Returns:
        The autoencoder, and cfg.json with every default filled in.

    Raises:
        RequestError: a file is missing or damaged, tensors are missing, of a wrong shape or not finite, or an
            architecture, normalisation or reshaping that cannot be expressed.
    """
    folder = Path(folder)
    config = _read_config(folder)
    file = folder / CONFIG
    architecture = config["architecture"]
    M, d = config["d_sae"], config["d_in"]
    shapes = {"W_enc": (d, M), "b_enc": (M,), "W_dec": (M, d), "b_dec": (d,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (M,)
    weights = folder / WEIGHTS
    tensors = _read_tensors(weights, shapes, _DTYPES[config["dtype"]], f"architecture {architecture}")
    k = config["k"] if architecture == "topk" else None
    if k is not None and (type(k) is not int or not 1 <= k <= M):
        raise RequestError(f"{file}: k = {k!r} of {M} neurons; a whole number with 1 <= k <= {M} is needed")
    before = _read_input(folder, config, d)
    scale = before.get("scale")
    return Autoencoder(
        np.ascontiguousarray(tensors["W_enc"].T),
        tensors["W_dec"],
        tensors["b_enc"],
        tensors["b_dec"],
        threshold=tensors.get("threshold"),
        k=k,
        offset=before.get("offset"),
        scale=_factor(folder, config) if scale is None else float(scale[0]),
        rows=_ROWS[config["normalize_activations"]],
        subtract_b_dec=config["apply_b_dec_to_input"],
        rank_by_decoder_norm=architecture == "topk" and config["rescale_acts_by_decoder_norm"],
    ), config


def write_saelens(folder: Path, autoencoder: Autoencoder, metadata: Mapping[str, Any]) -> None:
    """A folder that SAELens loads with `SAE.load_from_disk` and that gives the codes of `Autoencoder.encode`.

    With u = (x - o) s before the rows are scaled, r = sqrt(d), and primes for what is written:

        rows "none":  W_enc' = s W_enc, W_dec' = W_dec / s, b_dec' = b_dec / s + o, and where b_dec is not taken off
                      before encoding b_enc' = b_enc - s W_enc o: the codes and the magnitudes stay what they were
        rows "unit":  SAELens scales to norm r instead of 1: W_enc' = W_enc / r, W_dec' = r W_dec, b_dec' = r b_dec
        rows "rms", "layer_norm":  as they are

    Where rows are scaled, no bias can stand for o, which comes before: it goes to `sae_recovery_input.safetensors`,
    and the metadata say that SAELens' network expects x - o. The same holds for s before a layer norm; before the
    other two s has no effect. `rank_by_decoder_norm` is folded into the weights, as SAELens does when it saves.
    A row of zeros stays zero here; SAELens divides it by its norm and gets NaN.

    Args:
        folder: made if needed; holds no SAELens file yet.
        autoencoder: the network.
        metadata: free entries for cfg.json's metadata, such as model_name and hook_name; JSON only.

    Raises:
        RequestError: the folder holds such files, no SAELens architecture has both k and thresholds, weights are not
            finite, the metadata are no JSON, or nothing can be written there.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, INPUT):
        if (folder / name).exists():
            raise RequestError(f"{folder / name} exists; nothing is overwritten: name another folder")
    threshold, k = autoencoder.threshold, autoencoder.k
    if k is not None and threshold is not None and (threshold > 0).any():
        raise RequestError("both k and thresholds above 0: no architecture of SAELens has both; drop one of them")
    architecture = "topk" if k is not None else "standard" if threshold is None else "jumprelu"
    tensors, before = _exported(autoencoder)
    if architecture == "jumprelu":
        tensors["threshold"] = np.asarray(threshold, np.float32)
    for name, tensor in {**tensors, **before}.items():
        if not np.isfinite(tensor).all():
            raise RequestError(f"{name} holds NaN or infinity; only finite weights can be written")
    config: dict[str, Any] = {
        "architecture": architecture, "d_in": autoencoder.d, "d_sae": autoencoder.M,
        "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": bool(autoencoder.subtract_b_dec),
        "normalize_activations": {"unit": "constant_norm_rescale", "rms": "constant_norm_rescale"}.get(
            autoencoder.rows, autoencoder.rows
        ),
        "reshape_activations": "none",
    }  # fmt: skip
    if k is not None:
        config |= {"k": int(k), "rescale_acts_by_decoder_norm": False}
    config["metadata"] = _metadata(metadata, before)
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the metadata are no JSON ({error}); text, numbers, lists and mappings are") from None
    save_tensors(folder / WEIGHTS, tensors, {"for": "SAELens"})
    if before:
        save_tensors(folder / INPUT, before, {"for": "the input of SAELens' network"})
    # Last: a folder with cfg.json is complete.
    write_atomically(folder / CONFIG, text.encode())


def _exported(autoencoder: Autoencoder) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """SAELens' tensors, and what has to be done to the activations before ("offset", "scale")."""
    # Folded in float64: an offset that is large beside the activations must not cost digits twice.
    encoder, decoder = autoencoder.encoder.astype(np.float64), autoencoder.decoder.astype(np.float64)
    b_enc, b_dec = autoencoder.b_enc.astype(np.float64), autoencoder.b_dec.astype(np.float64)
    scale, offset, before = float(autoencoder.scale), autoencoder.offset, {}
    if autoencoder.rank_by_decoder_norm:
        norms = np.linalg.norm(decoder, axis=1)
        encoder, b_enc = encoder * norms[:, None], b_enc * norms
        decoder = decoder / np.where(norms > 0, norms, 1)[:, None]
    if autoencoder.rows == "none":
        encoder, decoder, b_dec = encoder * scale, decoder / scale, b_dec / scale
        if offset is not None:
            if not autoencoder.subtract_b_dec:
                b_enc = b_enc - encoder @ offset.astype(np.float64)
            b_dec = b_dec + offset
    else:
        if autoencoder.rows == "unit":
            root = math.sqrt(autoencoder.d)
            encoder, decoder, b_dec = encoder / root, decoder * root, b_dec * root
        if offset is not None and offset.any():
            before["offset"] = offset.astype(np.float32)
        if autoencoder.rows == "layer_norm" and scale != 1:
            before["scale"] = np.array([scale], np.float32)
    with np.errstate(over="ignore"):  # infinity is refused afterwards
        tensors = {
            "W_enc": np.ascontiguousarray(encoder.T, np.float32), "b_enc": b_enc.astype(np.float32),
            "W_dec": decoder.astype(np.float32), "b_dec": b_dec.astype(np.float32),
        }  # fmt: skip
    return tensors, before


def _metadata(metadata: Mapping[str, Any], before: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The caller's entries, the layout's release, and how the input is prepared."""
    ours = metadata.get("sae_recovery")
    kept = {k: v for k, v in ours.items() if not k.startswith("input")} if isinstance(ours, Mapping) else {}
    if before:
        first = {"offset": "subtract the tensor offset", "scale": "multiply by the number scale"}
        steps = ", then ".join(first[name] for name in ("offset", "scale") if name in before)
        kept["input"] = f"{steps} of {INPUT} first; undo that on the reconstruction"
        kept |= {"input_file": INPUT, "input_tensors": list(before)}
    else:
        kept["input"] = "the activations as they are"
    # SAELens would fill in its own version for the training where none is given.
    return {"sae_lens_training_version": None, **metadata, "sae_lens_version": _LAYOUT, "sae_recovery": kept}


def _read_config(folder: Path) -> dict[str, Any]:
    """cfg.json with SAELens' defaults filled in and every value checked."""
    file = folder / CONFIG
    config = _read_json(file, "a SAELens folder has it beside " + WEIGHTS)
    metadata = config.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise RequestError(f"{file}: metadata = {metadata!r}; a mapping is needed")
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version")
    if not version or str(version).split(".")[0] in tuple("012345"):
        config = _modernised(config, file)
    config = {
        "architecture": "standard", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", **config, "metadata": metadata,
    }  # fmt: skip
    if not isinstance(config["architecture"], str) or config["architecture"] not in ("standard", "topk", "jumprelu"):
        raise RequestError(f"{file}: architecture {config['architecture']!r} cannot be read; {_WORKING}")
    for name in ("d_in", "d_sae"):
        value = config.get(name)
        if type(value) is not int or value < 1:
            told = f"{name} = {value!r}" if name in config else f"no {name}"
            raise RequestError(f"{file} has {told}; a whole number >= 1 is needed")
    if "dtype" not in config:
        raise RequestError(f'{file} names no dtype; add "dtype": "float32" (or float16, bfloat16)')
    dtype = str(config["dtype"]).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise RequestError(f"{file}: dtype {config['dtype']!r} is unknown; one of {', '.join(_DTYPES)} is needed")
    norm = config["normalize_activations"]
    if not isinstance(norm, str) or norm not in _ROWS:
        raise RequestError(f"{file}: normalize_activations {norm!r} cannot be read; {', '.join(_ROWS)} work")
    if config["reshape_activations"] != "none":
        raise RequestError(
            f"{file}: reshape_activations {config['reshape_activations']!r} cannot be read; only 'none' works "
            "(activations of single attention heads are another shape than (N, d))"
        )
    if config["architecture"] == "topk":
        if "k" not in config:
            logger.warning("%s names no k; %d is taken, as SAELens does", file, _DEFAULT_K)
        config = {"k": _DEFAULT_K, "rescale_acts_by_decoder_norm": False, **config}
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(name, False), bool):
            raise RequestError(f"{file}: {name} = {config[name]!r}; true or false is needed")
    return {**config, "dtype": dtype}


def _modernised(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A cfg.json from before SAELens 6.0, in today's terms."""
    config = dict(config)
    hook = str(config.get("hook_name", config.get("hook_point", "")))
    config.setdefault("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    norm = config.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        config["normalize_activations"] = "expected_average_only_in" if norm else "none"
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    settings = config.get("activation_fn_kwargs")
    if activation == "topk" and isinstance(settings, dict) and settings.get("k") is not None:
        config |= {"architecture": "topk", "k": settings["k"]}
    elif activation not in ("relu", None) and not (activation == "topk" and config.get("architecture") == "topk"):
        raise RequestError(f"{file}: activation_fn {activation!r} cannot be read; relu, and topk with its k, work")
    return config


def _read_json(file: Path, wanted: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{file} does not exist; {wanted}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RequestError(f"{file} is no readable JSON ({reason}); {wanted}") from None
    if not isinstance(found, dict):
        raise RequestError(f"{file} holds a {type(found).__name__}; a JSON mapping is needed")
    return found


def _read_tensors(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, owner: str
) -> dict[str, np.ndarray]:
    """Exactly these tensors, rounded to a dtype, as float32 arrays; names and shapes are checked before any is read."""
    found: dict[str, np.ndarray] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            held = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            extra = set(held) - set(shapes)
            # SAELens once wrote a factor that does nothing, and skips it.
            if "scaling_factor" in extra and bool((opened.get_tensor("scaling_factor") == 1).all()):
                extra.remove("scaling_factor")
            missing = set(shapes) - set(held)
            if missing or extra:
                told = f"lacks {', '.join(sorted(missing))}" if missing else f"holds {', '.join(sorted(extra))} too"
                raise RequestError(f"{file} {told}; {owner} has exactly {', '.join(shapes)}")
            for name, shape in shapes.items():
                if held[name] != shape:
                    raise RequestError(f"{file}: {name} has shape {held[name]}; {CONFIG} asks for {shape}")
                tensor = opened.get_tensor(name)
                if not tensor.is_floating_point():
                    raise RequestError(f"{file}: {name} has dtype {tensor.dtype}; floating-point numbers are needed")
                found[name] = tensor.to(dtype).to(torch.float32).numpy()
                if not np.isfinite(found[name]).all():
                    raise RequestError(f"{file}: {name} holds NaN or infinity in {dtype}; finite weights are needed")
    except FileNotFoundError:
        raise RequestError(f"{file} does not exist; {CONFIG} and {Path(file).name} belong together") from None
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"{file} is truncated or damaged ({reason}); restore it, or save it again") from None
    return found


def _read_input(folder: Path, config: Mapping[str, Any], d: int) -> dict[str, np.ndarray]:
    """Offset and factor that `write_saelens` put beside the network; nothing where the metadata name no such file."""
    ours = config["metadata"].get("sae_recovery")
    if not isinstance(ours, dict) or "input_file" not in ours:
        return {}
    file = folder / INPUT
    if not file.is_file():
        raise RequestError(f"{file} does not exist, but {CONFIG} names it; copy it from where the folder was written")
    names, known = ours.get("input_tensors"), {"offset": (d,), "scale": (1,)}
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in known for n in names):
        raise RequestError(f"{folder / CONFIG}: input_tensors = {names!r}; a list of {', '.join(known)} is needed")
    return _read_tensors(file, {name: known[name] for name in names}, torch.float32, "the input")


def _factor(folder: Path, config: Mapping[str, Any]) -> float:
    """The factor of inputs that SAELens trains with and has not folded into the weights yet; else 1."""
    if config["normalize_activations"] != "expected_average_only_in":
        return 1.0
    file = folder / SCALER
    if not file.is_file():
        logger.warning("%s: expected_average_only_in, but no %s; inputs are taken as they are", folder, SCALER)
        return 1.0
    scaler = _read_json(file, "remove it, or restore it")
    factor = scaler.get("scaling_factor")
    if factor is None and not scaler.get("has_whitening"):
        return 1.0
    if scaler.get("has_whitening") or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise RequestError(f"{file} holds no plain scaling_factor; a number > 0 without whitening is needed")
    return float(factor)
