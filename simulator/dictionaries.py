"""Laws of the planted dictionary V (n x d): its rows are the monosemantic features v_i."""

import functools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from simulator.checks import finite_array, real, whole
from simulator.errors import RequestError


@runtime_checkable
class Dictionary(Protocol):
    """What a law of dictionaries offers."""

    def check(self, n: int, d: int) -> None:
        """Raise RequestError if the law has no n x d dictionary."""
        ...

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """One n x d dictionary in float64, without zero rows."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normal entries, v_i ~ N(0, I_d), so ||v_i|| is about sqrt(d).

    On this scale w^T x ~ N(0, 1) for a unit vector w and a row of H of unit norm. It is the dictionary of the
    recovery theorem of Chen et al. 2025, arXiv:2506.14002.
    """

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """n x d standard normal numbers."""
        return rng.standard_normal((n, d))


@dataclass(frozen=True)
class Rademacher:
    """Independent entries +1 or -1, equally likely: ||v_i|| = sqrt(d) exactly. Not Gaussian, same two moments."""

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """n x d random signs."""
        return rng.integers(0, 2, (n, d)) * 2.0 - 1.0


@dataclass(frozen=True)
class SparseGaussian:
    """Each entry is N(0, 1 / density) with probability `density` and 0 else: mean 0, variance 1; no zero row.

    A row that would be all zeros gets one non-zero entry at a random place.

    Raises:
        RequestError: a density outside (0, 1].
    """

    density: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", real("density", self.density, 0, 1, open_low=True))

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """Normal numbers where a mask lets them through."""
        mask = rng.random((n, d)) < self.density
        mask[np.flatnonzero(~mask.any(axis=1)), rng.integers(0, d, int((~mask.any(axis=1)).sum()))] = True
        return np.where(mask, rng.standard_normal((n, d)) / math.sqrt(self.density), 0.0)


@dataclass(frozen=True)
class HeavyTailed:
    """Independent Student t entries with `df` > 2 degrees of freedom, scaled to variance 1.

    Raises:
        RequestError: df <= 2, where the variance is infinite.
    """

    df: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "df", real("degrees of freedom", self.df, 2, open_low=True))

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """t numbers divided by sqrt(df / (df - 2))."""
        return rng.standard_t(self.df, (n, d)) * math.sqrt((self.df - 2) / self.df)


@dataclass(frozen=True)
class UnitSphere:
    """Independent rows, uniform on the unit sphere of R^d: ||v_i|| = 1."""

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """Gaussian rows divided by their norms."""
        return _unit_rows(rng.standard_normal((n, d)))


@dataclass(frozen=True)
class Orthonormal:
    """n <= d orthonormal rows, uniform (Haar): V V^T = I, so there is no superposition."""

    def check(self, n: int, d: int) -> None:
        """RequestError if n > d."""
        if n > d:
            raise RequestError(f"{n} orthonormal rows do not fit into d = {d} dimensions; choose n <= d")

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """The Q of the QR decomposition of a d x n Gaussian matrix, transposed."""
        Q, R = np.linalg.qr(rng.standard_normal((d, n)))
        # Only with the diagonal of R positive is the decomposition unique, and so Q uniform.
        return np.ascontiguousarray((Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)).T)


@dataclass(frozen=True)
class Coherent:
    """Unit rows that lean to a common direction: cos(v_i, v_j) has mean exactly `mean_cosine`.

    v_i = sqrt(c) u + sqrt(1 - c) g_i with c = `mean_cosine`, u uniform on the sphere, g_i independent and
    uniform on the unit sphere orthogonal to u. For i != j the cosine has expectation c and standard
    deviation (1 - c) / sqrt(d - 1); c = 0 still makes the rows orthogonal to u. ||v_i|| = 1.

    Raises:
        RequestError: a mean cosine outside [0, 1), or (later) d < 2.
    """

    mean_cosine: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_cosine", real("mean cosine", self.mean_cosine, 0, 1, open_high=True))

    def check(self, n: int, d: int) -> None:
        """RequestError if d < 2."""
        if d < 2:
            raise RequestError(f"a coherent dictionary needs d >= 2 dimensions, not d = {d}")

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """The mixture of the common and the own directions."""
        common = _unit_rows(rng.standard_normal((1, d)))
        own = rng.standard_normal((n, d))
        own = _unit_rows(own - (own @ common.T) * common)
        return math.sqrt(self.mean_cosine) * common + math.sqrt(1 - self.mean_cosine) * own


@dataclass(frozen=True)
class Orthogonalised:
    """Unit rows that start Gaussian and are pushed apart by `steps` steps of Adam.

    The objective is sum_{i != j} (v_i . v_j)^2 + n sum_i (|v_i|^2 - 1)^2, and at the end the rows get norm 1, as
    in sae_lens.synthetic. Since sum_ij (v_i . v_j)^2 = |V^T V|^2, the gradient
    4 V V^T V - 4 diag(|v_i|^2) V + 4 n diag(|v_i|^2 - 1) V costs n d^2 and not n^2 d. Computed in float32; the
    last dictionary is kept, for a sample asks for it each time.

    Raises:
        RequestError: steps < 0 or a learning rate <= 0.
    """

    steps: int = 100
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps of the orthogonalisation", self.steps, 0))
        rate = real("learning rate of the orthogonalisation", self.learning_rate, 0, open_low=True)
        object.__setattr__(self, "learning_rate", rate)

    def check(self, n: int, d: int) -> None:
        """Every n x d is possible."""

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """A Gaussian start, orthogonalised."""
        start = _unit_rows(rng.standard_normal((n, d))).astype(np.float32)
        return _unit_rows(_apart(start.tobytes(), d, self.steps, self.learning_rate).astype(np.float64))


@dataclass(frozen=True, eq=False)
class GivenDictionary:
    """The dictionary is this matrix (n x d), whatever the seed; it is copied and kept in float64.

    Raises:
        RequestError: not a matrix of finite numbers, a zero row, or (later) not of shape (n, d).
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        matrix = finite_array("the given dictionary", self.matrix, 2)
        zero = np.flatnonzero(~matrix.any(axis=1))
        if zero.size:
            raise RequestError(
                f"the given dictionary has {zero.size} zero row(s), the first is row {zero[0]}; "
                "every feature needs a direction"
            )
        object.__setattr__(self, "matrix", matrix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenDictionary) and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash((self.matrix.shape, self.matrix[0].tobytes()))

    def check(self, n: int, d: int) -> None:
        """RequestError if the matrix is not n x d."""
        if self.matrix.shape != (n, d):
            raise RequestError(
                f"the given dictionary has shape {self.matrix.shape}, but the world has (n, d) = {(n, d)}"
            )

    def draw(self, n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """A copy of the matrix."""
        self.check(n, d)
        return self.matrix.copy()


@functools.lru_cache(maxsize=1)
def _apart(start: bytes, d: int, steps: int, learning_rate: float) -> Float[np.ndarray, "n d"]:
    """`orthogonalised` of float32 rows; the last result is kept."""
    return orthogonalised(np.frombuffer(start, dtype=np.float32).reshape(-1, d), steps, learning_rate)


def orthogonalised(start: Float[np.ndarray, "n d"], steps: int, learning_rate: float) -> Float[np.ndarray, "n d"]:
    """The rows after the steps of `Orthogonalised` from these rows, in their dtype; not yet of norm 1."""
    V = torch.tensor(start)
    adam = torch.optim.Adam([V], lr=learning_rate)
    for _ in range(steps):
        squares = V.square().sum(dim=1, keepdim=True)
        V.grad = (V @ (V.T @ V)).add_(V * ((len(V) - 1) * squares - len(V))).mul_(4)
        adam.step()
    return V.numpy()


def _unit_rows(matrix: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows divided by their norms, in place."""
    matrix /= np.sqrt(np.einsum("ij,ij->i", matrix, matrix))[:, None]
    return matrix
