"""The settings of a run: everything that changes its numbers, except the data and the seed."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import betainccinv, ndtri
from torch import Tensor

from simulator.adaptation import group_bounds
from simulator.checks import real, whole
from simulator.errors import RequestError
from simulator.methods import BA, GBA, BatchTopK, Gated, JumpReLU, Method, TopK
from simulator.rng import stream
from simulator.sae import Activation


@dataclass(frozen=True)
class Training:
    """Everything that changes the numbers of a run, except the data and the seed."""

    method: Method
    """What differs between methods; see `simulator.methods`."""
    neurons: int
    """M, width of the network."""
    steps: int
    """T, optimiser steps."""
    batch: int = 512
    """N_t, samples per step."""
    activation: Activation | Literal["auto"] = "auto"
    """"jumprelu": the bias only gates, and methods without targets keep b at 0; "relu": the bias also shifts, and
    methods without targets train it. "auto": jumprelu for BA and GBA (the paper's), relu for the others (their own
    papers')."""
    learning_rate: float = 1e-3
    """AdamW's learning rate (the paper's is not known)."""
    decay: float = 0.0
    """Last share of the steps over which the learning rate falls linearly to 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on all that is trained (with unit rows W is scaled back)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    start_scale: float = 0.1
    """Value of every output scale a_m at the start, trained from there on. Small on purpose: while the
    output is small the residual is -x and every neuron learns on its own from the inputs it fires on,
    as the theory assumes; at 1 the neurons compete from the first step on, before they point anywhere."""
    start_bias: Literal["zero", "quantile"] = "zero"
    """"zero" as in the paper; "quantile": where a random neuron already meets its target p, see
    `quantile_bias` (methods with targets only)."""
    unit_rows: bool = True
    """Scale the rows of W to unit norm after every step."""
    normalise: bool = True
    """Scale every input to unit norm; a zero row stays zero."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network and of the inputs."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            names = ", ".join(kind.__name__ for kind in get_args(Method))
            raise RequestError(f"method = {self.method!r} is no method; take one of {names}")
        adaptive = isinstance(self.method, BA | GBA)
        if self.activation == "auto":
            object.__setattr__(self, "activation", "jumprelu" if adaptive else "relu")
        whole("neurons", self.neurons, 1)
        whole("steps", self.steps, 0)
        whole("batch", self.batch, 1)
        for name in ("learning_rate", "eps", "start_scale"):
            # Beyond 1e30 the first step leaves the range of float32.
            real(name, getattr(self, name), 0, 1e30, open_low=True)
        real("weight_decay", self.weight_decay, 0)
        real("decay", self.decay, 0, 1)
        if len(self.betas) != 2:
            raise RequestError(f"betas = {self.betas} must be two numbers, e.g. (0.9, 0.999)")
        for beta in self.betas:
            real("each of betas", beta, 0, 1, open_high=True)
        for name, allowed in (
            ("activation", ("jumprelu", "relu")),
            ("start_bias", ("zero", "quantile")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in allowed:
                raise RequestError(f"{name} = {getattr(self, name)!r} is unknown; take {' or '.join(allowed)}")
        if self.start_bias == "quantile" and not adaptive:
            raise RequestError("start_bias = 'quantile' needs target frequencies; take BA, GBA or start_bias = 'zero'")
        if isinstance(self.method, GBA) and self.method.groups > self.neurons:
            raise RequestError(f"{self.method.groups} groups need at least as many neurons, not {self.neurons}")
        if isinstance(self.method, TopK | BatchTopK):
            if self.method.k > self.neurons:
                raise RequestError(f"k = {self.method.k} lies above the {self.neurons} neurons; take k <= neurons")
            if self.method.auxiliary_k > self.neurons:
                raise RequestError(f"auxiliary_k = {self.method.auxiliary_k} lies above the {self.neurons} neurons")
        if isinstance(self.method, BatchTopK):
            self.method.levels(self.neurons)
            if self.method.kept(self.batch) < 1:
                raise RequestError(f"k = {self.method.k} keeps no pair in a batch of {self.batch}; take k >= 1 / batch")
        if isinstance(self.method, Gated) and self.activation != "relu":
            raise RequestError("Gated has biases of its own for gate and magnitude; take activation = 'relu' or 'auto'")

    @property
    def gate(self) -> Activation:
        """The activation function, "auto" resolved."""
        return "relu" if self.activation == "relu" else "jumprelu"

    @property
    def trained(self) -> tuple[str, ...]:
        """Parameters that get gradient steps."""
        names = ("W", "a", "b_pre")
        if self.gate == "relu" and not isinstance(self.method, BA | GBA):
            names += ("b",)
        if isinstance(self.method, JumpReLU):
            names += ("threshold",)
        return names + (("log_gain", "magnitude_bias") if isinstance(self.method, Gated) else ())

    def group_bounds(self) -> list[tuple[int, int]]:
        """Neurons of each group, first and past-last; empty for methods without groups."""
        return group_bounds(self.neurons, self.method.groups) if isinstance(self.method, BA | GBA) else []

    def targets(self) -> np.ndarray | None:
        """Target activation frequency per neuron, shape (M,); None for methods without targets."""
        if not isinstance(self.method, BA | GBA):
            return None
        sizes = [stop - start for start, stop in self.group_bounds()]
        return np.repeat(self.method.target_frequencies(), sizes)


def start_directions(seed: int, M: int, d: int, dtype: str) -> np.ndarray:
    """W before training: rows uniform on the sphere, (M, d), from the stream "initialisation" of the seed."""
    draw, W = stream(seed, "initialisation"), np.empty((M, d), dtype)
    for first in range(0, M, 4096):  # float64 numbers of a few rows at a time
        rows = draw.standard_normal((min(4096, M - first), d))
        W[first : first + 4096] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return W


def quantile_bias(p: np.ndarray, d: int, rms: float | None) -> np.ndarray:
    """The bias at which a neuron of random direction fires with frequency p; shape of p, never above 0.

    Args:
        p: target frequencies in (0, 1).
        d: dimension.
        rms: None for inputs of unit norm: there (w . x)^2 ~ Beta(1/2, (d-1)/2) exactly, whatever their law, and
            b = -sqrt(q) with P(Beta > q) = 2p; close to -Phibar^{-1}(p) / sqrt(d) unless p or d is small.
            Else sqrt(mean ||x||^2) of raw inputs: b = -Phibar^{-1}(p) rms / sqrt(d), the Gaussian limit.
    """
    if rms is not None:
        return np.minimum(ndtri(p) * rms / d**0.5, 0.0)
    if d == 1:
        return np.zeros_like(p)
    return -np.sqrt(betainccinv(0.5, (d - 1) / 2, np.minimum(2 * p, 1.0)))


def normalise_rows(X: Tensor) -> Tensor:
    """X with every row scaled to unit norm; zero rows stay zero."""
    norms = X.norm(dim=1, keepdim=True)
    if bool(((norms < 1e-15) | (norms > 1e15)).any()):
        # The squares of such entries leave the range of float32: bring every row to size 1 first.
        X = X / X.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
        norms = X.norm(dim=1, keepdim=True)
    return X / torch.where(norms > 0, norms, torch.ones_like(norms))


def prepare(X: np.ndarray, training: Training) -> np.ndarray:
    """Inputs (N, d) as the network sees them: in the training's precision, unit rows where it normalises."""
    X = np.asarray(X, training.dtype)
    return normalise_rows(torch.from_numpy(X)).numpy() if training.normalise else X
