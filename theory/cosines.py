"""Every cosine of two dictionaries, looked at once and in blocks, never held together.

The products are float32 (fast), the answers float64 (exact). With unit rows a float32 product is within
`slack(d)` of the true cosine, so that the true maximum lies among the entries within 2 slack of the float32
maximum; those few are computed again in float64. What is reported is rounded to 12 decimals: a rescaled or
permuted dictionary gives the same numbers, exact copies tie, and ties go to the lowest index.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

DECIMALS = 12
CHUNK = 64  # columns that share one maximum: only chunks that can hold an answer are read again
BLOCK_BYTES = 1 << 27  # of one float32 block of cosines
PAIRS_AT_ONCE = 1 << 24  # float64 entries gathered at once


@dataclass(frozen=True)
class Scan:
    """What one pass over the cosines of R row vectors with C column vectors found.

    `*_best` is (cosine, index) of the largest signed cosine, `*_absolute` of the largest |cosine|;
    counts are per threshold, the number of cosines above it.
    """

    row_best: tuple[Float[np.ndarray, " R"], Int[np.ndarray, " R"]]
    row_absolute: tuple[Float[np.ndarray, " R"], Int[np.ndarray, " R"]]
    column_best: tuple[Float[np.ndarray, " C"], Int[np.ndarray, " C"]]
    column_absolute: tuple[Float[np.ndarray, " C"], Int[np.ndarray, " C"]]
    row_counts: Int[np.ndarray, "T R"]
    column_counts: Int[np.ndarray, "T C"]
    candidates: "Candidates | None"


@dataclass(frozen=True)
class Candidates:
    """Per row the k columns of largest |cosine|; no other column of the row has more than `remainder`."""

    column: Int[np.ndarray, "R k"]
    value: Float[np.ndarray, "R k"]
    remainder: Float[np.ndarray, " R"]


def slack(d: int) -> float:
    """Bound on |float32 product - cosine| for unit rows of length d, with any order of summation.

    Rounding both vectors to float32 costs at most 2u, the sum of d products d u / (1 - d u), u = 2^-24;
    doubled.
    """
    return 2 * (d + 4) * 2.0**-24


def pair_cosines(
    A: Float[np.ndarray, "R d"],
    B: Float[np.ndarray, "C d"],
    rows: Int[np.ndarray, " P"],
    columns: Int[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    """Float64 cosines of the pairs (rows[p], columns[p]) of unit rows, clipped and rounded to 12 decimals."""
    values = np.empty(len(rows))
    step = max(1, PAIRS_AT_ONCE // A.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        values[part] = np.einsum("ij,ij->i", A[rows[part]], B[columns[part]])
    return _rounded(values)


def block_cosines(A: Float[np.ndarray, "R d"], B: Float[np.ndarray, "C d"]) -> Float[np.ndarray, "R C"]:
    """All float64 cosines of unit rows (a matrix that fits in memory), clipped and rounded to 12 decimals."""
    return _rounded(A @ B.T)


def _rounded(values: np.ndarray) -> np.ndarray:
    np.round(values, DECIMALS, out=values)
    np.clip(values, -1.0, 1.0, out=values)
    values += 0.0  # no negative zero
    return values


class _Best:
    """Running best (value, index) per row among pairs offered in any order; ties to the lowest index."""

    def __init__(self, size: int, limit: int):
        self.value = np.full(size, -np.inf)
        self.index = np.full(size, limit, dtype=np.int64)

    def offer(self, rows: np.ndarray, values: np.ndarray, indices: np.ndarray) -> None:
        order = np.lexsort((indices, -values, rows))
        rows, values, indices = rows[order], values[order], indices[order]
        first = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if len(rows) else np.empty(0, dtype=np.int64)
        rows, values, indices = rows[first], values[first], indices[first]
        better = (values > self.value[rows]) | ((values == self.value[rows]) & (indices < self.index[rows]))
        self.value[rows[better]] = values[better]
        self.index[rows[better]] = indices[better]

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        return self.value, self.index


def scan(
    A: Float[np.ndarray, "R d"],
    B: Float[np.ndarray, "C d"],
    thresholds: tuple[float, ...] = (),
    candidates: int = 0,
) -> Scan:
    """One pass over the cosines of unit rows A (R x d) and B (C x d), both float64.

    Memory: one block (128 MiB), a few copies of it, the inputs, and per block two numbers a column.
    """
    R, C, d = len(A), len(B), A.shape[1]
    A32, B32 = torch.from_numpy(A.astype(np.float32)), torch.from_numpy(B.astype(np.float32))
    chunks = -(-C // CHUNK)
    # The last chunk is filled up with copies of the last column: no maximum changes.
    padded = torch.cat([B32, B32[-1:].expand(chunks * CHUNK - C, d)]).T.contiguous()
    size = max(1, min(R, BLOCK_BYTES // (4 * chunks * CHUNK)))
    starts = range(0, R, size)
    highest, lowest = torch.empty(len(starts), C), torch.empty(len(starts), C)
    best, absolute = _Best(R, C), _Best(R, C)
    counts = np.zeros((len(thresholds), R), dtype=np.int64), np.zeros((len(thresholds), C), dtype=np.int64)
    k = min(candidates, C)
    kept = Candidates(np.empty((R, k), dtype=np.int64), np.empty((R, k)), np.zeros(R)) if k else None
    buffer = torch.empty(size, chunks * CHUNK)
    for number, start in enumerate(starts):
        rows = slice(start, min(R, start + size))
        block = _product(A32[rows], padded, buffer[: rows.stop - start])
        highest[number], lowest[number] = block[:, :C].amax(0), block[:, :C].amin(0)
        chunked = block.view(len(block), chunks, CHUNK)
        high, low = chunked.amax(2), chunked.amin(2)
        _rows_best(best, A, B, start, chunked, high, False)
        _rows_best(absolute, A, B, start, chunked, torch.maximum(high, -low), True)
        _count(counts, thresholds, A, B, start, chunked, high)
        if kept is not None:
            _keep(kept, A, B, rows, chunked, torch.maximum(high, -low))
    return Scan(
        best.pair(),
        absolute.pair(),
        _columns_best(A, B, A32, B32, size, highest, False),
        _columns_best(A, B, A32, B32, size, torch.maximum(highest, -lowest), True),
        *counts,
        kept,
    )


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """left @ right in true float32, whatever reduced precision the caller allows torch elsewhere."""
    if torch.get_float32_matmul_precision() == "highest":
        return torch.matmul(left, right, out=out)
    np.matmul(left.numpy(), right.numpy(), out=out.numpy())
    return out


def _offer(best: _Best, A, B, rows: np.ndarray, columns: np.ndarray, absolute: bool, by_row: bool) -> None:
    values = pair_cosines(A, B, rows, columns)
    values = np.abs(values) if absolute else values
    best.offer(*((rows, values, columns) if by_row else (columns, values, rows)))


def _rows_best(best: _Best, A, B, start: int, chunked: torch.Tensor, peaks: torch.Tensor, absolute: bool) -> None:
    """Offer every pair that can be the maximum of its row; chunks below the row's peak cannot hold it."""
    floor = peaks.amax(1) - 2 * slack(A.shape[1])
    rows, chunk = torch.nonzero(peaks >= floor[:, None], as_tuple=True)
    for part in _parts(len(rows), CHUNK):
        values = chunked[rows[part], chunk[part]]
        values = values.abs() if absolute else values
        picked, offset = torch.nonzero(values >= floor[rows[part]][:, None], as_tuple=True)
        columns = (chunk[part][picked] * CHUNK + offset).numpy()
        real = columns < len(B)
        _offer(best, A, B, rows[part][picked].numpy()[real] + start, columns[real], absolute, True)


def _columns_best(A, B, A32, B32, size: int, peaks: torch.Tensor, absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    """Best row of every column: only the blocks whose peak reaches the column's are multiplied again."""
    best = _Best(len(B), len(A))
    floor = peaks.amax(0) - 2 * slack(A.shape[1])
    for number in range(len(peaks)):
        columns = torch.nonzero(peaks[number] >= floor)[:, 0]
        start = number * size
        block = A32[start : start + size]
        for part in _parts(len(columns), len(block)):
            values = _product(block, B32[columns[part]].T.contiguous(), torch.empty(len(block), len(columns[part])))
            values = values.abs() if absolute else values
            row, place = torch.nonzero(values >= floor[columns[part]] - slack(A.shape[1]), as_tuple=True)
            _offer(best, A, B, row.numpy() + start, columns[part][place].numpy(), absolute, False)
    return best.pair()


def _count(counts, thresholds, A, B, start: int, chunked: torch.Tensor, high: torch.Tensor) -> None:
    """Add the block's cosines above each threshold; those within float32 error of it are computed again."""
    error = slack(A.shape[1])
    for number, threshold in enumerate(thresholds):
        rows, chunk = torch.nonzero(high > threshold - error, as_tuple=True)
        for part in _parts(len(rows), CHUNK):
            values = chunked[rows[part], chunk[part]]
            picked, offset = torch.nonzero(values > threshold - error, as_tuple=True)
            columns = (chunk[part][picked] * CHUNK + offset).numpy()
            above = (values[picked, offset] > threshold + error).numpy()
            found = rows[part][picked].numpy() + start
            above &= columns < len(B)
            unsure = np.flatnonzero(~above & (columns < len(B)))
            above[unsure] = pair_cosines(A, B, found[unsure], columns[unsure]) > threshold
            counts[0][number] += np.bincount(found[above], minlength=len(A))
            counts[1][number] += np.bincount(columns[above], minlength=len(B))


def _keep(kept: Candidates, A, B, rows: slice, chunked: torch.Tensor, peaks: torch.Tensor) -> None:
    """The k largest |cosines| of each row: they lie in the k + 1 chunks of highest peak, as does the next
    one."""
    k, C = kept.column.shape[1], len(B)
    for part in _parts(len(chunked), CHUNK * min(k + 1, peaks.shape[1])):
        chunk = peaks[part].topk(min(k + 1, peaks.shape[1]), dim=1).indices
        values = torch.gather(chunked[part], 1, chunk[:, :, None].expand(-1, -1, CHUNK)).abs_()
        columns = chunk[:, :, None] * CHUNK + torch.arange(CHUNK)
        values = torch.where(columns < C, values, -1.0).flatten(1)
        value, place = values.topk(min(k + 1, C), dim=1)
        column = columns.flatten(1).gather(1, place[:, :k]).numpy()
        here = slice(rows.start + part.start, rows.start + min(part.stop, len(chunked)))
        row = np.repeat(np.arange(here.start, here.stop), k)
        kept.column[here] = column
        kept.value[here] = np.abs(pair_cosines(A, B, row, column.ravel())).reshape(-1, k)
        if k < C:
            kept.remainder[here] = np.minimum(1.0, value[:, k].numpy().astype(np.float64) + slack(A.shape[1]))


def _parts(length: int, width: int):
    """Slices of `length` rows of `width` numbers each that fit the memory of one gather."""
    step = max(1, PAIRS_AT_ONCE // width)
    return [slice(start, start + step) for start in range(0, length, step)]
