"""The tied sparse autoencoder: encode, decode, loss, and the dense autograd step that is the reference.

Chen et al. 2025 (arXiv:2506.14002), section on the model:

    y_m  = w_m^T (x - b_pre) + b_m                              pre-activation
    phi  = (y_m - b_m) 1(y_m > 0)   JumpReLU, the bias is only the gate
         = y_m 1(y_m > 0)           ReLU
    f(x) = sum_m a_m w_m phi(y_m) + b_pre
    loss = mean over the samples of 1/2 ||f(x) - x||^2          (+ the method's penalty)
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from simulator.methods import L1, BatchTopK, Gated, JumpReLU, Method, TopK

Activation = Literal["jumprelu", "relu"]


@dataclass(frozen=True)
class Parameters:
    """The network: W (M, d), a (M,), b (M,), b_pre (d,); tensors of one dtype on one device.

    JumpReLU has a threshold (M,) too; Gated log_gain and magnitude_bias, both (M,).
    """

    W: Tensor
    a: Tensor
    b: Tensor
    b_pre: Tensor
    threshold: Tensor | None = None
    log_gain: Tensor | None = None
    magnitude_bias: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, in a fixed order; what the method does not have is left out."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Step(NamedTuple):
    """What one batch yields: loss, gradients, and the statistics that bias adaptation needs."""

    loss: float
    """Mean over the batch of 1/2 ||f(x) - x||^2, without penalties."""
    gradients: Parameters
    """Gradients of the whole objective; `b` is zero where the biases get none (JumpReLU)."""
    counts: Tensor
    """Samples of the batch on which each neuron is active, (M,) int64."""
    maxima: Tensor
    """max(max over the batch of y_m, 0), counted over active pairs, (M,)."""
    touched: Tensor | None = None
    """Rows whose gradient of W is not zero, boolean (M,); None: not known."""
    smallest: float | None = None
    """BatchTopK: the smallest active pre-activation; None where no pair is active."""
    objective: float | None = None
    """Loss with penalties and auxiliary losses; the reference alone knows it."""


def active_mask(y: Tensor, method: Method, threshold: Tensor | None = None) -> Tensor:
    """Which (sample, neuron) pairs are active: y > 0 (or the threshold), for TopK among the k largest of the sample.

    Args:
        y: pre-activations, shape (N, M).
        method: `TopK` and `BatchTopK` restrict further.
        threshold: (M,), in place of 0.

    Returns:
        Boolean mask, shape (N, M).
    """
    mask = y > 0 if threshold is None else y > threshold
    if isinstance(method, TopK) and method.k < y.shape[1]:
        kept = torch.zeros_like(mask)
        kept.scatter_(1, y.topk(method.k, dim=1).indices, True)
        mask &= kept
    if isinstance(method, BatchTopK) and method.kept(y.shape[0]) < y.numel():
        kept = torch.zeros_like(mask).view(-1)
        kept[y.reshape(-1).topk(method.kept(y.shape[0])).indices] = True
        mask &= kept.view_as(mask)
    return mask


def auxiliary_mask(y: Tensor, method: TopK | BatchTopK, dead: Tensor) -> Tensor:
    """Pairs of the auxiliary loss: the `auxiliary_k` largest positive pre-activations among dead neurons."""
    hidden = torch.where(dead, y, torch.full_like(y, -torch.inf))
    kept = torch.zeros_like(y, dtype=torch.bool)
    kept.scatter_(1, hidden.topk(min(method.auxiliary_k, y.shape[1]), dim=1).indices, True)
    return kept & (hidden > 0)


def reference_step(
    parameters: Parameters, X: Tensor, method: Method, activation: Activation, dead: Tensor | None = None
) -> Step:
    """One step's loss and gradients by dense autograd: slow, short, and the oracle of every engine.

    Args:
        parameters: the network.
        X: batch, shape (N, d).
        method: which pairs are active and what is penalised.
        activation: "jumprelu" or "relu".
        dead: neurons of the auxiliary loss (TopK with auxiliary_k > 0), boolean (M,).
    """
    with torch.enable_grad():
        return _reference_step(parameters, X, method, activation, dead)


def _reference_step(
    parameters: Parameters, X: Tensor, method: Method, activation: Activation, dead: Tensor | None
) -> Step:
    leaves = Parameters(**{k: v.detach().requires_grad_() for k, v in parameters.tensors().items()})
    N = X.shape[0]
    z = (X - leaves.b_pre) @ leaves.W.T
    y = z + leaves.b
    magnitude = z if activation == "jumprelu" else y

    def halves(phi: Tensor, first: int = 0, past: int | None = None) -> Tensor:
        """1/2 ||sum of a_m phi_m w_m over a range of neurons + b_pre - x||^2, mean over the samples."""
        miss = (phi[:, first:past] * leaves.a[first:past]) @ leaves.W[first:past] + leaves.b_pre - X
        return miss.square().sum() / (2 * N)

    if isinstance(method, Gated):
        assert leaves.log_gain is not None and leaves.magnitude_bias is not None
        size = leaves.log_gain.exp() * z + leaves.magnitude_bias
        mask = (y.detach() > 0) & (size.detach() > 0)
        phi, opened = torch.where(mask, size, torch.zeros_like(size)), y.relu()
        loss = halves(phi)
        price = (opened * (leaves.a.abs() * leaves.W.norm(dim=1))).sum() / N
        objective = loss + method.weight * price + halves(opened)
    else:
        mask = active_mask(y.detach(), method, None if leaves.threshold is None else leaves.threshold.detach())
        phi = torch.where(mask, magnitude, torch.zeros_like(magnitude))
        active = mask.to(phi.dtype)
        if isinstance(method, JumpReLU):
            assert leaves.threshold is not None
            # Straight through: terms of value 0 that carry the estimators' gradients.
            held = leaves.threshold.detach()
            window = (((y.detach() - held) / method.bandwidth).abs() < 0.5) / method.bandwidth
            moved = window * (leaves.threshold - held)
            phi, active = phi - held * moved, active - moved
        loss = halves(phi)
        objective = loss
        if isinstance(method, BatchTopK):
            for _, past in method.levels(y.shape[1])[:-1]:
                objective = objective + halves(phi, 0, past)
        if isinstance(method, L1):
            objective = objective + method.weight * (phi * leaves.W.norm(dim=1)).sum() / N
        if isinstance(method, JumpReLU):
            objective = objective + method.weight * active.sum() / N
        if isinstance(method, TopK | BatchTopK) and method.auxiliary_k and dead is not None and bool(dead.any()):
            spare = torch.where(auxiliary_mask(y.detach(), method, dead), magnitude, torch.zeros_like(magnitude))
            residual = (phi * leaves.a) @ leaves.W + leaves.b_pre - X
            miss = (spare * leaves.a) @ leaves.W + residual.detach()
            objective = objective + method.auxiliary_weight * miss.square().sum() / (2 * N)
    objective.backward()
    gradients = Parameters(
        **{k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in leaves.tensors().items()}
    )
    maxima = torch.where(mask, y.detach(), torch.zeros_like(z)).amax(dim=0)
    return Step(
        float(loss.detach()), gradients, mask.sum(dim=0), maxima, smallest=smallest_active(y.detach(), mask, method),
        objective=float(objective.detach()),
    )  # fmt: skip


def smallest_active(y: Tensor, mask: Tensor, method: Method) -> float | None:
    """The smallest active pre-activation of a batch, for `BatchTopK`'s running threshold."""
    return float(y[mask].min()) if isinstance(method, BatchTopK) and bool(mask.any()) else None


def encode(
    X: np.ndarray,
    W: np.ndarray,
    b: np.ndarray,
    b_pre: np.ndarray,
    activation: Activation = "jumprelu",
    k: int | None = None,
    block: int = 1 << 24,
    threshold: np.ndarray | None = None,
) -> sparse.csr_array:
    """Codes phi(y), sparse and in blocks of samples, so that N x M is never held densely.

    Args:
        X: inputs on the scale the network was trained on, shape (N, d).
        W, b, b_pre: the network, shapes (M, d), (M,), (d,).
        activation: "jumprelu" or "relu".
        k: keep only the k largest positive pre-activations of each sample (TopK).
        block: pre-activations held at once.
        threshold: (M,), a neuron is active where y > threshold in place of y > 0.

    Returns:
        Codes, shape (N, M), without the output scales a.
    """
    method: Method = L1(0.0) if k is None else TopK(k)
    rows = max(1, block // W.shape[0])
    weights, bias = torch.as_tensor(W), torch.as_tensor(b)
    bar = None if threshold is None else torch.as_tensor(threshold)
    parts = []
    for start in range(0, X.shape[0], rows):
        z = torch.as_tensor(X[start : start + rows] - b_pre).to(weights.dtype) @ weights.T
        y = z + bias
        mask = active_mask(y, method, bar)
        neuron = mask.nonzero(as_tuple=True)[1]
        values = (z if activation == "jumprelu" else y)[mask].numpy()
        pointer = np.concatenate([[0], np.cumsum(mask.sum(dim=1).numpy())])
        parts.append(sparse.csr_array((values, neuron.numpy(), pointer), shape=tuple(mask.shape)))
    if not parts:
        return sparse.csr_array((0, W.shape[0]), dtype=W.dtype)
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def decode(codes: sparse.csr_array, W: np.ndarray, a: np.ndarray, b_pre: np.ndarray) -> np.ndarray:
    """f(x) = sum_m a_m w_m phi_m + b_pre from sparse codes (N, M); shape (N, d)."""
    return codes @ (W * a[:, None]) + b_pre
