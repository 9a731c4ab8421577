"""Bias adaptation: the biases are not trained but steered towards target activation frequencies.

Algorithm 2 of Chen et al. 2025 (arXiv:2506.14002). From a buffer of pre-activations y_m each
neuron m has its measured activation frequency q_m = mean of 1(y_m > 0) and its clipped maximum
r_m = max(max y_m, 0); each group k has rbar_k, the mean of r_m over its neurons with r_m > 0.

Conventions where the algorithm is silent: a group in which no neuron fired has rbar_k = 0, so that
nothing in it is raised (0/0 in the paper); the raised bias is clamped from above at 0 (the figure
prints a maximum, but the range of the clamps, [-1, 0], leaves only the minimum).
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from simulator.errors import RequestError


def _check_rates(gamma_plus: float, gamma_minus: float) -> None:
    for name, value in (("gamma_plus", gamma_plus), ("gamma_minus", gamma_minus)):
        if not (0 < value < float("inf")):
            raise RequestError(f"{name} = {value} is no step size; it must be positive and finite, e.g. 0.01")


@dataclass(frozen=True)
class OneSided:
    """The paper's rule: a target is a ceiling, not a set point.

    q_m > p_k        b_m <- max(b_m - gamma_minus r_m, -1)
    q_m < epsilon    b_m <- min(b_m + gamma_plus rbar_k, 0)

    Between epsilon and p_k nothing happens. Defaults: gamma 0.01 and epsilon 1e-6, as the authors report.
    """

    gamma_plus: float = 0.01
    gamma_minus: float = 0.01
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check_rates(self.gamma_plus, self.gamma_minus)
        if not (0 <= self.epsilon < 1):
            raise RequestError(f"epsilon = {self.epsilon} is no frequency; it must lie in [0, 1), e.g. 1e-6")

    def floor(self, targets: Tensor) -> Tensor:
        """Frequency below which a bias is raised, per neuron, shape (M,)."""
        return torch.full_like(targets, self.epsilon)


@dataclass(frozen=True)
class TwoSided:
    """A controller towards the target: like the paper's rule, but raised as soon as q_m < p_k.

    q_m > p_k    b_m <- max(b_m - gamma_minus r_m, -1)
    q_m < p_k    b_m <- min(b_m + gamma_plus rbar_k, 0)

    Not in the paper; the control that tells the effect of the one-sidedness.
    """

    gamma_plus: float = 0.01
    gamma_minus: float = 0.01

    def __post_init__(self) -> None:
        _check_rates(self.gamma_plus, self.gamma_minus)

    def floor(self, targets: Tensor) -> Tensor:
        """Frequency below which a bias is raised, per neuron, shape (M,)."""
        return targets


Rule = OneSided | TwoSided


def group_bounds(neurons: int, groups: int) -> list[tuple[int, int]]:
    """First and past-last neuron of each of K contiguous groups whose sizes differ by at most one."""
    edges = [round(k * neurons / groups) for k in range(groups + 1)]
    return list(itertools.pairwise(edges))


def adapt(b: Tensor, q: Tensor, r: Tensor, targets: Tensor, groups: list[tuple[int, int]], rule: Rule) -> Tensor:
    """Algorithm 2, A(b, B): the biases after one adaptation.

    Args:
        b: biases, shape (M,).
        q: measured activation frequency of each neuron over the buffer, shape (M,).
        r: max(max over the buffer of y_m, 0), shape (M,).
        targets: target activation frequency p_k of each neuron, shape (M,).
        groups: first and past-last neuron of each group, covering all neurons.
        rule: `OneSided` (the paper's) or `TwoSided`.

    Returns:
        New biases, shape (M,), in [-1, 0] wherever they were moved.
    """
    group_mean = torch.zeros_like(r)
    for start, stop in groups:
        group = r[start:stop]
        fired = (group > 0).sum()
        group_mean[start:stop] = group.sum() / fired.clamp(min=1)
    lowered = (b - rule.gamma_minus * r).clamp(min=-1.0)
    raised = (b + rule.gamma_plus * group_mean).clamp(max=0.0)
    return torch.where(q > targets, lowered, torch.where(q < rule.floor(targets), raised, b))
