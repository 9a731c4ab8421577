"""The activation store: shards of rows in safetensors and one index.json that says what they are.

    STORE/index.json              dtype, layers, model, text, what was dropped, shards with checksums, mean and scale
    STORE/shard-00000.safetensors  one matrix (rows, d) per layer, named by the layer, and
        token_ids, positions, contexts   (rows,) int32: token, its place in its context, number of the context
        first_tokens                     (contexts of the shard,) int32: the token at position 0, whose row is dropped

A shard is written and renamed, then the index is; a process killed between the two leaves a shard that the next one
overwrites. A context never spans two shards.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llm_bridge.models import DTYPES
from simulator.errors import RequestError
from simulator.storage import digest, save_tensors, write_atomically

INDEX = "index.json"
FORMAT = "sae-recovery activations 1"
MARKS = ("token_ids", "positions", "contexts", "first_tokens")
_KINDS = {"BF16": np.uint16, "F32": np.float32, "I32": np.int32}


def read_index(folder: Path) -> dict[str, Any] | None:
    """index.json, or None if there is none.

    Raises:
        RequestError: it is damaged or not ours.
    """
    file = Path(folder) / INDEX
    if not file.exists():
        return None
    try:
        index = json.loads(file.read_text())
        checksum = index.pop("sha256", None)
        if checksum is not None and checksum != _checksum(index):
            raise ValueError
        _refuse_malformed(index)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"{file} is damaged or no index of {FORMAT}; capture the store again") from None
    return index


def _checksum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _refuse_malformed(index: Mapping[str, Any]) -> None:
    """ValueError, TypeError or LookupError where an index does not fit together."""
    layers, shards, rows = index["layers"], index["shards"], index["rows"]
    counts = [rows, index["contexts"], index["batches"], *layers.values(), *(shard["rows"] for shard in shards)]
    fits = (
        index["format"] == FORMAT
        and index["dtype"] in DTYPES
        and len(layers) > 0
        and isinstance(index["complete"], bool)
        and all(isinstance(count, int) for count in counts)
        and rows == sum(shard["rows"] for shard in shards)
        and all(Path(shard["file"]).name == shard["file"] and len(shard["sha256"]) == 64 for shard in shards)
        and all(len(index["statistics"][path]["sum"]) == d for path, d in layers.items())
        and (rows == 0 or all(len(index["mean"][path]) == d for path, d in layers.items()))
    )
    if not fits:
        raise ValueError


class StoreWriter:
    """Appends shards; what is in the index is complete.

    Args:
        folder: of the store; made if needed.
        identity: what decides the rows; a store of another identity is refused by the caller.
        layers: dotted module path -> d.
        dtype: "bf16" or "fp32".
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], layers: Mapping[str, int], dtype: str) -> None:
        self.folder = Path(folder)
        self.index: dict[str, Any] = read_index(folder) or {
            "format": FORMAT, **identity, "dtype": dtype, "layers": dict(layers), "rows": 0, "contexts": 0,
            "batches": 0, "shards": [], "complete": False,
            "statistics": {path: {"sum": [0.0] * d, "energy": 0.0} for path, d in layers.items()},
        }  # fmt: skip
        self.dtype = DTYPES[dtype]

    def append(self, matrices: Mapping[str, Tensor], marks: Mapping[str, np.ndarray], batches: int) -> None:
        """One shard.

        Args:
            matrices: layer -> (rows, d).
            marks: `MARKS`; contexts count on from `index["contexts"]`.
            batches: how many batches of the text it holds.
        """
        rows = len(marks["token_ids"])
        name = f"shard-{len(self.index['shards']):05d}.safetensors"
        stored = {path: matrix.to(self.dtype) for path, matrix in matrices.items()}
        save_tensors(self.folder / name, {**stored, **marks}, {"format": FORMAT})
        statistics = {}
        for path, known in self.index["statistics"].items():
            exact = stored[path].double()
            total = np.asarray(known["sum"]) + exact.sum(dim=0).numpy()
            statistics[path] = {"sum": total.tolist(), "energy": known["energy"] + float(exact.square().sum())}
        shard = {"file": name, "rows": rows, "sha256": digest(self.folder / name)}
        self.index = self.index | {
            "rows": self.index["rows"] + rows, "contexts": self.index["contexts"] + len(marks["first_tokens"]),
            "batches": self.index["batches"] + batches, "shards": [*self.index["shards"], shard],
            "statistics": statistics,
        }  # fmt: skip
        self.save()

    def save(self, **changes: Any) -> None:
        """Write the index, with mean and scale of what is there."""
        self.index |= changes
        rows = self.index["rows"]
        if rows:
            self.index["mean"] = {p: [x / rows for x in v["sum"]] for p, v in self.index["statistics"].items()}
            self.index["scale"] = {p: _scale(v, rows) for p, v in self.index["statistics"].items()}
        signed = {"sha256": _checksum(self.index), **self.index}
        write_atomically(self.folder / INDEX, (json.dumps(signed) + "\n").encode())


def _scale(statistics: Mapping[str, Any], rows: int) -> float:
    """sqrt(d / E ||x - mean||^2): brings centred activations to the scale E ||x||^2 = d."""
    mean = np.asarray(statistics["sum"]) / rows
    spread = statistics["energy"] / rows - float(mean @ mean)
    return float(np.sqrt(len(mean) / spread)) if spread > 0 else 1.0


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a shard's file."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Store:
    """A store to read from, one layer of it.

    Args:
        folder: of the store.
        layer: dotted module path; None where there is only one.
        verify: compare every shard's checksum with the index.

    Raises:
        RequestError: no store, an empty one, an unknown layer, or a shard that is missing or has another checksum.
    """

    def __init__(self, folder: Path, layer: str | None = None, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if index is None:
            raise RequestError(f"{folder} has no {INDEX}: no activation store; sae-recovery capture writes one")
        if not index["shards"]:
            raise RequestError(f"{folder} holds no shard yet; let its capture go on")
        self.index = index
        layers = list(index["layers"])
        if layer is None and len(layers) > 1:
            raise RequestError(f"{folder} holds {len(layers)} layers; choose with --layer: {', '.join(layers)}")
        self.layer = layer or layers[0]
        if self.layer not in layers:
            raise RequestError(f"{folder} has no layer {layer!r}; it has {', '.join(layers)}")
        self.d = int(index["layers"][self.layer])
        self.N = int(index["rows"])
        self.name = str(folder)
        self._starts = np.concatenate([[0], np.cumsum([shard["rows"] for shard in index["shards"]])])
        self._places: dict[tuple[int, str], _Place] = {}
        for number, shard in enumerate(index["shards"]):
            file = self.folder / shard["file"]
            if not file.is_file():
                raise RequestError(f"{file} is missing; restore it, or capture the store again into a new folder")
            if verify and digest(file) != shard["sha256"]:
                raise RequestError(
                    f"{file} is damaged (its checksum is not the one in {INDEX}); restore it, or capture again"
                )
            places, rows = _header(file), shard["rows"]
            shapes = {self.layer: (rows, self.d)} | dict.fromkeys(MARKS[:3], (rows,))
            for name in (self.layer, *MARKS):
                place = places.get(name)
                if place is None or place.dtype not in _KINDS or place.shape != shapes.get(name, place.shape):
                    raise RequestError(f"{file} does not hold what {INDEX} says of it ({name}); capture again")
                self._places[number, name] = place

    @property
    def mean(self) -> np.ndarray:
        """Mean of all rows, (d,) float32."""
        return np.asarray(self.index["mean"][self.layer], np.float32)

    def identity(self) -> dict[str, Any]:
        """What identifies the rows: layer and a hash of all shards' hashes."""
        shards = "".join(shard["sha256"] for shard in self.index["shards"])
        return {
            "store": hashlib.sha256(shards.encode()).hexdigest(), "layer": self.layer, "shape": [self.N, self.d],
            "dtype": self.index["dtype"], "control": self.index.get("control"),
        }  # fmt: skip

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the layer, (rows, d) float32, read from disk."""
        return self._read(self.layer, start, stop)

    def marks(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """token_ids, positions or contexts of rows, (rows,) int32."""
        if name not in MARKS[:3]:
            raise RequestError(f"{name!r} is no mark of rows; there are {', '.join(MARKS[:3])}")
        return self._read(name, start, self.N if stop is None else stop)

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.N:
            raise RequestError(f"rows {start} to {stop} of {self.name}; it has 0 to {self.N}")
        parts = []
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first = int(self._starts[number])
            past = min(stop, int(self._starts[number + 1]))
            parts.append(_rows(self._places[number, name], start - first, past - first))
            start, number = past, number + 1
        return np.concatenate(parts) if parts else _rows(self._places[0, name], 0, 0)

    def context_tokens(self, wanted: Sequence[int] | np.ndarray | None = None) -> list[np.ndarray]:
        """Token ids of contexts, position 0 included; of all contexts, or of the wanted ones in that order."""
        firsts = np.concatenate([self._whole(i, "first_tokens") for i in range(len(self.index["shards"]))])
        contexts, tokens = self.marks("contexts"), self.marks("token_ids")
        edges = np.searchsorted(contexts, np.arange(len(firsts) + 1))
        numbers = range(len(firsts)) if wanted is None else [int(number) for number in wanted]
        if len(outside := [c for c in numbers if not 0 <= c < len(firsts)]):
            raise RequestError(f"context {outside[0]} of {self.name}; it has 0 to {len(firsts) - 1}")
        return [np.concatenate([firsts[c : c + 1], tokens[edges[c] : edges[c + 1]]]) for c in numbers]

    def _whole(self, shard: int, name: str) -> np.ndarray:
        place = self._places[shard, name]
        return _rows(place, 0, place.shape[0])


def _header(file: Path) -> dict[str, _Place]:
    """Where the tensors of a safetensors file lie."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError
            header = json.loads(opened.read(length))
        return {
            name: _Place(file, 8 + length + at["data_offsets"][0], at["dtype"], tuple(at["shape"]))
            for name, at in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        raise RequestError(f"{file} is no readable shard; restore it, or capture the store again") from None


def _rows(place: _Place, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor by plain reads, so that memory stays bounded by what is asked for."""
    kind = _KINDS[place.dtype]
    width = int(np.prod(place.shape[1:], dtype=np.int64))
    size = np.dtype(kind).itemsize
    with place.path.open("rb") as opened:
        opened.seek(place.offset + start * width * size)
        flat = np.fromfile(opened, kind, (stop - start) * width)
    if len(flat) != (stop - start) * width:
        raise RequestError(f"{place.path} ends too early; restore it, or capture the store again")
    if place.dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(-1, *place.shape[1:])
