"""Laws of the non-zero coefficients of H, before the rows are scaled (see `World.unit_rows`)."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.special
from jaxtyping import Float, Integer

from simulator.checks import finite_array, real
from simulator.errors import RequestError


@runtime_checkable
class Coefficients(Protocol):
    """What a law of coefficients offers."""

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """Float64 coefficients >= 0, one for each entry; `features` names its feature. What is 0 leaves the support."""
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


@dataclass(frozen=True, eq=False)
class FoldedNormal:
    """|g| with g ~ N(mean, std^2); mean and std are numbers, or arrays with one value per feature.

    Raises:
        RequestError: a std that is negative, values that are not finite, mean = std = 0, or (later) arrays
            that are not for n features.
    """

    mean: float | Float[np.ndarray, " n"] = 0.0
    std: float | Float[np.ndarray, " n"] = 1.0

    def __post_init__(self) -> None:
        _normal_parameters(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FoldedNormal) and _same_parameters(self, other)

    def __hash__(self) -> int:
        return hash((np.asarray(self.mean).tobytes(), np.asarray(self.std).tobytes()))

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """Absolute normal numbers."""
        return np.abs(_normal(self, features, rng))


@dataclass(frozen=True, eq=False)
class ClippedNormal:
    """max(0, g) with g ~ N(mean, std^2); mean and std are numbers, or arrays with one value per feature.

    A coefficient 0, probability Phi(-mean / std), means that the feature is not active. The law of the
    magnitudes of sae_lens.synthetic.

    Raises:
        RequestError: as `FoldedNormal`; and std = 0 where the mean is <= 0, which is never active.
    """

    mean: float | Float[np.ndarray, " n"] = 1.0
    std: float | Float[np.ndarray, " n"] = 0.5

    def __post_init__(self) -> None:
        _normal_parameters(self)
        if np.any((np.asarray(self.std) == 0) & (np.asarray(self.mean) <= 0)):
            raise RequestError("ClippedNormal: a mean <= 0 with std = 0 is never active; choose a mean or a std > 0")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClippedNormal) and _same_parameters(self, other)

    def __hash__(self) -> int:
        return hash((np.asarray(self.mean).tobytes(), np.asarray(self.std).tobytes()))

    def draw(
        self, features: Integer[np.ndarray, " entries"], rng: np.random.Generator
    ) -> Float[np.ndarray, " entries"]:
        """Normal numbers, negative ones replaced by 0."""
        return np.maximum(_normal(self, features, rng), 0.0)


def positive_share(coefficients: Coefficients, n: int) -> Float[np.ndarray, " n"]:
    """P(coefficient of feature i > 0) for n features: 1 but for `ClippedNormal`.

    Raises:
        RequestError: a law whose arrays are not for n features.
    """
    if isinstance(coefficients, (FoldedNormal, ClippedNormal)):
        for name in ("mean", "std"):
            shape = np.shape(getattr(coefficients, name))
            if shape not in ((), (n,)):
                raise RequestError(
                    f"{type(coefficients).__name__}: {name} has {shape[0]} values, but the world has n = {n}"
                )
    if not isinstance(coefficients, ClippedNormal):
        return np.ones(n)
    with np.errstate(divide="ignore"):
        ratio = np.asarray(coefficients.mean, dtype=np.float64) / np.asarray(coefficients.std, dtype=np.float64)
    return np.broadcast_to(scipy.special.ndtr(ratio), n).copy()


def _normal_parameters(law: FoldedNormal | ClippedNormal) -> None:
    """Check mean and std; store floats or read-only float64 arrays."""
    name = type(law).__name__
    for field in ("mean", "std"):
        value = getattr(law, field)
        low = 0.0 if field == "std" else -np.inf
        if np.ndim(value) == 0:
            value = real(f"{field} of {name}", value, low)
        else:
            value = finite_array(f"{field} of {name}", value, 1)
            if value.min() < low:
                raise RequestError(f"{field} of {name}: the least value is {value.min():g}; all must be >= 0")
        object.__setattr__(law, field, value)
    if np.any((np.asarray(law.mean) == 0) & (np.asarray(law.std) == 0)):
        raise RequestError(f"{name}: mean = std = 0 leaves only zeros; choose a mean or a std > 0")


def _same_parameters(one: FoldedNormal | ClippedNormal, other: FoldedNormal | ClippedNormal) -> bool:
    return np.array_equal(one.mean, other.mean) and np.array_equal(one.std, other.std)


def _normal(law: FoldedNormal | ClippedNormal, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """N(mean, std^2) numbers of the features."""
    mean, std = (value if np.ndim(value) == 0 else value[features] for value in (law.mean, law.std))  # type: ignore
    return mean + std * rng.standard_normal(features.size)
