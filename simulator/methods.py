"""The training methods, as small frozen objects that say only what differs between them.

All share one loop, one tied network and one loss (`simulator.train`, `simulator.sae`):

method   which neurons are active              the biases b
BA       y_m > 0                               adapted towards one target frequency p
GBA      y_m > 0                               adapted towards K geometric target frequencies
TopK     y_m > 0 and among the k largest       trained by gradient (ReLU) or fixed (JumpReLU)
L1       y_m > 0, penalised                    trained by gradient (ReLU) or fixed (JumpReLU)
BatchTopK, Matryoshka   y_m > 0 and among the k N largest of a batch      as TopK
JumpReLU   y_m > threshold_m, trained          as TopK
Gated    gate and magnitude with biases of their own, all trained
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
    with e held constant. Only positive pre-activations count there, as everywhere; SAELens takes negative ones too.
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
class BatchTopK:
    """The k N largest positive pre-activations of a batch of N are active (Bussmann et al. 2024, arXiv:2412.06410).

    A sample may have more or fewer than k. What is active must not depend on the other samples once training is
    over, so a common threshold stands in for the selection then: the running mean, over the steps, of the smallest
    active pre-activation. The auxiliary loss is that of `TopK`.
    """

    k: float
    """Active neurons per sample, mean over a batch, at most."""
    auxiliary_k: int = 0
    """Dead neurons per sample that try to explain the residual; 0 switches the auxiliary loss off."""
    auxiliary_weight: float = 1 / 32
    """Weight of the auxiliary loss."""
    dead_after: int = 100_000
    """Samples without activation after which a neuron counts as dead for the auxiliary loss."""
    threshold_rate: float = 0.01
    """Share of the newest batch in the running threshold (0.01 in SAELens); over the first 1 / threshold_rate steps the
    threshold is their plain mean."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", float(real("k", self.k, 0, open_low=True)))
        whole("auxiliary_k", self.auxiliary_k, 0)
        whole("dead_after", self.dead_after, 1)
        real("auxiliary_weight", self.auxiliary_weight, 0)
        real("threshold_rate", self.threshold_rate, 0, 1, open_low=True)

    def kept(self, N: int) -> int:
        """Pairs that stay active in a batch of N samples: the whole part of k N."""
        return int(self.k * N)

    def levels(self, M: int) -> list[tuple[int, int]]:
        """Ranges of neurons, first and past-last, that a nested reconstruction gains one by one; here a single one."""
        return [(0, M)]


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose first neurons must reconstruct the input alone (Bussmann et al. 2025, arXiv:2503.17547).

    With f_l the reconstruction from the first widths[l] neurons, the loss is sum_l 1/2 ||f_l(x) - x||^2: frequent,
    general features are drawn to the first neurons, which cannot leave parts of them to later ones.
    """

    widths: tuple[int, ...] = ()
    """Ascending; the last is M. Empty: M/32, M/8, M/2, M, the proportions of the SynthSAEBench runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for width in self.widths:
            whole("each of widths", width, 1)
        if any(left >= right for left, right in zip(self.widths, self.widths[1:], strict=False)):
            raise RequestError(f"widths = {self.widths} must rise from level to level, e.g. (32, 128, 512)")

    def levels(self, M: int) -> list[tuple[int, int]]:
        """Ranges of neurons that each level adds."""
        widths = self.widths or tuple(sorted({max(1, M // 32), max(1, M // 8), max(1, M // 2), M}))
        if widths[-1] != M:
            raise RequestError(f"the last of widths = {widths} must be the {M} neurons")
        return list(zip((0, *widths[:-1]), widths, strict=True))


@dataclass(frozen=True)
class JumpReLU:
    """Each neuron learns the threshold above which it is active (Rajamanoharan et al. 2024, arXiv:2407.14435).

    phi = y 1(y > threshold_m), and the penalty weight * (number of active neurons). Neither has a gradient with
    respect to the threshold; straight-through estimators stand in, with K = 1(|y - threshold| < bandwidth / 2):
    d phi / d threshold = -threshold K / bandwidth and d 1(y > threshold) / d threshold = -K / bandwidth. Only the
    thresholds get them, as in the source. A threshold is kept at or above 0.
    """

    weight: float
    """lambda, price of an active neuron; the loss is on the scale of the inputs (unit norm by default)."""
    bandwidth: float = 0.1
    """Width of the window in y around the threshold."""
    start_threshold: float = 0.1
    """Every threshold before training."""

    def __post_init__(self) -> None:
        real("weight", self.weight, 0)
        real("bandwidth", self.bandwidth, 0, open_low=True)
        real("start_threshold", self.start_threshold, 0)


@dataclass(frozen=True)
class Gated:
    """One pre-activation decides, another one measures (Rajamanoharan et al. 2024, arXiv:2404.16014).

        gate  g = z + b,    magnitude = max(exp(log_gain) z + magnitude_bias, 0),    phi = 1(g > 0) magnitude

    with z = w . (x - b_pre). Objective: 1/2 ||f(x) - x||^2 + weight * sum_m |a_m| ||w_m|| max(g_m, 0)
    + 1/2 ||sum_m a_m max(g_m, 0) w_m + b_pre - x||^2. In the last term the source holds the decoder constant; here
    it is trained too, as in SAELens. When training is over gate and magnitude are folded into one threshold.
    """

    weight: float
    """lambda; the loss is on the scale of the inputs (unit norm by default)."""

    def __post_init__(self) -> None:
        real("weight", self.weight, 0)


@dataclass(frozen=True)
class L1:
    """Sparsity from the penalty weight * sum_m ||w_m|| phi(y_m), mean over the samples."""

    weight: float
    """lambda; the loss is on the scale of the inputs (unit norm by default)."""

    def __post_init__(self) -> None:
        real("l1", self.weight, 0)


Method = BA | GBA | TopK | BatchTopK | Matryoshka | JumpReLU | Gated | L1
AdaptiveMethod = BA | GBA
