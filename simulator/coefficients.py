"""Laws of the non-zero coefficients of H, before the rows are scaled (see `World.unit_rows`)."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer

from simulator.checks import real


@runtime_checkable
class Coefficients(Protocol):
    """What a law of coefficients offers."""

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """Positive float64 coefficients, one for each non-zero entry; `features` names its feature."""
        ...


@dataclass(frozen=True)
class ConstantCoefficients:
    """Every coefficient is `value` > 0.

    Raises:
        RequestError: a value that is not positive and finite.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", real("constant coefficient", self.value, 0, open_low=True))

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """`value` for every entry."""
        return np.full(features.size, self.value)


@dataclass(frozen=True)
class Uniform:
    """Coefficients uniform on (low, high], 0 <= low < high: mean (low + high) / 2.

    The lower end is left out, so that no coefficient is exactly 0 and the support is what was drawn.

    Raises:
        RequestError: ends that are negative, not finite or in the wrong order.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        low = real("low end of the uniform coefficients", self.low, 0)
        high = real("high end of the uniform coefficients", self.high, low, open_low=True)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """high - (high - low) u with u uniform on [0, 1)."""
        return self.high - (self.high - self.low) * rng.random(features.size)


@dataclass(frozen=True)
class Exponential:
    """Exponential coefficients: density exp(-h / scale) / scale on h > 0, mean `scale`.

    Raises:
        RequestError: a scale that is not positive and finite.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        scale = real("scale of the exponential coefficients", self.scale, 0, open_low=True)
        object.__setattr__(self, "scale", scale)

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """scale times standard exponential numbers."""
        return rng.standard_exponential(features.size) * self.scale


@dataclass(frozen=True)
class HalfNormal:
    """Half-normal coefficients |g| with g ~ N(0, scale^2): mean scale sqrt(2 / pi).

    Raises:
        RequestError: a scale that is not positive and finite.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        scale = real("scale of the half-normal coefficients", self.scale, 0, open_low=True)
        object.__setattr__(self, "scale", scale)

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """scale times absolute standard normal numbers."""
        return np.abs(rng.standard_normal(features.size)) * self.scale
