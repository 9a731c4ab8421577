"""A matrix of activations as a source of batches: from memory, `.npy` or `.safetensors`."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulator.errors import RequestError
from simulator.rng import stream
from simulator.storage import as_matrix, read_matrix

_CHECKED_ROWS = 1 << 16
_LARGEST = 1e15  # the square of a row must stay within float32


class ActivationMatrix:
    """Rows of a matrix, shuffled anew each epoch; batch t depends on (seed, t) only.

    Args:
        matrix: (N, d) array or tensor, or the path of a `.npy` or `.safetensors` file.
        seed: decides the order of the rows (stream "batches").

    Raises:
        RequestError: not a matrix, empty, not real, or with NaN or infinite entries.
    """

    def __init__(self, matrix: np.ndarray | Tensor | Path | str, seed: int) -> None:
        if isinstance(matrix, Path | str):
            self.name, self.matrix = str(matrix), read_matrix(Path(matrix))
        else:
            if isinstance(matrix, Tensor):
                matrix = matrix.detach().cpu()
                if matrix.is_complex():
                    raise RequestError(f"the activations have dtype {matrix.dtype}; real numbers are needed")
                matrix = (matrix if matrix.dtype == torch.float64 else matrix.float()).numpy()
            self.name, self.matrix = "the activations", as_matrix(np.asarray(matrix), "the activations")
        self.seed = seed
        self.N, self.d = self.matrix.shape
        digest, nonzero = hashlib.sha256(), False
        for start in range(0, self.N, _CHECKED_ROWS):
            rows = np.ascontiguousarray(self.matrix[start : start + _CHECKED_ROWS])
            digest.update(rows.data)
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise RequestError(f"{self.name}: row {row} holds NaN or infinity; remove such rows first")
            largest = float(np.abs(rows).max())
            if largest > _LARGEST:
                raise RequestError(f"{self.name} holds entries of size {largest:.1e}; scale them below {_LARGEST:.0e}")
            nonzero = nonzero or largest > 0
        if self.N < 2 or not nonzero:
            raise RequestError(f"{self.name}: {self.N} rows, all zero or fewer than two; no dictionary can be learned")
        self._sha256 = digest.hexdigest()
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def with_seed(self, seed: int) -> "ActivationMatrix":
        """The same matrix, read once, with its rows in the order of another seed."""
        other = copy.copy(self)
        other.seed, other._epoch, other._order = seed, -1, np.empty(0, np.int64)
        return other

    def _rows(self, first: int, size: int) -> np.ndarray:
        """Row numbers at positions first..first+size of the endless shuffled sequence."""
        parts = []
        while size > 0:
            epoch, offset = divmod(first, self.N)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, stream(self.seed, "batches", epoch).permutation(self.N)
            parts.append(self._order[offset : offset + size])
            first, size = first + len(parts[-1]), size - len(parts[-1])
        return np.concatenate(parts)

    def batch(self, t: int, size: int) -> Tensor:
        """Batch t, shape (size, d)."""
        return torch.from_numpy(np.ascontiguousarray(self.matrix[self._rows(t * size, size)]))

    def evaluation(self, samples: int, seed: int) -> np.ndarray:
        """Up to `samples` rows to judge a run on, (rows, d); nothing is held out, they are rows of the training."""
        return np.asarray(self.matrix[stream(seed, "evaluation").permutation(self.N)[:samples]])

    def config(self) -> dict[str, Any]:
        """What identifies the data: shape, dtype and a hash of every row."""
        return {
            "type": "ActivationMatrix",
            "shape": list(self.matrix.shape),
            "dtype": str(self.matrix.dtype),
            "sha256": self._sha256,
            "seed": self.seed,
        }
