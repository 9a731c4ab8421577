"""The names that the command line knows: figures of the paper, and tables (presets). Light: nothing is imported yet."""

import importlib
from typing import Any

from simulator.errors import RequestError

FIGURES = (
    "bias-adaptation", "loss-sparsity", "consistency", "group-ablation", "selectivity", "zscore", "imbalanced-toy",
    "co-occurrence", "width", "frequency-spread", "dynamics",
)  # fmt: skip
"""Each is figures/NAME.py with its EXPERIMENT; in the order of the report."""
OWN_FIGURES = ("proxies", "targets")
"""Not in the paper, and so not in the report on it."""
ROBUSTNESS = ("cooccurrence", "coherence", "dictionary", "frequencies", "coefficients", "noise")
# module of figures/, its attribute, key in it
PRESETS = {
    "first-recovery": ("first_recovery", "EXPERIMENT", ""),
    "thousand-features": ("thousand_features", "EXPERIMENT", ""),
    "imbalanced-toy": ("imbalanced_toy", "EXPERIMENT", ""),
    "imbalanced-toy-trials": ("imbalanced_toy", "TRIALS", ""),
    "resonance": ("resonance", "EXPERIMENT", ""),
    "resonance-buffer": ("resonance", "BUFFER_EXPERIMENT", ""),
    **{f"robustness-{name}": ("robustness", "EXPERIMENTS", name) for name in ROBUSTNESS},
}
SIZES = ("tiny", "small", "paper")


def load_preset(name: str) -> Any:
    """The Experiment of a preset."""
    module, attribute, key = PRESETS[name]
    found = getattr(importlib.import_module(f"figures.{module}"), attribute)
    return found[key] if key else found


def load_figure(name: str) -> Any:
    """The Experiment of a figure.

    Raises:
        RequestError: an unknown name.
    """
    if name not in FIGURES + OWN_FIGURES:
        hint = f"; {name} is a preset: sae-recovery verify --preset {name}" if name in PRESETS else ""
        raise RequestError(f"unknown figure {name!r}; there are {', '.join(FIGURES + OWN_FIGURES)}{hint}")
    return importlib.import_module(f"figures.{name.replace('-', '_')}").EXPERIMENT
