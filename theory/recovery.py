"""What a check found: the measured facts, and the rates, tables and summaries read off them."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from simulator.errors import RequestError
from theory.chance import Chance
from theory.matching import Assignment
from theory.validation import share


@dataclass(frozen=True)
class FrequencyBin:
    """Features with low <= frequency < high (the last bin includes its upper end) and the FRR among them."""

    low: float
    high: float
    features: int
    rate: float


@dataclass(frozen=True)
class Recovery:
    """Measured facts about W against V. Cosines are exact to 1e-12 and rounded to 12 decimals."""

    n: int
    M: int
    d: int
    thresholds: tuple[float, ...]
    feature_cosine: Float[np.ndarray, " n"]
    """Largest signed cosine of each feature over the neurons (0 if every neuron is a zero row)."""
    feature_neuron: Int[np.ndarray, " n"]
    """The neuron that has it, lowest index at ties; -1 if every neuron is a zero row."""
    neuron_cosine: Float[np.ndarray, " M"]
    """Largest signed cosine of each neuron over the features; 0 for a zero row."""
    neuron_feature: Int[np.ndarray, " M"]
    """The feature that has it, lowest index at ties; -1 for a zero row."""
    neuron_match: Int[np.ndarray, " M"]
    """Feature of largest |cosine|, the field's match for uniqueness and F1; 0 for a zero row, as in the
    field."""
    neurons_per_feature: Int[np.ndarray, "T n"]
    """Neurons above each of `thresholds`, per feature."""
    features_per_neuron: Int[np.ndarray, "T M"]
    """Features above each of `thresholds`, per neuron."""
    alive: Bool[np.ndarray, " M"]
    mcc: Assignment | None
    mcc_chance: Chance | None
    untrained_cosine: Float[np.ndarray, " n"] | None
    """Like `feature_cosine`, for the untrained network."""
    frequencies: Float[np.ndarray, " n"] | None

    def rate(self, tau: float) -> float:
        """FRR(tau): share of all n features with some neuron at signed cosine > tau."""
        return float((self.feature_cosine > share("tau", tau)).mean())

    def untrained_rate(self, tau: float) -> float | None:
        """FRR(tau) of the untrained network; None where W_start was not given."""
        if self.untrained_cosine is None:
            return None
        return float((self.untrained_cosine > share("tau", tau)).mean())

    def neuron_precision(self, tau: float, *, exclusive: bool = False) -> float:
        """Share of the alive neurons that are monosemantic at tau: best cosine with a true feature > tau.

        By default a neuron above tau with two features counts. Two features can only share it when their
        own cosine exceeds 2 tau^2 - 1 (0.28 at 0.8, 0.62 at 0.9), so such a case speaks about V and not
        about the neuron; `exclusive` leaves those neurons out (tau must then be one of `thresholds`). 0 if
        no neuron is alive.

        Raises:
            RequestError: tau outside [-1, 1], or exclusive at a tau that was not counted.
        """
        good = self.neuron_cosine > share("tau", tau)
        if exclusive:
            if tau not in self.thresholds:
                raise RequestError(f"tau = {tau} was not counted; the thresholds of this check are {self.thresholds}")
            good = self.features_per_neuron[self.thresholds.index(tau)] == 1
        return float(good[self.alive].mean()) if self.alive.any() else 0.0

    @property
    def uniqueness(self) -> float:
        """Distinct features of largest |cosine| over neurons, divided by M (zero rows included, as in the
        field)."""
        return len(np.unique(self.neuron_match)) / self.M

    @property
    def feature_uniqueness(self) -> float:
        """Distinct best neurons over features, divided by n."""
        return len(np.unique(self.feature_neuron)) / self.n

    def by_frequency(self, tau: float, bins: int | Float[np.ndarray, " edges"] = 8) -> list[FrequencyBin]:
        """FRR(tau) by feature frequency.

        Args:
            bins: number of bins of equal log width between the extreme positive frequencies (features that
                never occur get a bin [0, 0] of their own), or increasing edges. Empty bins are left out.

        Raises:
            RequestError: the check had no frequencies, or the bins are impossible.
        """
        if self.frequencies is None:
            raise RequestError("recovery by frequency needs check(..., frequencies=...) with one number per feature")
        frequencies = self.frequencies
        found = self.feature_cosine > share("tau", tau)
        table = []
        if isinstance(bins, int):
            if bins < 1:
                raise RequestError(f"bins = {bins}; at least 1 is needed")
            never = frequencies == 0
            if never.any():
                table.append(FrequencyBin(0.0, 0.0, int(never.sum()), float(found[never].mean())))
            if never.all():
                return table
            low, high = frequencies[~never].min(), frequencies.max()
            edges = np.geomspace(low, high, bins + 1) if high > low else np.array([low, high])
            edges[0], edges[-1] = low, high
        else:
            edges = np.asarray(bins, dtype=np.float64)
            if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
                raise RequestError("bins must be a number of bins or at least two increasing edges")
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            last = number == len(edges) - 2
            inside = (frequencies >= low) & ((frequencies <= high) if last else (frequencies < high))
            if inside.any():
                table.append(FrequencyBin(float(low), float(high), int(inside.sum()), float(found[inside].mean())))
        return table

    def summary(self) -> dict[str, float | int | list[float] | None]:
        """One table row of plain numbers; rates are shares of 1, None where something was not measured."""
        return {
            "frr_080": self.rate(0.8),
            "frr_090": self.rate(0.9),
            "frr_080_untrained": self.untrained_rate(0.8),
            "frr_090_untrained": self.untrained_rate(0.9),
            "neuron_precision_080": self.neuron_precision(0.8),
            "neuron_precision_090": self.neuron_precision(0.9),
            "mcc": None if self.mcc is None else self.mcc.value(),
            "mcc_chance": None if self.mcc_chance is None else self.mcc_chance.mean,
            "uniqueness": self.uniqueness,
            "mean_feature_cosine": float(self.feature_cosine.mean()),
            "n": self.n,
            "M": self.M,
            "d": self.d,
        }
