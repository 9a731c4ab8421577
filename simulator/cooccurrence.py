"""Support laws that violate low co-occurrence: a single pair of features, disjoint blocks, or a hub."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulator.checks import at_most_all, real, whole
from simulator.draws import Draw, Rows, distinct_rows, even_rows
from simulator.errors import RequestError


@dataclass(frozen=True)
class OnePair:
    """Features 0 and 1 co-occur: P(1 active | 0 active) = rho; all others are as uniform as ever.

    Every sample has exactly s active features and every f_i = s / n. With probability rho f a sample holds both, with
    2 (1 - rho) f one of them (equally likely), else none, f = s / n; the rest of its s features is uniform among the
    others. Then f_0 = f_1 = rho f + (1 - rho) f = f, and the other n - 2 share s - 2 f = f (n - 2). Derived here.

    Raises:
        RequestError: s < 2, rho outside [0, 1], or (later) n < s + 2 or n < (2 - rho) s, where the probabilities above
            would exceed 1.
    """

    s: int = 3
    rho: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole("s", self.s, 2))
        object.__setattr__(self, "rho", real("co-occurrence rho", self.rho, 0, 1))

    @property
    def mean_active(self) -> float:
        """s."""
        return float(self.s)

    def check(self, n: int) -> None:
        """RequestError if n is too small."""
        at_most_all("s + 2", self.s + 2, n)
        if (2 - self.rho) * self.s > n:
            least = math.ceil((2 - self.rho) * self.s)
            raise RequestError(f"n = {n} is too small for s = {self.s} and rho = {self.rho:g}; take n >= {least}")

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """s / n for every feature."""
        return np.full(n, self.s / n)

    def rho_2(self, n: int) -> float | None:
        """The largest of rho, P(0 | j) = (s - 1 - rho) / (n - 2), and P(k | j) of two other features."""
        f = self.s / n
        both, one = self.rho * f, 2 * (1 - self.rho) * f
        s = self.s
        pairs = s * (s - 1) * (1 - both - one) + (s - 1) * (s - 2) * one + (s - 2) * (s - 3) * both
        return max(self.rho, (s - 1 - self.rho) / (n - 2), pairs / ((n - 2) * (n - 3)) / f)

    def sampler(self, n: int) -> Draw:
        """Which of the two first, then the rest."""
        f = self.s / n
        edges = np.cumsum([self.rho * f, (1 - self.rho) * f, (1 - self.rho) * f])

        def draw(N: int, rng: np.random.Generator) -> Rows:
            kind = np.searchsorted(edges, rng.random(N), side="right")
            features = np.empty((N, self.s), dtype=np.int32)
            for k, held in enumerate(((0, 1), (0,), (1,), ())):
                rows = kind == k
                count = int(np.count_nonzero(rows))
                if not count:
                    continue
                rest = distinct_rows(count, n - 2, self.s - len(held), rng) + 2
                features[rows] = np.column_stack([np.tile(np.array(held, dtype=np.int32), (count, 1)), rest])
            return even_rows(features)

        return draw


@dataclass(frozen=True)
class Blocks:
    """Features co-occur in disjoint blocks {0..m-1}, {m..2m-1}, ...: P(j active | i active) = rho inside a block.

    Every sample has exactly s active features and every f_i = s / n. With probability
    q = rho (size - 1) / (s - 1) all s come from one block, a uniform s-subset of a uniform block; else from s
    different blocks, one uniform member of each. Given i, a member j of its block is active with probability
    q (s - 1) / (size - 1) = rho, and a feature of another block with (1 - q)(s - 1) / (n - size). Blocks of
    size = s reach rho = 1, where only whole blocks occur. For pairs see `Paired`. Derived here.

    Raises:
        RequestError: s < 2, size < s, rho outside [0, (s - 1) / (size - 1)], or (later) n no multiple of size,
            or fewer than s blocks where samples across blocks occur (q < 1).
    """

    s: int = 3
    size: int = 3
    rho: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole("s", self.s, 2))
        object.__setattr__(self, "size", whole("size of a block", self.size, 2))
        object.__setattr__(self, "rho", real("co-occurrence rho", self.rho, 0, 1))
        at_most_all("s", self.s, self.size)
        reach = (self.s - 1) / (self.size - 1)
        if self.rho > reach + 1e-12:
            raise RequestError(
                f"co-occurrence rho = {self.rho:g} is out of reach with s = {self.s} in blocks of {self.size}; "
                f"choose rho <= {reach:.6g}"
            )

    @property
    def together(self) -> float:
        """q, the probability that a sample stays inside one block."""
        return min(self.rho * (self.size - 1) / (self.s - 1), 1.0)

    @property
    def mean_active(self) -> float:
        """s."""
        return float(self.s)

    def check(self, n: int) -> None:
        """RequestError if n is no multiple of the block size, or has too few blocks."""
        if n < self.size or n % self.size:
            raise RequestError(f"blocks of {self.size} features need n to be a multiple of {self.size}, not n = {n}")
        if self.together < 1 and n // self.size < self.s:
            raise RequestError(
                f"s = {self.s} features from different blocks of {self.size} need n >= {self.s * self.size}, "
                f"not n = {n}"
            )

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """s / n for every feature."""
        return np.full(n, self.s / n)

    def rho_2(self, n: int) -> float | None:
        """max(rho, (1 - q)(s - 1) / (n - size)); rho alone for a single block."""
        return max(self.rho, (1 - self.together) * (self.s - 1) / (n - self.size)) if n > self.size else self.rho

    def sampler(self, n: int) -> Draw:
        """Rows inside one block and rows across blocks, drawn apart and then put in place."""
        blocks = n // self.size

        def draw(N: int, rng: np.random.Generator) -> Rows:
            inside = rng.random(N) < self.together
            features = np.empty((N, self.s), dtype=np.int32)
            if count := int(np.count_nonzero(inside)):
                block = rng.integers(0, blocks, (count, 1), dtype=np.int32)
                features[inside] = block * self.size + distinct_rows(count, self.size, self.s, rng)
            if count := N - count:
                block = distinct_rows(count, blocks, self.s, rng)
                features[~inside] = block * self.size + rng.integers(0, self.size, block.shape, dtype=np.int32)
            return even_rows(features)

        return draw


@dataclass(frozen=True)
class Hub:
    """Feature 0 co-occurs with all others: P(0 active | i active) = rho for every i.

    Every sample has exactly s active features. A hub of that kind must itself be frequent: with probability
    q = rho s / (s - 1 + rho) a sample holds it and s - 1 uniform others, else s uniform others. So f_0 = q,
    f_i = (s - q) / (n - 1), and P(0 | i) = q (s - 1) / (s - q) = rho. Equal frequencies are out of reach here:
    the hub's own is about rho, so that it also violates the balance of frequencies. Derived here.

    Raises:
        RequestError: s < 2, rho outside [0, 1], or (later) n <= s.
    """

    s: int = 3
    rho: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole("s", self.s, 2))
        object.__setattr__(self, "rho", real("co-occurrence rho", self.rho, 0, 1))

    @property
    def hub_frequency(self) -> float:
        """q."""
        return self.rho * self.s / (self.s - 1 + self.rho)

    @property
    def mean_active(self) -> float:
        """s."""
        return float(self.s)

    def check(self, n: int) -> None:
        """RequestError if n <= s."""
        at_most_all("s + 1", self.s + 1, n)

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """q for the hub, (s - q) / (n - 1) for the others."""
        frequencies = np.full(n, (self.s - self.hub_frequency) / (n - 1))
        frequencies[0] = self.hub_frequency
        return frequencies

    def rho_2(self, n: int) -> float | None:
        """The largest of rho, P(j | hub) = (s - 1) / (n - 1), and P(j | i) of two other features."""
        s, q = self.s, self.hub_frequency
        pairs = (q * (s - 1) * (s - 2) + (1 - q) * s * (s - 1)) / ((n - 1) * (n - 2))
        return max(self.rho, (s - 1) / (n - 1) if q > 0 else 0.0, pairs / ((s - q) / (n - 1)))

    def sampler(self, n: int) -> Draw:
        """The hub first, then the rest."""

        def draw(N: int, rng: np.random.Generator) -> Rows:
            with_hub = rng.random(N) < self.hub_frequency
            features = np.empty((N, self.s), dtype=np.int32)
            for rows, held in ((with_hub, 1), (~with_hub, 0)):
                count = int(np.count_nonzero(rows))
                if count:
                    rest = distinct_rows(count, n - 1, self.s - held, rng) + 1
                    features[rows] = np.column_stack([np.zeros((count, held), dtype=np.int32), rest])
            return even_rows(features)

        return draw
