"""Reader for the folders that `SyntheticModel.save` of sae_lens.synthetic (6.x) writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from simulator.checks import finite_array, real, whole
from simulator.coefficients import ClippedNormal
from simulator.copula import Copula, GivenFactors
from simulator.dictionaries import GivenDictionary
from simulator.errors import RequestError
from simulator.hierarchy import Hierarchy
from simulator.supports import Bernoulli
from simulator.world import World

CONFIG, WEIGHTS, HIERARCHY = "synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json"
# |F_i|^2 and the stored variance of the own part must sum to 1 up to the rounding of the folder's dtype.
_ROUNDING = 0.02


def read_synthetic_model(folder: str | Path) -> World:
    """The world that `SyntheticModel.load_from_disk(folder)` samples from: the same law, other random numbers.

    V, the bias, the frequencies to draw with, the copula's factors and the hierarchy are those of the files; the
    dictionary does not depend on the seed. Magnitudes are not stored: where they are random (`folded_normal`), they
    are drawn again as there, by torch's CPU generator from the configuration's seed + 1 (std) and + 2 (mean). A node
    of the hierarchy without the flag for scaling does not scale, as there.

    Raises:
        RequestError: no such folder, a damaged file, files that do not fit each other, an unknown law of the
            magnitudes, or random magnitudes without a seed.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise RequestError(f"{folder} is no saved SyntheticModel: it needs the files {CONFIG} and {WEIGHTS}")
    config = _json(folder / CONFIG)
    weights = _tensors(folder / WEIGHTS)
    for name in ("num_features", "hidden_dim"):
        if name not in config:
            raise RequestError(f"{folder / CONFIG} has no entry {name}; save the model again with SyntheticModel.save")
    n, d = (whole(f"{name} of {folder / CONFIG}", config[name], 1) for name in ("num_features", "hidden_dim"))
    for name, shape in (("feature_vectors", (n, d)), ("bias", (d,)), ("firing_probabilities", (n,))):
        if name not in weights or weights[name].shape != shape:
            found = f"of shape {weights[name].shape}" if name in weights else "missing"
            raise RequestError(f"{folder / WEIGHTS}: {name} is {found}; the configuration needs shape {shape}")
    mean = _magnitudes(config, "mean_firing_magnitudes", 1.0, 2, n)
    std = _magnitudes(config, "std_firing_magnitudes", 0.0, 1, n)
    frequencies = weights["firing_probabilities"]
    if "correlation_factor" in weights:
        support = Copula.of(frequencies, _factors(weights, folder / WEIGHTS, n))
    elif config.get("correlation") is not None:
        raise RequestError(f"{folder / WEIGHTS} lacks correlation_factor, which the configuration asks for")
    else:
        support = Bernoulli.of(frequencies)
    hierarchy = None
    if (folder / HIERARCHY).is_file():
        hierarchy = _hierarchy(folder / HIERARCHY, n, mean)
    elif config.get("hierarchy") is not None:
        raise RequestError(f"{folder} lacks {HIERARCHY}, which its configuration asks for; copy that file too")
    return World(
        n,
        d,
        support,
        GivenDictionary(weights["feature_vectors"]),
        ClippedNormal(mean, std),
        unit_rows=False,
        hierarchy=hierarchy,
        bias=weights["bias"].tolist() if weights["bias"].any() else 0.0,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{path} is no readable JSON file ({reason}); save the model again") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds a {type(content).__name__}; it must hold a JSON object")
    return content


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the file in float64."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(torch.float64).numpy() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{path} is no readable .safetensors file ({reason}); save the model again") from None


def _factors(weights: dict[str, np.ndarray], path: Path, n: int) -> GivenFactors:
    F, own = weights["correlation_factor"], weights.get("correlation_diag")
    if F.ndim != 2 or len(F) != n or own is None or own.shape != (n,):
        raise RequestError(f"{path}: correlation_factor and correlation_diag must be there for all {n} features")
    if np.abs((F * F).sum(axis=1) + own - 1).max() > _ROUNDING:
        raise RequestError(f"{path}: the correlation has variances |F_i|^2 + diag_i other than 1; only 1 is supported")
    return GivenFactors(F)


def _magnitudes(config: dict[str, Any], name: str, default: float, seed_offset: int, n: int) -> Float[np.ndarray, " n"]:
    """One value per feature as `generate_magnitudes` makes them, in float32 as there."""
    law = config.get(name, default)
    if not isinstance(law, dict):
        return np.full(n, np.float32(real(f"{name} of the configuration", law)), dtype=np.float64)
    kind = law.get("generator_name")
    if kind not in _LAWS:
        known = ", ".join(_LAWS)
        raise RequestError(f"{name}: the law {kind!r} of the magnitudes is unknown; known are a number, {known}")
    needed, make = _LAWS[kind]
    numbers = [real(f"{key} of {name}", law.get(key, fallback)) for key, fallback in needed.items()]
    generator = torch.Generator()
    if kind == "folded_normal":
        if config.get("seed") is None:
            raise RequestError(
                f"{name} is random and not saved, and the configuration has no seed; build the model with a seed"
            )
        generator.manual_seed(whole("seed of the configuration", config["seed"], 0, 2**62) + seed_offset)
    values = make(n, generator, *numbers)
    ends = [law.get(key) for key in ("min_value", "max_value")]
    if any(end is not None for end in ends):
        values = values.clamp(*[None if end is None else real(f"clamp of {name}", end) for end in ends])
    return values.numpy().astype(np.float64)


def _exponential(n: int, generator: torch.Generator, start: float, end: float) -> torch.Tensor:
    return start * (end / start) ** torch.linspace(0, 1, n)


# Parameters with their defaults (NaN where there is none) and what makes n values of them.
_LAWS: dict[str, tuple[dict[str, float], Callable[..., torch.Tensor]]] = {
    "constant": ({"value": 1.0}, lambda n, _, value: torch.full((n,), value)),
    "linear": ({"start": np.nan, "end": np.nan}, lambda n, _, start, end: torch.linspace(start, end, n)),
    "exponential": ({"start": np.nan, "end": np.nan}, _exponential),
    "folded_normal": (
        {"mean": 0.0, "std": 0.1},
        lambda n, generator, mean, std: (mean + torch.randn(n, generator=generator) * std).abs(),
    ),
}


def _hierarchy(path: Path, n: int, means: np.ndarray) -> Hierarchy | None:
    """The forest of the file. Nodes without a feature pass on the parent above them; their children may exclude
    each other all the same."""
    parents, groups = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    scaled, seen = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    roots = _json(path).get("roots")
    todo = [(node, -1, -1, False) for node in _nodes(roots, path)]
    made = 0
    while todo:
        node, parent, group, scales = todo.pop()
        feature = node.get("feature_index")
        if feature is not None:
            feature = whole(f"feature_index of {path}", feature, 0, n - 1)
            if seen[feature]:
                raise RequestError(f"{path} names feature {feature} twice; every feature has one place in the trees")
            seen[feature] = True
            parents[feature], groups[feature], scaled[feature] = parent, group, scales and parent >= 0
            parent = feature
        children, group = _nodes(node.get("children", []), path), -1
        siblings = sum(child.get("feature_index") is not None for child in children)
        if node.get("mutually_exclusive_children", False) and siblings > 1:
            group, made = made, made + 1
        scales = bool(node.get("scale_children_by_parent", False))
        todo += [(child, parent, group, scales) for child in children]
    return Hierarchy(parents, groups, scaled, finite_array("means", means, 1)) if seen.any() else None


def _nodes(value: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(node, dict) for node in value):
        raise RequestError(f"{path}: roots and children must be lists of nodes; save the model again")
    return value
