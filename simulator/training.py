"""The settings of a run: everything that changes its numbers, except the data and the seed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simulator.adaptation import group_bounds
from simulator.errors import RequestError
from simulator.methods import BA, GBA, L1, Method, TopK, check_count
from simulator.sae import Activation


@dataclass(frozen=True)
class Training:
    """Everything that changes the numbers of a run, except the data and the seed."""

    method: Method
    """What differs between methods: `BA`, `GBA`, `TopK` or `L1`."""
    neurons: int
    """M, width of the network."""
    steps: int
    """T, optimiser steps."""
    batch: int = 512
    """N_t, samples per step."""
    activation: Activation = "jumprelu"
    """"jumprelu": the bias only gates and L1 and TopK keep b fixed; "relu": the bias also shifts."""
    learning_rate: float = 1e-3
    """AdamW's learning rate (the paper's is not known)."""
    decay: float = 0.0
    """Last share of the steps over which the learning rate falls linearly to 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay; with unit rows it acts on a and b_pre only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    start_scale: float = 0.1
    """Value of every output scale a_m at the start, trained from there on. Small on purpose: while the
    output is small the residual is -x and every neuron learns on its own from the inputs it fires on,
    as the theory assumes; at 1 the neurons compete from the first step on, before they point anywhere."""
    start_bias: Literal["zero", "quantile"] = "zero"
    """"zero" as in the paper; "quantile": at -Phibar^{-1}(p) rms||x|| / sqrt(d), where a random neuron
    already meets its target p (methods with targets only)."""
    unit_rows: bool = True
    """Scale the rows of W to unit norm after every step."""
    normalise: bool = True
    """Scale every input to unit norm; a zero row stays zero."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network and of the inputs."""

    def __post_init__(self) -> None:
        check_count("neurons", self.neurons)
        check_count("steps", self.steps, 0)
        check_count("batch", self.batch)
        if not isinstance(self.method, BA | GBA | TopK | L1):
            raise RequestError(f"method = {self.method!r} is no method; take BA, GBA, TopK or L1")
        for name in ("learning_rate", "eps", "start_scale"):
            if not (0 < getattr(self, name) < float("inf")):
                raise RequestError(f"{name} = {getattr(self, name)} must be positive and finite")
        if not (0 <= self.weight_decay < float("inf")):
            raise RequestError(f"weight_decay = {self.weight_decay} must be finite and not negative")
        if not (0 <= self.decay <= 1):
            raise RequestError(f"decay = {self.decay} is no share of the steps; it must lie in [0, 1]")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"betas = {self.betas} must be two numbers in [0, 1)")
        for name, allowed in (
            ("activation", ("jumprelu", "relu")),
            ("start_bias", ("zero", "quantile")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in allowed:
                raise RequestError(f"{name} = {getattr(self, name)!r} is unknown; take {' or '.join(allowed)}")
        adaptive = isinstance(self.method, BA | GBA)
        if self.start_bias == "quantile" and not adaptive:
            raise RequestError("start_bias = 'quantile' needs target frequencies; take BA, GBA or start_bias = 'zero'")
        if isinstance(self.method, GBA) and self.method.groups > self.neurons:
            raise RequestError(f"{self.method.groups} groups need at least as many neurons, not {self.neurons}")
        if isinstance(self.method, TopK) and self.method.k > self.neurons:
            raise RequestError(f"k = {self.method.k} lies above the {self.neurons} neurons; take k <= neurons")

    @property
    def trained(self) -> tuple[str, ...]:
        """Parameters that get gradient steps."""
        trains_bias = self.activation == "relu" and not isinstance(self.method, BA | GBA)
        return ("W", "a", "b_pre", "b") if trains_bias else ("W", "a", "b_pre")

    def group_bounds(self) -> list[tuple[int, int]]:
        """Neurons of each group, first and past-last; empty for methods without groups."""
        return group_bounds(self.neurons, self.method.groups) if isinstance(self.method, BA | GBA) else []

    def targets(self) -> np.ndarray | None:
        """Target activation frequency per neuron, shape (M,); None for methods without targets."""
        if not isinstance(self.method, BA | GBA):
            return None
        sizes = [stop - start for start, stop in self.group_bounds()]
        return np.repeat(self.method.target_frequencies(), sizes)


def normalise_rows(X: Tensor) -> Tensor:
    """X with every row scaled to unit norm; zero rows stay zero."""
    norms = X.norm(dim=1, keepdim=True)
    return X / torch.where(norms > 0, norms, torch.ones_like(norms))


def prepare(X: np.ndarray, training: Training) -> np.ndarray:
    """Inputs (N, d) as the network sees them: in the training's precision, unit rows where it normalises."""
    X = np.asarray(X, training.dtype)
    return normalise_rows(torch.from_numpy(X)).numpy() if training.normalise else X
