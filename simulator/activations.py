"""A matrix of activations as a source of batches: from memory, `.npy` or `.safetensors`."""

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
                matrix = (matrix if matrix.dtype == torch.float64 else matrix.float()).numpy()
            self.name, self.matrix = "the activations", as_matrix(np.asarray(matrix), "the activations")
        self.seed = seed
        self.N, self.d = self.matrix.shape
        for start in range(0, self.N, _CHECKED_ROWS):
            finite = np.isfinite(self.matrix[start : start + _CHECKED_ROWS]).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise RequestError(f"{self.name}: row {row} holds NaN or infinity; remove such rows first")
        self._epoch, self._order = -1, np.empty(0, np.int64)

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

    def config(self) -> dict[str, Any]:
        """What identifies the data: shape, dtype and a hash over up to 4,096 evenly spread rows."""
        chosen = np.unique(np.linspace(0, self.N - 1, min(self.N, 4096)).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(self.matrix[chosen]).tobytes()).hexdigest()
        return {
            "type": "ActivationMatrix",
            "shape": list(self.matrix.shape),
            "dtype": str(self.matrix.dtype),
            "sha256": digest,
            "seed": self.seed,
        }
