"""The training methods, as small frozen objects that say only what differs between them.

All share one loop, one tied network and one loss (`simulator.train`, `simulator.sae`):

method   which neurons are active              the biases b
BA       y_m > 0                               adapted towards one target frequency p
GBA      y_m > 0                               adapted towards K geometric target frequencies
TopK     y_m > 0 and among the k largest       trained by gradient (ReLU) or fixed (JumpReLU)
L1       y_m > 0, penalised                    trained by gradient (ReLU) or fixed (JumpReLU)
"""

from dataclasses import dataclass, field

import numpy as np

from simulator.adaptation import OneSided, Rule
from simulator.checks import real, whole
from simulator.errors import RequestError


def _frequency(name: str, value: float) -> None:
    real(f"target activation frequency {name}", value, 0, 1, open_low=True, open_high=True)


@dataclass(frozen=True)
class GBA:
    """Group Bias Adaptation (Chen et al. 2025, arXiv:2506.14002, Algorithms 1 and 2).

    K equal groups of neurons; their target activation frequencies fall geometrically from `htf`
    (group 1) to `ltf` (group K). Nothing about the features' own frequencies enters. Defaults: the
    range of the paper's language-model runs.
    """

    htf: float = 0.1
    """Highest target frequency."""
    ltf: float = 1e-3
    """Lowest target frequency."""
    groups: int = 10
    """Number of groups K."""
    rule: Rule = field(default_factory=OneSided)
    """How a bias moves; the paper's one-sided rule by default."""
    buffer: int = 5_120
    """B, pre-activations per neuron between two adaptations (10 batches of 512; the authors report 50)."""

    def __post_init__(self) -> None:
        _frequency("htf", self.htf)
        _frequency("ltf", self.ltf)
        whole("groups", self.groups, 1)
        whole("buffer", self.buffer, 1)
        if self.ltf > self.htf:
            raise RequestError(f"ltf = {self.ltf} lies above htf = {self.htf}; the lowest target goes last")
        if self.groups == 1 and self.ltf != self.htf:
            raise RequestError(
                f"one group cannot reach from htf = {self.htf} to ltf = {self.ltf}; take ltf = htf or groups >= 2"
            )

    def target_frequencies(self) -> np.ndarray:
        """p_1 > ... > p_K, geometric, shape (K,)."""
        return np.geomspace(self.htf, self.ltf, self.groups)


@dataclass(frozen=True)
class BA:
    """Bias Adaptation: the one-group case of `GBA`, every neuron with the same target frequency p."""

    p: float
    """Target activation frequency."""
    rule: Rule = field(default_factory=OneSided)
    """How a bias moves; the paper's one-sided rule by default."""
    buffer: int = 5_120
    """B, pre-activations per neuron between two adaptations (10 batches of 512; the authors report 50)."""
    groups: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        _frequency("p", self.p)
        whole("buffer", self.buffer, 1)

    def target_frequencies(self) -> np.ndarray:
        """(p,)."""
        return np.array([self.p])


@dataclass(frozen=True)
class TopK:
    """Per sample only the k largest positive pre-activations are active (Gao et al. 2024, arXiv:2406.04093).

    The optional auxiliary loss lets dead neurons (not active for `dead_after` samples) explain the
    residual e = x - f(x): auxiliary_weight * 1/2 ||e - sum of the auxiliary_k largest dead ones||^2,
    with e held constant.
    """

    k: int
    """Active neurons per sample, at most."""
    auxiliary_k: int = 0
    """Dead neurons per sample that try to explain the residual; 0 switches the auxiliary loss off."""
    auxiliary_weight: float = 1 / 32
    """Weight of the auxiliary loss (1/32 in the source)."""
    dead_after: int = 100_000
    """Samples without activation after which a neuron counts as dead for the auxiliary loss."""

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        whole("auxiliary_k", self.auxiliary_k, 0)
        whole("dead_after", self.dead_after, 1)
        real("auxiliary_weight", self.auxiliary_weight, 0)


@dataclass(frozen=True)
class L1:
    """Sparsity from the penalty weight * sum_m ||w_m|| phi(y_m), mean over the samples."""

    weight: float
    """lambda; the loss is on the scale of the inputs (unit norm by default)."""

    def __post_init__(self) -> None:
        real("l1", self.weight, 0)


Method = BA | GBA | TopK | L1
AdaptiveMethod = BA | GBA
