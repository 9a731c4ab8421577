"""Activations that SAELens cached on disk (the output of its CacheActivationsRunner), read without `datasets`.

    FOLDER/state.json           the data files, in order
    FOLDER/dataset_info.json    the columns' features
    FOLDER/data-*.arrow         Arrow streams; one row per context:
        <hook name>    lists (context, d) of float32, float16 or float64 (the library cannot store bfloat16)
        token_ids      int32 (context,)

Needs pyarrow (extra [llm]). Files are mapped into memory and only the contexts asked for are converted.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import RequestError

STATE, TOKENS = "state.json", "token_ids"
_ENDING = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of a complete Arrow stream
_BLOCK = 1 << 24  # entries converted at once while the mean is taken


def open_saelens_dataset(folder: Path) -> "SAELensDataset":
    """The cached activations of a folder; errors as in `SAELensDataset`."""
    return SAELensDataset(folder)


class SAELensDataset:
    """Contexts of a folder that SAELens cached; nothing is read before it is asked for.

    Attributes: `columns`, the hooks' names; `d` and `dtypes`, dimension and stored type of each; `context`, tokens per
    context; `contexts`, their number; `has_tokens`, whether token ids are there.

    Raises:
        RequestError: pyarrow is not installed; no such folder; a file is missing, truncated or damaged; the files'
            columns differ; no column holds activations; or columns have contexts of different lengths.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._files = _data_files(self.folder)
        self._batches: list[Any] = []
        self._owners: list[Path] = []
        schema, _ = _open(self._files[0])
        for file in self._files:
            found, batches = _open(file)
            if not found.equals(schema):
                raise RequestError(f"{file} has other columns than {self._files[0]}; one data set has the same in all")
            self._batches += batches
            self._owners += [file] * len(batches)
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)])
        self.contexts = int(self._starts[-1])
        if self.contexts == 0:
            raise RequestError(f"{self.folder} holds no context; cache some activations first")
        shapes = self._shapes(schema)
        self.columns: list[str] = list(shapes)
        self.d: dict[str, int] = {name: d for name, (_, d, _) in shapes.items()}
        self.dtypes: dict[str, str] = {name: dtype for name, (_, _, dtype) in shapes.items()}
        lengths = {length for length, _, _ in shapes.values()}
        if len(lengths) > 1:
            raise RequestError(f"{self.folder} holds contexts of {sorted(lengths)} tokens; one length is needed")
        self.context = lengths.pop()
        self.has_tokens = TOKENS in schema.names

    def _shapes(self, schema: Any) -> dict[str, tuple[int, int, str]]:
        """Tokens, d and type of every column of nested lists of numbers; `read` checks every context."""
        found = {}
        first = next(number for number, batch in enumerate(self._batches) if len(batch))
        for name in schema.names:
            values, lengths = self._column(first, name, 0, 1)
            if len(lengths) == 2 and values.dtype.kind == "f":
                context, d = (int(length[0]) if len(length) else 0 for length in lengths)
                if context < 1 or d < 1:
                    raise RequestError(f"{self.folder}: column {name} has contexts of shape {(context, d)}")
                found[name] = (context, d, values.dtype.name)
        if not found:
            raise RequestError(f"{self.folder}: no column of lists (context, d) of numbers; it has {schema.names}")
        return found

    def _column(self, number: int, name: str, first: int, past: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The flat numbers of contexts first..past of one record batch, and the lists' lengths, level by level."""
        import pyarrow as pa

        file = self._owners[number]
        try:
            values = self._batches[number].column(name).slice(first, past - first)
            # Offsets that point anywhere would be followed anywhere.
            values.validate(full=True)
            if isinstance(values, pa.ExtensionArray):  # where `datasets` has been imported
                values = values.storage
            lengths, nulls = [], values.null_count
            while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
                lengths.append(values.value_lengths().to_numpy(zero_copy_only=False))
                values = values.flatten()
                nulls += values.null_count
            if nulls:
                raise RequestError(f"{file}: column {name} has empty places; every context needs all its numbers")
            return values.to_numpy(zero_copy_only=False), lengths
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error) from None

    def _blocks(self, name: str, first: int, past: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Contexts first..past of a column, one array (contexts, *shape) per record batch."""
        number = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < past:
            start, stop = int(self._starts[number]), min(past, int(self._starts[number + 1]))
            if stop > first:
                values, lengths = self._column(number, name, first - start, stop - start)
                whole = len(lengths) == len(shape) and values.size == (stop - first) * int(np.prod(shape))
                if not whole or any((found != wanted).any() for found, wanted in zip(lengths, shape, strict=True)):
                    where = f"{self._owners[number]}: contexts {first} to {stop} of column {name}"
                    raise RequestError(f"{where} are not all of shape {shape}; contexts of one length are needed")
                yield values.reshape(stop - first, *shape)
            first, number = stop, number + 1

    def read(self, column: str, first_context: int, past_context: int) -> np.ndarray:
        """Activations of contexts first..past, (contexts, context, d) float32.

        Raises:
            RequestError: an unknown column, contexts that are not there, or a damaged file.
        """
        if column not in self.columns:
            raise RequestError(f"{self.folder} has no layer {column!r}; it has {', '.join(self.columns)}")
        self._inside(first_context, past_context)
        shape, at = (self.context, self.d[column]), 0
        found = np.empty((past_context - first_context, *shape), np.float32)
        for block in self._blocks(column, first_context, past_context, shape):
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which a source refuses
                found[at : at + len(block)] = block
            at += len(block)
        return found

    def _inside(self, first: int, past: int) -> None:
        if not 0 <= first <= past <= self.contexts:
            raise RequestError(f"contexts {first} to {past} of {self.folder}; it has 0 to {self.contexts}")

    def tokens(self, first: int, past: int) -> np.ndarray | None:
        """Token ids of contexts first..past, (contexts, context) int32; None where none were cached."""
        if not self.has_tokens:
            return None
        self._inside(first, past)
        found = list(self._blocks(TOKENS, first, past, (self.context,)))
        return np.concatenate([np.empty((0, self.context), np.int32), *found], dtype=np.int32, casting="unsafe")

    def fingerprint(self) -> str:
        """SHA-256 over the SHA-256 of each data file, in order; the files are streamed."""
        digest = hashlib.sha256()
        for file in self._files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()


class SAELensRows:
    """One hook of such a folder as rows (N, d), a row per token; position 0 is kept where SAELens kept it.

    Args:
        folder: as in `SAELensDataset`.
        layer: the hook's name; None where there is only one.

    Raises:
        RequestError: as in `SAELensDataset`, an unknown layer, or several layers and none chosen.
    """

    def __init__(self, folder: Path, layer: str | None = None) -> None:
        self.data = SAELensDataset(folder)
        columns, named = self.data.columns, ", ".join(self.data.columns)
        if layer is None and len(columns) > 1:
            raise RequestError(f"{folder} holds {len(columns)} layers; choose with --layer: {named}")
        self.layer = layer or columns[0]
        if self.layer not in columns:
            raise RequestError(f"{folder} has no layer {layer!r}; it has {named}")
        self.d: int = self.data.d[self.layer]
        self.N, self.name = self.data.contexts * self.data.context, str(folder)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, (rows, d) float32."""
        if not 0 <= start <= stop <= self.N:
            raise RequestError(f"rows {start} to {stop} of {self.name}; it has 0 to {self.N}")
        context = self.data.context
        rows = self.data.read(self.layer, start // context, -(-stop // context)).reshape(-1, self.d)
        return rows[start % context : start % context + stop - start]

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of all rows, (d,) float32, summed in float64; one pass over the files."""
        size, total = max(1, _BLOCK // self.d), np.zeros(self.d)
        for start in range(0, self.N, size):
            total += self.read(start, min(start + size, self.N)).sum(axis=0, dtype=np.float64)
        return (total / self.N).astype(np.float32)

    @cached_property
    def _fingerprint(self) -> str:
        return self.data.fingerprint()

    def identity(self) -> dict[str, Any]:
        """What identifies the rows: a hash of the files, the layer and the shape."""
        shape, dtype = [self.N, self.d], self.data.dtypes[self.layer]
        return {"store": self._fingerprint, "layer": self.layer, "shape": shape, "dtype": dtype, "control": None}


def _data_files(folder: Path) -> list[Path]:
    """The data files that state.json names."""
    state = folder / STATE
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in found["_data_files"]]
        shuffled = found.get("_indices_data_files")
    except FileNotFoundError:
        raise RequestError(
            f"{state} does not exist; give a folder that SAELens' CacheActivationsRunner wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RequestError(f"{state} is damaged: it names no data files; restore it, or cache again") from None
    if shuffled:
        raise RequestError(f"{state} reorders its rows by an index; save the data set flattened (flatten_indices)")
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise RequestError(f"{state} names no data files in its own folder; restore it, or cache again")
    return [folder / name for name in names]


def _open(file: Path) -> tuple[Any, list[Any]]:
    """Schema and record batches of an Arrow stream, mapped: their numbers are on disk until they are used."""
    try:
        import pyarrow as pa
    except ImportError:
        raise RequestError("SAELens data sets need pyarrow; pip install 'sae-recovery[llm]'") from None
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_ENDING), 2)
            complete = opened.read() == _ENDING
        if not complete:  # without this test a file cut between two batches would pass for a shorter one
            raise RequestError(f"{file} is truncated: its end marker is missing; restore it, or cache again")
        with pa.ipc.open_stream(pa.memory_map(str(file))) as reader:
            return reader.schema, list(reader)
    except FileNotFoundError:
        raise RequestError(f"{file} is missing, but {STATE} names it; restore it, or cache again") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> RequestError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RequestError(f"{file} is truncated or damaged ({reason}); restore it, or cache again")
