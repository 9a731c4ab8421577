"""Arrays that a measurement can be made on, or one line that says why not."""

import numpy as np
import scipy.sparse as sparse

from simulator.errors import RequestError


def matrix(name: str, value, *, columns: int | None = None, rows: int | None = None) -> np.ndarray:
    """`value` as a finite, non-empty float matrix (float32 and float64 kept, anything else to float64)."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise RequestError(f"{name} has dtype {array.dtype}; a matrix of real numbers is needed")
    if array.ndim != 2:
        raise RequestError(f"{name} has shape {array.shape}; a matrix (rows x columns) is needed")
    if array.size == 0:
        raise RequestError(f"{name} is empty, shape {array.shape}; at least one row and one column are needed")
    if columns is not None and array.shape[1] != columns:
        raise RequestError(f"{name} has {array.shape[1]} columns where {columns} are needed (shape {array.shape})")
    if rows is not None and array.shape[0] != rows:
        raise RequestError(f"{name} has {array.shape[0]} rows where {rows} are needed (shape {array.shape})")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise RequestError(f"{name}[{row}, {column}] is {array[row, column]}; every entry must be finite")
    return array


def dictionary(name: str, value, *, columns: int | None = None) -> np.ndarray:
    """A `matrix` none of whose rows is zero: a feature needs a direction."""
    array = matrix(name, value, columns=columns)
    zero = np.flatnonzero(~array.any(axis=1))
    if zero.size:
        raise RequestError(f"{name} has {zero.size} zero rows (the first is {zero[0]}); a feature needs a direction")
    return array


def vector(name: str, value, length: int) -> np.ndarray:
    """`value` as `length` finite float64 numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise RequestError(f"{name} has dtype {array.dtype}; real numbers are needed")
    if array.shape != (length,):
        raise RequestError(f"{name} has shape {array.shape}; ({length},) is needed")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise RequestError(f"{name} holds NaN or infinite entries; every entry must be finite")
    return array


def sparse_matrix(name: str, value, shape: tuple[int | None, int | None]) -> sparse.csr_array:
    """`value` as float csr with sorted columns, one entry a place, no stored zeros; the caller's is not
    touched."""
    if not sparse.issparse(value):
        value = sparse.csr_array(matrix(name, value))
    csr = sparse.csr_array(value)
    found = (int(csr.indptr.size - 1), size(value)[1])
    for axis, needed in enumerate(shape):
        if needed is not None and found[axis] != needed:
            kind = ("rows", "columns")[axis]
            raise RequestError(f"{name} has {found[axis]} {kind} where {needed} are needed (shape {found})")
    if 0 in found:
        raise RequestError(f"{name} is empty, shape {found}; at least one row and one column are needed")
    if csr.data.dtype.kind not in "fiub":
        raise RequestError(f"{name} has dtype {csr.data.dtype}; real numbers are needed")
    if not np.isfinite(csr.data).all():
        raise RequestError(f"{name} holds NaN or infinite entries; every entry must be finite")
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def size(table) -> tuple[int, int]:
    """Rows and columns; the type stubs of scipy let a sparse shape be None."""
    return table.shape


def unit_rows(array: np.ndarray) -> np.ndarray:
    """Rows divided by their length, in float64; zero rows stay zero.

    Each row is first divided by its largest entry, so that rows of size 1e-300 keep their direction.
    """
    scaled = array.astype(np.float64)
    largest = np.abs(scaled).max(axis=1, keepdims=True)
    scaled /= np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    scaled /= np.where(length > 0, length, 1.0)
    return scaled


def share(name: str, value: float) -> float:
    """A cosine threshold in [-1, 1]."""
    if not -1.0 <= float(value) <= 1.0:
        raise RequestError(f"{name} = {value}; a cosine between -1 and 1 is needed")
    return float(value)
