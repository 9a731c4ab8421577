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

from simulator.checks import real


def _check_rates(gamma_plus: float, gamma_minus: float) -> None:
    real("gamma_plus", gamma_plus, 0, open_low=True)
    real("gamma_minus", gamma_minus, 0, open_low=True)


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
        real("epsilon", self.epsilon, 0, 1, open_high=True)

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


def adapt(
    b: Tensor,
    q: Tensor,
    r: Tensor,
    targets: Tensor,
    groups: list[tuple[int, int]],
    rule: Rule,
    lowest: float = -1.0,
) -> Tensor:
    """Algorithm 2, A(b, B): the biases after one adaptation.

    Args:
        b: biases, shape (M,).
        q: measured activation frequency of each neuron over the buffer, shape (M,).
        r: max(max over the buffer of y_m, 0), shape (M,).
        targets: target activation frequency p_k of each neuron, shape (M,).
        groups: first and past-last neuron of each group, covering all neurons.
        rule: `OneSided` (the paper's) or `TwoSided`.
        lowest: the lower clamp, -1 for inputs of unit norm; -||x|| where inputs are larger, since beyond it
            a unit neuron cannot fire. A bias that is lower already is left there.

    Returns:
        New biases, shape (M,), in [lowest, 0] wherever they were moved.
    """
    group_mean = torch.zeros_like(r)
    for start, stop in groups:
        group = r[start:stop]
        fired = (group > 0).sum()
        group_mean[start:stop] = group.sum() / fired.clamp(min=1)
    lowered = torch.minimum(b, (b - rule.gamma_minus * r).clamp(min=lowest))
    raised = torch.maximum(b, (b + rule.gamma_plus * group_mean).clamp(max=0.0))
    return torch.where(q > targets, lowered, torch.where(q < rule.floor(targets), raised, b))
