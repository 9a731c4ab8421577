"""Laws of the supports: which features are active in a sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from simulator.checks import at_most_all, finite_array, real, whole
from simulator.draws import Draw, Rows, as_rows, bernoulli_rows, distinct_rows, even_rows, sampford_rows
from simulator.errors import RequestError
from simulator.frequencies import Constant, Frequencies, Given, scaled
from simulator.paired import Paired

__all__ = ["Bernoulli", "Exactly", "Mixture", "Paired", "Support"]


@runtime_checkable
class Support(Protocol):
    """What a law of supports offers. The rows (samples) are independent of each other.

    rho_2 = max_{i != j} P(j active | i active) is the co-occurrence of Chen et al. 2025, arXiv:2506.14002.
    """

    @property
    def mean_active(self) -> float:
        """Expected number of active features in a sample, sum_i f_i."""
        ...

    def check(self, n: int) -> None:
        """Raise RequestError if the law is impossible with n features."""
        ...

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """f_i = P(feature i is active), exact."""
        ...

    def rho_2(self, n: int) -> float | None:
        """rho_2 of the law for n >= 2 features, exact; None where it has no closed form."""
        ...

    def sampler(self, n: int) -> Draw:
        """The prepared sampler for n features: (N, rng) to the supports of N samples."""
        ...


@dataclass(frozen=True)
class Exactly:
    """Every sample has exactly s active features; feature i is active with probability exactly f_i.

    Equal frequencies give uniformly random s-subsets: f_i = s / n, rho_2 = (s - 1) / (n - 1). Unequal ones
    are scaled to sum s, and the supports follow Sampford's design (see `simulator.draws.sampford_rows`).

    Raises:
        RequestError: s < 1, or (later) s > n, frequencies that would exceed 1, or that cannot be sampled.
    """

    s: int = 3
    frequencies: Frequencies = field(default_factory=Constant)

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole("s", self.s, 1))

    @property
    def mean_active(self) -> float:
        """s."""
        return float(self.s)

    def check(self, n: int) -> None:
        """RequestError if there is no such law on n features."""
        at_most_all("s", self.s, n)
        self.sampler(n)

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """The relative frequencies scaled to sum s."""
        return scaled(self.frequencies, self.s, n)

    def rho_2(self, n: int) -> float | None:
        """(s - 1) / (n - 1) for equal frequencies, else None: measure it on a sample."""
        return (self.s - 1) / (n - 1) if np.ptp(self.feature_frequencies(n)) == 0 else None

    def sampler(self, n: int) -> Draw:
        """Uniform subsets, or Sampford's design."""
        frequencies = self.feature_frequencies(n)
        if np.ptp(frequencies) == 0:
            return lambda N, rng: even_rows(distinct_rows(N, n, self.s, rng))
        return sampford_rows(frequencies, self.s)


@dataclass(frozen=True)
class Mixture:
    """Each sample draws its number of active features, `sizes[k]` with probability `weights[k]`, and then
    uniformly random distinct features. Mixture((3, 20)): half of the samples have 3, half have 20.

    The weights are relative, and normalised on construction; without weights all sizes are equally likely.
    With the mean size S = sum_k weights_k sizes_k: f_i = S / n,
    rho_2 = sum_k weights_k sizes_k (sizes_k - 1) / (S (n - 1)).

    Raises:
        RequestError: no size, a size < 1 or (later) > n, weights that are negative, all zero or not as many.
    """

    sizes: tuple[int, ...] = (3, 20)
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        sizes = tuple(whole("size of the mixture", size, 1) for size in self.sizes)
        if not sizes:
            raise RequestError("a mixture needs at least one size")
        weights = (1.0,) * len(sizes) if self.weights is None else self.weights
        weights = finite_array("weights of the mixture", weights, 1)
        if weights.size != len(sizes):
            raise RequestError(f"a mixture of {len(sizes)} sizes needs as many weights, not {weights.size}")
        if weights.min() < 0 or weights.max() == 0:
            raise RequestError(f"mixture weights {weights.tolist()} must be >= 0 and not all zero")
        weights = weights / weights.max()
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "weights", tuple((weights / weights.sum()).tolist()))

    @property
    def mean_active(self) -> float:
        """sum_k weights_k sizes_k."""
        return math.fsum(weight * size for weight, size in self._components())

    def check(self, n: int) -> None:
        """RequestError if a size exceeds n."""
        at_most_all("mixture size", max(self.sizes), n)

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """Mean size / n for every feature."""
        return np.full(n, self.mean_active / n)

    def rho_2(self, n: int) -> float | None:
        """The formula above: every pair of features is alike."""
        pairs = math.fsum(weight * size * (size - 1) for weight, size in self._components())
        return pairs / (self.mean_active * (n - 1))

    def sampler(self, n: int) -> Draw:
        """Sizes first, then all rows of one size together."""
        sizes = np.array(self.sizes)
        upper = np.cumsum(np.array([weight for weight, _ in self._components()]))[:-1]

        def draw(N: int, rng: np.random.Generator) -> Rows:
            component = np.searchsorted(upper, rng.random(N), side="right")
            indptr = np.zeros(N + 1, dtype=np.int64)
            np.cumsum(sizes[component], out=indptr[1:])
            indices = np.empty(indptr[-1], dtype=np.int32)
            for k, size in enumerate(self.sizes):
                starts = indptr[:-1][component == k]
                indices[starts[:, None] + np.arange(size)] = distinct_rows(starts.size, n, size, rng)
            return as_rows(indptr, indices)

        return draw

    def _components(self) -> list[tuple[float, int]]:
        return list(zip(self.weights or (), self.sizes, strict=True))


@dataclass(frozen=True)
class Bernoulli:
    """Independent features: i is active with probability f_i, scaled so that s are active on average.

    The number of active features varies, and a sample may have none: its row of H and of X is zero.
    rho_2 = max_i f_i. `Bernoulli.of` takes absolute frequencies.

    Raises:
        RequestError: s <= 0, or (later) frequencies that would exceed 1.
    """

    s: float = 3.0
    frequencies: Frequencies = field(default_factory=Constant)

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", real("mean number s of active features", self.s, 0, open_low=True))

    @classmethod
    def of(cls, frequencies: Sequence[float] | np.ndarray) -> "Bernoulli":
        """Independent features with exactly these frequencies f_i.

        Raises:
            RequestError: a frequency outside [0, 1], or all of them zero.
        """
        given = Given(frequencies)
        largest = np.asarray(given.values).max()
        if largest > 1:
            raise RequestError(f"frequencies of features must be <= 1, but the largest is {largest:g}")
        # With s equal to their sum the scaling multiplies by exactly 1.
        return cls(float(np.asarray(given.values).sum()), given)

    @property
    def mean_active(self) -> float:
        """s."""
        return self.s

    def check(self, n: int) -> None:
        """RequestError if some frequency would exceed 1."""
        at_most_all("mean number s of active features", self.s, n)
        self.feature_frequencies(n)

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """The relative frequencies scaled to sum s."""
        return scaled(self.frequencies, self.s, n)

    def rho_2(self, n: int) -> float | None:
        """max_i f_i: the features are independent (n >= 2, and some other feature occurs)."""
        return float(self.feature_frequencies(n).max())

    def sampler(self, n: int) -> Draw:
        """Poisson points, in O(active features)."""
        return bernoulli_rows(self.feature_frequencies(n))
