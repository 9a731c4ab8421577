"""Shapes of the feature frequencies: how often feature i occurs relative to the others.

A shape is relative: the support law scales it so that the frequencies sum to its mean number s of active
features, f_i = s r_i / sum_j r_j (`scaled`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from simulator.checks import finite_array, real
from simulator.errors import RequestError


@runtime_checkable
class Frequencies(Protocol):
    """What a shape of frequencies offers."""

    def relative(self, n: int) -> Float[np.ndarray, " n"]:
        """Non-negative relative frequencies r_i of n features; RequestError if there are none for this n."""
        ...


@dataclass(frozen=True)
class Constant:
    """All features are equally frequent: r_i = 1."""

    def relative(self, n: int) -> Float[np.ndarray, " n"]:
        """The n ones."""
        return np.ones(n)


@dataclass(frozen=True)
class Zipf:
    """Feature i (from 0) has r_i = (i + 1)^-exponent: the first feature is the most frequent.

    Raises:
        RequestError: the exponent is negative or not finite.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", real("Zipf exponent", self.exponent, 0))

    def relative(self, n: int) -> Float[np.ndarray, " n"]:
        """(i + 1)^-exponent for i = 0..n-1."""
        return np.arange(1, n + 1, dtype=np.float64) ** -self.exponent


@dataclass(frozen=True, eq=False)
class Given:
    """The relative frequencies are `values`, one per feature; zeros are features that never occur.

    Raises:
        RequestError: values that are negative, all zero or not finite, or (later) not n of them.
    """

    values: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        values = finite_array("Given frequencies", self.values, 1)
        if values.min() < 0 or values.max() == 0:
            raise RequestError(
                f"Given frequencies run from {values.min():g} to {values.max():g}; they must be >= 0 and not all zero"
            )
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(np.asarray(self.values).tobytes())

    def relative(self, n: int) -> Float[np.ndarray, " n"]:
        """The values, if there are n of them."""
        values = np.asarray(self.values)
        if values.size != n:
            raise RequestError(f"Given frequencies name {values.size} features, but the world has n = {n}")
        return values


def scaled(frequencies: Frequencies, mean_active: float, n: int) -> Float[np.ndarray, " n"]:
    """Absolute frequencies f_i = mean_active r_i / sum_j r_j, in [0, 1] and with sum `mean_active`.

    Raises:
        RequestError: some f_i would exceed 1.
    """
    relative = frequencies.relative(n)
    absolute = relative * (mean_active / relative.sum())
    if absolute.max() > 1 + 1e-9:
        raise RequestError(
            f"with {mean_active:g} active features on average the most frequent one would need frequency "
            f"{absolute.max():.4g} > 1; these frequencies allow at most {mean_active / absolute.max():.4g}"
        )
    return np.minimum(absolute, 1.0)
