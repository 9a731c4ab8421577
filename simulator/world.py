"""The world: the law of X = H V (+ bias, + noise), samples of it and an endless stream of batches."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float

from simulator.checks import finite_array, real, whole
from simulator.coefficients import Coefficients, ConstantCoefficients, positive_share
from simulator.config import to_config
from simulator.copula import Copula
from simulator.descent import descending_sampler, remaining_frequencies
from simulator.dictionaries import Dictionary, Gaussian
from simulator.draws import Rows, as_rows
from simulator.errors import RequestError
from simulator.hierarchy import Hierarchy
from simulator.rng import stream
from simulator.supports import Bernoulli, Support

# Samples whose noise is drawn at once: bounds the float64 intermediate of a large sample.
_NOISE_ROWS = 4096


@dataclass(frozen=True)
class Sample:
    """N samples of a world: X = H V (+ bias, + noise).

    Attributes:
        X: inputs, (N, d).
        H: non-negative coefficients, scipy csr array (N, n), indices ascending, stored entries positive.
        V: the planted dictionary, (n, d), rows are the features.
    """

    X: Float[np.ndarray, "N d"]
    H: scipy.sparse.csr_array
    V: Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class World:
    """The law of x = sum_i h_i v_i + c + noise (Chen et al. 2025, arXiv:2506.14002, there without c and noise).

    A world is a law and holds no seed; the same seed gives the same dictionary and the same samples.

    Attributes:
        n: number of features.
        d: dimension of the inputs; n > d is superposition.
        support: law of the active features of a sample.
        dictionary: law of V.
        coefficients: law of the non-zero coefficients.
        unit_rows: whether rows of H are divided by their l2 norms (s equal coefficients become 1 / sqrt(s)).
        noise: standard deviation of isotropic Gaussian noise on each of the d coordinates of x; the noise has
            norm about noise sqrt(d). With `unit_rows`, h V has norm about sqrt(d) for a `Gaussian` V, so
            there `noise` is the ratio of noise to signal, and about 1 if the rows of V have norm 1.
        hierarchy: what of a drawn support stays, and which coefficients are scaled, before `unit_rows`. The features of
            `support` must be independent (`Bernoulli`), or so given a latent variable (`Copula`).
        bias: the constant c: its norm, with a direction that is uniform and belongs to the dictionary's seed; or c
            itself, d numbers.

    Raises:
        RequestError: n or d < 1, noise that is negative or not finite, a bias that is negative or of another length, a
            hierarchy of another n or with other supports, or a law impossible with n and d.
    """

    n: int
    d: int
    support: Support
    dictionary: Dictionary = field(default_factory=Gaussian)
    coefficients: Coefficients = field(default_factory=ConstantCoefficients)
    unit_rows: bool = True
    noise: float = 0.0
    hierarchy: Hierarchy | None = field(default=None, metadata={"config": "unless default"})
    bias: float | Sequence[float] | np.ndarray = field(default=0.0, metadata={"config": "unless default"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("number of features n", self.n, 1, 2**31 - 1))
        object.__setattr__(self, "d", whole("dimension d", self.d, 1, 2**31 - 1))
        object.__setattr__(self, "noise", real("noise", self.noise, 0, 1e15))
        self.support.check(self.n)
        positive_share(self.coefficients, self.n)
        self.dictionary.check(self.n, self.d)
        if np.ndim(self.bias) == 0:
            object.__setattr__(self, "bias", real("norm of the bias", self.bias, 0, 1e15))
        else:
            # A tuple, so that worlds can be compared and hashed.
            bias = finite_array("bias", self.bias, 1)
            if bias.size != self.d:
                raise RequestError(f"the bias has {bias.size} entries, but the world has d = {self.d}")
            object.__setattr__(self, "bias", tuple(bias.tolist()))
        if self.hierarchy is not None:
            if self.hierarchy.n != self.n:
                raise RequestError(f"the hierarchy is for {self.hierarchy.n} features, but the world has n = {self.n}")
            if not isinstance(self.support, (Bernoulli, Copula)):
                raise RequestError(
                    f"a hierarchy needs supports Bernoulli or Copula, not {type(self.support).__name__}: features that "
                    "are independent, or so given a latent variable"
                )

    @property
    def mean_active(self) -> float:
        """Expected number of active features in a sample, sum_i f_i: the true L0."""
        if self.keeps_support:
            return self.support.mean_active
        return float(self._frequencies.sum())

    def frequencies(self) -> Float[np.ndarray, " n"]:
        """f_i = P(feature i is active) of the law, h_i > 0. Exact, but averaged over latent numbers where a hierarchy
        meets a copula: see `simulator.descent.remaining_frequencies` for the error."""
        return self._frequencies.copy()

    def rho_2(self) -> float | None:
        """max_{i != j} P(j active | i active) of the law, exact; None where it has no closed form."""
        return self.support.rho_2(self.n) if self.keeps_support else None

    def features(self, seed: int) -> Float[np.ndarray, "n d"]:
        """The dictionary V of this seed in float64, from the random stream "dictionary"."""
        return self.dictionary.draw(self.n, self.d, stream(seed, "dictionary"))

    def offset(self, seed: int) -> Float[np.ndarray, " d"]:
        """The constant c of this seed in float64, from the random stream "bias" unless it is given."""
        if not isinstance(self.bias, float):
            return np.array(self.bias)
        direction = stream(seed, "bias").standard_normal(self.d)
        return self.bias * direction / np.linalg.norm(direction)

    def sample(
        self, N: int, seed: int, *, name: str = "sample", dtype: Any = np.float32, dictionary_seed: int | None = None
    ) -> Sample:
        """N samples with the dictionary of `seed`.

        Args:
            N: number of samples, >= 1.
            seed: whole number, 0 <= seed < 2**63.
            name: another name gives fresh H and noise with the same V, apart from the batches of `stream`.
            dtype: np.float32 or np.float64, of X, H and V. The random numbers are the same for both.
            dictionary_seed: take V from this seed instead: fresh samples of one and the same world.

        Raises:
            RequestError: N < 1, a seed out of range or another dtype.
        """
        whole("number of samples N", N, 1)
        torch_dtype = _float_dtype(dtype)
        rng = stream(seed, f"sample/{name}")
        rows, coefficients = self.row_sampler()(N, rng)
        structure = seed if dictionary_seed is None else dictionary_seed
        V = torch.from_numpy(self.features(structure)).to(torch_dtype)
        X = _combine(rows, coefficients, V)
        if self.bias:
            X += torch.from_numpy(self.offset(structure)).to(torch_dtype)
        _add_noise(X, self.noise, rng)
        return Sample(X.numpy(), _matrix(rows, coefficients, self.n, torch_dtype), V.numpy())

    def stream(
        self,
        seed: int,
        *,
        dtype: Any = torch.float32,
        device: str | torch.device = "cpu",
        dictionary_seed: int | None = None,
    ) -> "WorldStream":
        """The endless stream of batches of `seed`; see `WorldStream`."""
        return WorldStream(self, seed, dtype=dtype, device=device, dictionary_seed=dictionary_seed)

    def row_sampler(self) -> Callable[[int, np.random.Generator], tuple[Rows, Float[np.ndarray, " entries"]]]:
        """The prepared sampler of H: (N, rng) to the supports and the float64 coefficients of N samples."""
        if self.hierarchy is not None:
            assert isinstance(self.support, (Bernoulli, Copula))
            draw = descending_sampler(self.support, self.coefficients, self.hierarchy, self.n)
        else:
            draw = self._direct_sampler()

        def sample(N: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
            rows, coefficients = draw(N, rng)
            return rows, _unit_norm(rows, coefficients) if self.unit_rows else coefficients

        return sample

    def _direct_sampler(self) -> Callable[[int, np.random.Generator], tuple[Rows, np.ndarray]]:
        """Supports, then coefficients; those that are 0 leave the support."""
        draw = self.support.sampler(self.n)

        def sample(N: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
            rows = draw(N, rng)
            coefficients = self.coefficients.draw(rows.indices, rng)
            active = coefficients > 0
            if active.all():
                return rows, coefficients
            before = np.concatenate([[0], np.cumsum(active)])
            return as_rows(before[rows.indptr], rows.indices[active]), coefficients[active]

        return sample

    @property
    def keeps_support(self) -> bool:
        """Whether what the support draws is what is active."""
        return self.hierarchy is None and bool((positive_share(self.coefficients, self.n) == 1).all())

    @functools.cached_property
    def _frequencies(self) -> Float[np.ndarray, " n"]:
        if self.hierarchy is None:
            return self.support.feature_frequencies(self.n) * positive_share(self.coefficients, self.n)
        assert isinstance(self.support, (Bernoulli, Copula))
        return remaining_frequencies(self.support, self.coefficients, self.hierarchy, self.n)


class WorldStream:
    """Endless batches X of a world. Batch t depends on the seed and t only, so a run can resume anywhere.

    Memory is that of V and of one batch. The numbers are drawn on the CPU, so they are the same for every
    device; only the product H V is computed on `device`.

    Attributes:
        world: the law.
        seed: the seed.
        n, d: number of features and dimension.
        dictionary_seed: the seed of V where it is another one: streams of equal V and different samples are
            what runs to be compared with each other are trained on.

    Raises:
        RequestError: a seed out of range, a dtype that is not float32 or float64, or an unknown device.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        *,
        dtype: Any = torch.float32,
        device: str | torch.device = "cpu",
        dictionary_seed: int | None = None,
    ) -> None:
        self.world = world
        self.seed = seed
        self.dictionary_seed = seed if dictionary_seed is None else dictionary_seed
        self.n = world.n
        self.d = world.d
        self._dtype = _float_dtype(dtype)
        try:
            self._dictionary = torch.from_numpy(world.features(self.dictionary_seed)).to(
                device=device, dtype=self._dtype
            )
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"device {str(device)!r} cannot be used: {reason}") from None
        self._offset = torch.from_numpy(world.offset(self.dictionary_seed)).to(self._dictionary) if world.bias else None
        self._sample_rows = world.row_sampler()

    @functools.cached_property
    def V(self) -> Float[np.ndarray, "n d"]:
        """The planted dictionary (n x d) in the dtype of the stream; on the CPU a view of what it uses."""
        return self._dictionary.cpu().numpy()

    def batch(self, t: int, size: int) -> Float[torch.Tensor, "size d"]:
        """Batch number t >= 0 of `size` >= 1 samples: X of shape (size, d)."""
        rng = self._batch_rng(t, size)
        X = _combine(*self._sample_rows(size, rng), self._dictionary)
        if self._offset is not None:
            X += self._offset
        _add_noise(X, self.world.noise, rng)
        return X

    def sparse_batch(self, t: int, size: int) -> scipy.sparse.csr_array:
        """The H (size, n) of `batch(t, size)`."""
        rows, coefficients = self._sample_rows(size, self._batch_rng(t, size))
        return _matrix(rows, coefficients, self.n, self._dtype)

    def config(self) -> dict[str, Any]:
        """What identifies the data: the world and the seed, JSON-able."""
        known = {"type": "WorldStream", "world": to_config(self.world), "seed": self.seed, "dtype": str(self._dtype)}
        return known if self.dictionary_seed == self.seed else known | {"dictionary_seed": self.dictionary_seed}

    def _batch_rng(self, t: int, size: int) -> np.random.Generator:
        whole("size of a batch", size, 1)
        return stream(self.seed, "batches", whole("number t of a batch", t, 0))


def _unit_norm(rows: Rows, coefficients: np.ndarray) -> np.ndarray:
    """Coefficients divided by the l2 norms of their rows."""
    sizes = np.diff(rows.indptr)
    N = sizes.size
    size = int(sizes[0])
    if size > 0 and (sizes == size).all():
        by_row = coefficients.reshape(N, size)
        return (by_row / np.sqrt(np.einsum("ij,ij->i", by_row, by_row))[:, None]).reshape(-1)
    row = np.repeat(np.arange(N), sizes)
    squares = np.bincount(row, coefficients * coefficients, minlength=N)
    return coefficients / np.sqrt(squares)[row]


def _combine(rows: Rows, coefficients: np.ndarray, V: torch.Tensor) -> Float[torch.Tensor, "N d"]:
    """H V as a sum of s rows of V per sample, without an intermediate of N x s x d."""
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(rows.indices).to(V.device),
        V,
        torch.from_numpy(rows.indptr).to(V.device),
        mode="sum",
        per_sample_weights=torch.from_numpy(coefficients).to(device=V.device, dtype=V.dtype),
        include_last_offset=True,
    )


def _add_noise(X: torch.Tensor, noise: float, rng: np.random.Generator) -> None:
    """Add the noise to X in place, a block of rows at a time; the blocks do not change the numbers."""
    if noise == 0:
        return
    for start in range(0, len(X), _NOISE_ROWS):
        block = X[start : start + _NOISE_ROWS]
        block += torch.from_numpy(noise * rng.standard_normal(tuple(block.shape))).to(block)


def _matrix(rows: Rows, coefficients: np.ndarray, n: int, dtype: torch.dtype) -> scipy.sparse.csr_array:
    values = torch.from_numpy(coefficients).to(dtype).numpy()
    H = scipy.sparse.csr_array((values, rows.indices, rows.indptr), shape=(rows.indptr.size - 1, n))
    H.has_canonical_format = True
    return H


def _float_dtype(dtype: Any) -> torch.dtype:
    """torch.float32 or torch.float64 from a NumPy or torch dtype or its name."""
    names = {"float32": torch.float32, "float64": torch.float64}
    if isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = str(dtype)
    if name not in names:
        raise RequestError(f"dtype {name} is not supported; choose float32 or float64")
    return names[name]
