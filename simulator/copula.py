"""Supports that are correlated by a Gaussian copula of low rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import scipy.special
from jaxtyping import Float

from simulator.checks import at_most_all, finite_array, real, whole
from simulator.draws import Draw, Rows, as_rows
from simulator.errors import RequestError
from simulator.frequencies import Constant, Frequencies, scaled
from simulator.rng import stream
from simulator.supports import Bernoulli

# The common part of a feature's Gaussian has at most this variance; larger rows of F are shortened.
_MOST_COMMON = 0.99
# Stands for the threshold of a feature that is always or never active.
_FAR = 1e5
# Rows whose latent numbers are drawn at once, and scores that are computed at once (1 MB: they stay in the cache).
_ROWS = 4096
_SCORES = 1 << 18


@runtime_checkable
class Factors(Protocol):
    """What a law of the factors F of a copula offers."""

    def matrix(self, n: int) -> Float[np.ndarray, "n rank"]:
        """F (n, rank); rows with |F_i| < 1. RequestError if there is none for this n."""
        ...


@dataclass(frozen=True)
class RandomFactors:
    """F has independent entries N(0, scale^2), from the random stream "correlation" of the seed `structure`.

    The Gaussians of features i and j have the correlation F_i . F_j, about N(0, rank scale^4). A world is a law
    and holds no seed, so the number of the structure is part of the law. Rows with |F_i|^2 > 0.99 are shortened
    to 0.99.

    Raises:
        RequestError: rank < 1, a negative scale or a structure out of range.
    """

    rank: int = 25
    scale: float = 0.1
    structure: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole("rank of the copula", self.rank, 1, 2**20))
        object.__setattr__(self, "scale", real("scale of the copula", self.scale, 0, 1e9))
        object.__setattr__(self, "structure", whole("structure of the copula", self.structure, 0, 2**63 - 1))

    def matrix(self, n: int) -> Float[np.ndarray, "n rank"]:
        """The normal numbers, long rows shortened."""
        F = stream(self.structure, "correlation").standard_normal((n, self.rank)) * self.scale
        squares = np.einsum("ij,ij->i", F, F)
        return F * np.sqrt(_MOST_COMMON / np.maximum(squares, _MOST_COMMON))[:, None]


@dataclass(frozen=True, eq=False)
class GivenFactors:
    """The factors are this matrix (n, rank).

    Raises:
        RequestError: not a matrix of finite numbers, a row of norm >= 1, or (later) not of n rows.
    """

    values: Float[np.ndarray, "n rank"]

    def __post_init__(self) -> None:
        values = finite_array("factors of the copula", self.values, 2)
        largest = float(np.sqrt(np.einsum("ij,ij->i", values, values).max()))
        if largest >= 1:
            raise RequestError(f"a row of the copula's factors has norm {largest:g}; every row needs a norm < 1")
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenFactors) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.values.shape, self.values[0].tobytes()))

    def matrix(self, n: int) -> Float[np.ndarray, "n rank"]:
        """The matrix, if it has n rows."""
        if len(self.values) != n:
            raise RequestError(f"the copula's factors are for {len(self.values)} features, but the world has n = {n}")
        return self.values


@dataclass(frozen=True)
class Copula:
    """Correlated features: i is active iff F_i . z + sqrt(1 - |F_i|^2) e_i > Phi^-1(1 - f_i).

    z ~ N(0, I_rank) and e_i ~ N(0, 1) are independent, so the left side is N(0, 1) and feature i has
    frequency f_i, scaled so that s are active on average. `Copula.of` takes absolute frequencies. Given z the
    features are independent with p_i = Phi((F_i . z - t_i) / sqrt(1 - |F_i|^2)), t_i the threshold, and so they are
    drawn: O(n rank) multiplications a sample in float32 (relative error of p_i about 1e-5), O(active) random
    numbers. The law is that of "low-rank correlation" in sae_lens.synthetic (Chanin and Garriga-Alonso,
    SynthSAEBench).

    Raises:
        RequestError: s <= 0, or (later) frequencies that would exceed 1 or factors that do not fit n.
    """

    s: float = 3.0
    frequencies: Frequencies = field(default_factory=Constant)
    factors: Factors = field(default_factory=RandomFactors)

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", real("mean number s of active features", self.s, 0, open_low=True))

    @classmethod
    def of(cls, frequencies: Sequence[float] | np.ndarray, factors: Factors | None = None) -> "Copula":
        """Exactly these frequencies f_i.

        Raises:
            RequestError: a frequency outside [0, 1], or all of them zero.
        """
        same = Bernoulli.of(frequencies)
        return cls(same.s, same.frequencies, RandomFactors() if factors is None else factors)

    @property
    def mean_active(self) -> float:
        """s."""
        return self.s

    def check(self, n: int) -> None:
        """RequestError if some frequency would exceed 1 or the factors are for another n."""
        at_most_all("mean number s of active features", self.s, n)
        self.feature_frequencies(n)
        if isinstance(self.factors, GivenFactors):
            self.factors.matrix(n)

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """The relative frequencies scaled to sum s."""
        return scaled(self.frequencies, self.s, n)

    def rho_2(self, n: int) -> float | None:
        """None: it is a maximum of bivariate normal probabilities; measure it on a sample."""
        return None

    def sampler(self, n: int) -> Draw:
        """Given z, exponential skips from active feature to active feature."""
        latent = Latent.of(self, n)

        def draw(N: int, rng: np.random.Generator) -> Rows:
            indptr, parts = np.zeros(N + 1, dtype=np.int64), []
            for start, numbers in latent.blocks(N, rng):
                rows = latent.walk(numbers, rng)
                indptr[start + 1 : start + len(numbers) + 1] = indptr[start] + rows.indptr[1:]
                parts.append(rows.indices)
            return as_rows(indptr, np.concatenate(parts))

        return draw


class Latent(NamedTuple):
    """Features that are independent given latent normal numbers.

    Attributes:
        weights: (n, rank + 1) float32. With numbers (N, rank + 1), the last column ones, numbers @ weights.T are
            the scores of `simulator.copula_kernels`.
        features: the features that `walk` draws, ascending.
        columns: (rank + 1, columns) float32, their weights in the order that `simulator.copula_kernels.walk` wants.
        bounds: the tables of `hazard_bounds`.
    """

    weights: np.ndarray
    features: np.ndarray
    columns: np.ndarray
    bounds: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, support: Copula | Bernoulli, n: int, features: np.ndarray | None = None) -> "Latent":
        """The support's law; independent features are a copula of rank 0."""
        from simulator.copula_kernels import REACH, STEPS, TOGETHER, hazard_bounds

        frequencies = support.feature_frequencies(n)
        F = support.factors.matrix(n) if isinstance(support, Copula) else np.zeros((n, 0))
        own = np.sqrt(1 - np.einsum("ij,ij->i", F, F))
        # Far but finite ends: infinity times zero would be no number.
        threshold = np.clip(scipy.special.ndtri(frequencies), -_FAR, _FAR)
        x = np.column_stack([F, threshold]) / own[:, None]
        x[:, -1] += REACH
        weights = (x * STEPS).astype(np.float32)
        chosen = np.arange(n) if features is None else np.asarray(features)
        groups = -(-chosen.size // TOGETHER)
        padded = np.zeros((groups * TOGETHER, weights.shape[1]), dtype=np.float32)  # score 0: never active
        padded[: chosen.size] = weights[chosen]
        columns = np.ascontiguousarray(padded.reshape(groups, TOGETHER, -1).swapaxes(0, 1).reshape(padded.shape).T)
        return cls(weights, chosen.astype(np.int32), columns, hazard_bounds())

    def blocks(self, N: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
        """The latent numbers of N samples in blocks: first sample and (block, rank + 1) float32."""
        for start in range(0, N, _ROWS):
            yield start, self.numbers(min(_ROWS, N - start), rng)

    def numbers(self, N: int, rng: np.random.Generator) -> np.ndarray:
        """Latent numbers of N samples: (N, rank + 1) float32, the last column ones."""
        numbers = np.ones((N, self.weights.shape[1]), dtype=np.float32)
        numbers[:, :-1] = rng.standard_normal((N, numbers.shape[1] - 1), dtype=np.float32)
        return numbers

    def walk(self, numbers: np.ndarray, rng: np.random.Generator) -> Rows:
        """The active ones of `features` given the latent numbers."""
        from simulator.copula_kernels import TOGETHER, walk

        N, width = len(numbers), self.columns.shape[1]
        indptr, parts = np.zeros(N + 1, dtype=np.int64), [np.empty(0, dtype=np.int32)]
        block = max(_SCORES // max(width, 1), 16)
        scores, top = np.empty((block, width), dtype=np.float32), np.empty(width // TOGETHER, dtype=np.float32)
        found, ends = np.empty(block * width, dtype=np.int32), np.empty(block + 1, dtype=np.int64)
        for start in range(0, N, block):
            part = numbers[start : start + block]
            np.matmul(part, self.columns, out=scores[: len(part)])
            count = walk(scores[: len(part)], *self.bounds, rng, top, ends, found)
            indptr[start + 1 : start + len(part) + 1] = indptr[start] + ends[1 : len(part) + 1]
            parts.append(self.features[found[:count]])
        return Rows(indptr, np.concatenate(parts))

    def probabilities(self, numbers: Float[np.ndarray, "N rank_plus_one"]) -> Float[np.ndarray, "N n"]:
        """p_i(z) of all features in float64."""
        from simulator.copula_kernels import REACH, STEPS

        return scipy.special.ndtr(numbers.astype(np.float64) @ self.weights.T.astype(np.float64) / STEPS - REACH)
