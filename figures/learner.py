"""The options of a training, shared by every command that trains. Light: nothing of torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from simulator import Training


@dataclass(frozen=True)
class Learner:
    """The options of a training, whatever it is trained on."""

    method: Literal["ba", "gba", "topk", "batch-topk", "matryoshka", "jumprelu", "gated", "l1"] = "gba"
    """Bias adaptation with one target, with groups of targets, or what others use: the k largest of a sample or of a
    batch, nested widths, learned thresholds, separate gates, an L1 penalty."""
    p: float = 0.03
    """Target activation frequency (ba)."""
    htf: float = 0.1
    """Highest target frequency (gba)."""
    ltf: float = 1e-3
    """Lowest target frequency (gba)."""
    groups: int = 10
    """Number of groups (gba)."""
    targets: Literal["given", "pilot"] = "given"
    """Where htf, ltf and groups come from: the options above, or a pilot run on the first tenth of the samples that
    looks how often features occur (gba)."""
    rule: Literal["one-sided", "two-sided"] = "one-sided"
    """The paper's rule, for which a target is a ceiling, or a controller towards the target (ba, gba)."""
    gamma: float = 0.01
    """Step of a bias, gamma_plus = gamma_minus (ba, gba)."""
    buffer: int = 5_120
    """Pre-activations per neuron between two adaptations (ba, gba)."""
    k: float = 3
    """Active neurons per sample (topk), or their mean (batch-topk, matryoshka)."""
    auxiliary_k: int = 0
    """Dead neurons per sample that explain the residual (topk, batch-topk, matryoshka); 0: no auxiliary loss."""
    widths: tuple[int, ...] = ()
    """Nested widths, ascending, the last one M (matryoshka); default M/32, M/8, M/2, M."""
    l1: float = 0.01
    """Weight of the penalty (l1, gated)."""
    l0: float = 1e-3
    """Price of an active neuron (jumprelu)."""
    bandwidth: float = 0.1
    """Window around a threshold whose samples move it (jumprelu)."""
    start_threshold: float = 0.1
    """Thresholds at the start (jumprelu)."""
    neurons: int = 512
    """Width M."""
    steps: int = 6000
    """Optimiser steps."""
    batch: int = 512
    """Samples per step."""
    activation: Literal["auto", "jumprelu", "relu"] = "auto"
    """jumprelu: the bias only gates; relu: it also shifts, and methods without targets train it. auto: jumprelu for
    ba and gba, relu for the others."""
    learning_rate: float = 1e-3
    """AdamW's learning rate."""
    decay: float = 0.0
    """Last share of the steps with a learning rate that falls to 0."""
    start_scale: float = 0.1
    """Output scale of every neuron at the start; small, so that neurons first learn on their own."""
    start_bias: Literal["auto", "zero", "quantile"] = "zero"
    """Biases at the start: zero as in the paper, or where a random neuron meets its target (ba, gba; auto: there)."""
    normalise: bool = True
    """Scale every input to unit norm."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the training."""

    def belongs(self) -> dict[str, tuple[bool, str]]:
        """Options of one method: whether it is that method, and which."""
        adaptive, words = self.method in ("ba", "gba"), "--method ba or gba"
        return {
            "p": (self.method == "ba", "--method ba"),
            **dict.fromkeys(
                ("htf", "ltf", "groups"),
                (self.method == "gba" and self.targets == "given", "--method gba with --targets given"),
            ),
            "targets": (self.method == "gba", "--method gba"),
            **dict.fromkeys(("rule", "gamma", "buffer", "start_bias"), (adaptive, words)),
            **dict.fromkeys(
                ("k", "auxiliary_k"),
                (self.method in ("topk", "batch-topk", "matryoshka"), "--method topk, batch-topk or matryoshka"),
            ),
            "widths": (self.method == "matryoshka", "--method matryoshka"),
            "l1": (self.method in ("l1", "gated"), "--method l1 or gated"),
            **dict.fromkeys(
                ("l0", "bandwidth", "start_threshold"), (self.method == "jumprelu", "--method jumprelu")
            ),
        }  # fmt: skip

    def refuse(self, belongs: dict[str, tuple[bool, str]]) -> None:
        """One line for an option that was given and would change nothing: it was meant for something else.

        Raises:
            RequestError: naming the option and what it belongs to.
        """
        from simulator.errors import RequestError

        default = type(self)()
        for name, (applies, to) in belongs.items():
            if getattr(self, name) != getattr(default, name) and not applies:
                raise RequestError(f"--{name.replace('_', '-')} belongs to {to}; leave it out")

    def _start(self) -> Literal["zero", "quantile"]:
        """Where the biases start; "auto" (of `train`): at the quantiles where there are targets."""
        adaptive = self.method in ("ba", "gba")
        return "quantile" if self.start_bias == "quantile" or (self.start_bias == "auto" and adaptive) else "zero"

    def training(self) -> Training:
        """The training that the options describe."""
        from simulator import (
            BA,
            GBA,
            L1,
            BatchTopK,
            Gated,
            JumpReLU,
            Matryoshka,
            OneSided,
            TopK,
            Training,
            TwoSided,
        )  # fmt: skip

        rule = (OneSided if self.rule == "one-sided" else TwoSided)(self.gamma, self.gamma)
        method = {
            "ba": lambda: BA(self.p, rule, self.buffer),
            "gba": lambda: GBA(self.htf, self.ltf, self.groups, rule, self.buffer),
            "topk": lambda: TopK(int(self.k) if self.k == int(self.k) else self.k, self.auxiliary_k),  # type: ignore
            "batch-topk": lambda: BatchTopK(self.k, self.auxiliary_k),
            "matryoshka": lambda: Matryoshka(self.k, self.auxiliary_k, widths=self.widths),
            "jumprelu": lambda: JumpReLU(self.l0, self.bandwidth, self.start_threshold),
            "gated": lambda: Gated(self.l1),
            "l1": lambda: L1(self.l1),
        }[self.method]()
        return Training(
            method, self.neurons, self.steps, self.batch, self.activation, self.learning_rate, self.decay,
            start_scale=self.start_scale, start_bias=self._start(), normalise=self.normalise, dtype=self.dtype,
        )  # fmt: skip
