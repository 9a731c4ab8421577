"""Activations as a source of batches for `simulator.fit`: from a store, or straight from a model in a stream.

Memory is bounded by one group of rows (128 MB). A store is cut into pages of consecutive rows; in every epoch the
pages are put in a new order and read in groups, and the rows of a group are shuffled: batches mix rows of pages from
all over the store. Every 20th page is held out of the training and is what a run is judged on.

Centring: with `centre` the mean activation is taken off; then `Training.normalise` scales every row to unit norm, as
Algorithm 1 of Chen et al. 2025 (arXiv:2506.14002) does. Whether the authors centre is not known.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_bridge.capture import activations, choose_dtype, dtype_of
from llm_bridge.hooks import find_layer
from llm_bridge.models import LanguageModel, load_model
from llm_bridge.store import INDEX, Store
from llm_bridge.texts import Text
from simulator.checks import whole
from simulator.errors import RequestError
from simulator.rng import stream

PAGE = 256
HELD_OUT_EVERY = 20
GROUP_BYTES = 1 << 27
LIVE_CONTEXTS = 256
"""Contexts of a group that comes straight from the model."""
LIVE_HELD_OUT = 32
"""Batches of contexts held out of such a stream at most."""


class Rows(Protocol):
    """Rows that can be read from anywhere: a `Store`, or another library's data set."""

    N: int
    d: int
    name: str

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, (rows, d) float32."""
        ...

    @property
    def mean(self) -> np.ndarray:
        """Mean of all rows, (d,) float32."""
        ...

    def identity(self) -> dict[str, Any]:
        """What identifies the rows, JSON-able."""
        ...


class GroupedSource:
    """Batch t from rows that come in groups; depends on t, the size and the seed only.

    Attributes:
        d: dimension.
        N: rows of an epoch.
        offset: (d,), taken off every row (the mean); zeros where the activations are not centred.
    """

    d: int
    N: int
    offset: np.ndarray
    seed: int

    def __init__(self) -> None:
        self._epoch, self._edges = -1, np.zeros(1, np.int64)
        self._held: tuple[int, int] = (-1, -1)
        self._rows, self._shuffle = np.empty((0, 0), np.float32), np.empty(0, np.int64)

    def _group_sizes(self, epoch: int) -> np.ndarray:
        raise NotImplementedError

    def _load(self, epoch: int, group: int) -> np.ndarray:
        """Rows of a group as they are stored, in any fixed order, (rows, d) float32."""
        raise NotImplementedError

    def _part(self, epoch: int, group: int, first: int, size: int) -> np.ndarray:
        """At most `size` rows of a group from the place `first` of its shuffled order on."""
        if self._held != (epoch, group):
            # Let go of the old group before the new one is read.
            self._held, self._rows = (-1, -1), np.empty((0, 0), np.float32)
            self._rows = self._load(epoch, group)
            self._shuffle = stream(self.seed, "rows", epoch, group).permutation(len(self._rows))
            self._held = epoch, group
        return self._rows[self._shuffle[first : first + size]]

    def batch(self, t: int, size: int) -> Tensor:
        """Batch t, shape (size, d), float32, centred."""
        position, parts = t * size, []
        while size > 0:
            epoch, inside = divmod(position, self.N)
            if epoch != self._epoch:
                self._epoch, self._edges = epoch, np.concatenate([[0], np.cumsum(self._group_sizes(epoch))])
            group = int(np.searchsorted(self._edges, inside, side="right")) - 1
            first = inside - int(self._edges[group])
            part = self._part(epoch, group, first, size)
            part -= self.offset
            parts.append(part)
            position, size = position + len(part), size - len(part)
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def with_seed(self, seed: int) -> "GroupedSource":
        """The same rows in the order of another seed."""
        other = copy.copy(self)
        GroupedSource.__init__(other)
        other.seed = seed
        return other


class StoredSource(GroupedSource):
    """Batches from rows on disk.

    Args:
        rows: a `Store` or another `Rows`.
        seed: decides the order.
        centre: take the mean off.

    Raises:
        RequestError: fewer than 40 rows, or a mean that is not finite.
    """

    def __init__(self, rows: Rows, seed: int, centre: bool = True) -> None:
        super().__init__()
        self.rows, self.seed, self.centre = rows, seed, centre
        self.d, self.name = rows.d, rows.name
        if rows.N < 40:
            raise RequestError(f"{rows.name} has {rows.N} rows; at least 40 are needed")
        self.page = max(1, min(PAGE, rows.N // (2 * HELD_OUT_EVERY)))
        pages = np.arange(-(-rows.N // self.page))
        held = pages % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.pages, self.held_out = pages[~held], pages[held]
        self.N = int(self._sizes(self.pages).sum())
        self.group_pages = max(1, GROUP_BYTES // (4 * self.d * self.page))
        mean = rows.mean
        if not np.isfinite(mean).all():
            raise RequestError(f"{rows.name} holds NaN or infinity; capture it again with --dtype fp32")
        self.offset = mean if centre else np.zeros(self.d, np.float32)

    def _sizes(self, pages: np.ndarray) -> np.ndarray:
        """Rows of each page."""
        return np.minimum((pages + 1) * self.page, self.rows.N) - pages * self.page

    def _order(self, epoch: int) -> np.ndarray:
        return self.pages[stream(self.seed, "batches", epoch).permutation(len(self.pages))]

    def _group_sizes(self, epoch: int) -> np.ndarray:
        order = self._order(epoch)
        return np.add.reduceat(self._sizes(order), np.arange(0, len(order), self.group_pages))

    def _load(self, epoch: int, group: int) -> np.ndarray:
        first = group * self.group_pages
        # In the order of the file: neighbouring pages are read in one go by the system.
        return self._read(np.sort(self._order(epoch)[first : first + self.group_pages]))

    def _read(self, pages: np.ndarray) -> np.ndarray:
        sizes = self._sizes(pages)
        found = np.empty((int(sizes.sum()), self.d), np.float32)
        at = 0
        for page, size in zip(pages.tolist(), sizes.tolist(), strict=True):
            found[at : at + size] = self.rows.read(page * self.page, page * self.page + size)
            at += size
        return found

    def evaluation_rows(self, samples: int, seed: int) -> np.ndarray:
        """Numbers of held-out rows, whole pages in the order of the seed until there are `samples`."""
        pages = self.held_out[stream(seed, "evaluation").permutation(len(self.held_out))]
        sizes = self._sizes(pages)
        enough = int(np.searchsorted(np.cumsum(sizes), samples)) + 1
        chosen = [np.arange(p * self.page, p * self.page + n) for p, n in zip(pages[:enough], sizes, strict=False)]
        return np.concatenate(chosen)[:samples]

    def evaluation(self, samples: int, seed: int) -> np.ndarray:
        """Up to `samples` held-out rows, centred, (rows, d) float32."""
        rows = self.evaluation_rows(whole("samples", samples, 1), seed)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        parts = [self.rows.read(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks)]
        return np.concatenate(parts) - self.offset

    def held_out_contexts(self) -> np.ndarray:
        """Contexts of which every row is held out; numbers in the store."""
        if not isinstance(self.rows, Store):
            raise RequestError(f"{self.name} has no contexts; a store of sae-recovery capture is needed")
        contexts = self.rows.marks("contexts")
        inside = np.isin(np.arange(self.rows.N) // self.page, self.held_out)
        total, kept = np.bincount(contexts), np.bincount(contexts[inside], minlength=int(contexts.max()) + 1)
        return np.flatnonzero((total == kept) & (total > 0))

    def config(self) -> dict[str, Any]:
        """What identifies the data and the order of its rows."""
        return {
            "type": "StoredActivations", **self.rows.identity(), "centred": self.centre, "page": self.page,
            "held_out": f"every {HELD_OUT_EVERY}th page", "seed": self.seed,
        }  # fmt: skip


class LiveSource(GroupedSource):
    """Batches straight from a model, without a store: groups of contexts are run through it as they are needed.

    The mean that is taken off is that of the held-out rows: every 20th batch of contexts, at most 32 of them, never
    trained on.
    """

    def __init__(
        self, model: LanguageModel, layer: str, text: Text, tokens: int, seed: int, dtype: str, centre: bool = True
    ) -> None:
        super().__init__()
        self.model, self.layer, self.text, self.seed, self.centre = model, layer, text, seed, centre
        self.dtype, self.name = dtype, f"{model.name}, {layer}"
        find_layer(model.model, layer)
        train: list[list[np.ndarray]] = []
        held: list[list[np.ndarray]] = []
        rows = 0
        for number, contexts in enumerate(text.batches(model.tokenizer, 16)):
            out = number % HELD_OUT_EVERY == 0 and len(held) < LIVE_HELD_OUT
            (held if out else train).append(contexts)
            rows += sum(len(part) - 1 for part in contexts)
            if rows >= tokens and train:
                break
        if not train:
            raise RequestError(f"the text in {', '.join(text.files)} gives too few contexts; more text is needed")
        per_group = max(1, LIVE_CONTEXTS // 16)
        self.groups = [train[i : i + per_group] for i in range(0, len(train), per_group)]
        self._counts = np.array([sum(len(c) - 1 for batch in group for c in batch) for group in self.groups])
        self.N = int(self._counts.sum())
        self._evaluation = np.concatenate([self._forward(batch) for batch in held])
        self.d = self._evaluation.shape[1]
        mean = self._evaluation.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.offset = mean if centre else np.zeros(self.d, np.float32)

    def _forward(self, contexts: Sequence[np.ndarray]) -> np.ndarray:
        return activations(self.model, [self.layer], contexts).matrices[self.layer].float().numpy()

    def _order(self, epoch: int) -> np.ndarray:
        return stream(self.seed, "batches", epoch).permutation(len(self.groups))

    def _group_sizes(self, epoch: int) -> np.ndarray:
        return self._counts[self._order(epoch)]

    def _load(self, epoch: int, group: int) -> np.ndarray:
        return np.concatenate([self._forward(batch) for batch in self.groups[self._order(epoch)[group]]])

    def evaluation(self, samples: int, seed: int) -> np.ndarray:
        """Up to `samples` held-out rows, centred, (rows, d) float32."""
        chosen = stream(seed, "evaluation").permutation(len(self._evaluation))[: whole("samples", samples, 1)]
        return self._evaluation[chosen] - self.offset

    def config(self) -> dict[str, Any]:
        """What identifies the data and the order of its rows."""
        return {
            "type": "LiveActivations", "model": self.model.revision, "control": self.model.control,
            "layer": self.layer, "text": self.text.config(), "rows": self.N, "dtype": self.dtype,
            "centred": self.centre, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True)
class StoredActivations:
    """A store on disk as the data of a run: our own, or a folder that SAELens cached."""

    folder: Path
    layer: str | None = None
    centre: bool = True

    def source(self, seed: int) -> StoredSource:
        """The batches."""
        return StoredSource(open_rows(self.folder, self.layer), seed, self.centre)

    @property
    def label(self) -> str:
        """Name for files and folders."""
        name = Path(self.folder).resolve().name
        return name if self.layer is None else f"{name}-{self.layer}"


@dataclass(frozen=True)
class LiveActivations:
    """A model and a text as the data of a run, without a store; fields as in `Text` and `load_model`."""

    model: str
    layer: str
    text: Text
    tokens: int
    dtype: str = "auto"
    revision: str | None = None
    centre: bool = True
    loaded: Callable[[], LanguageModel] | None = None
    """For a model that is at hand already."""

    def source(self, seed: int) -> LiveSource:
        """The batches; loads the model."""
        whole("tokens", self.tokens, 1)
        if self.loaded is not None:
            model = self.loaded()
        else:
            model = load_model(self.model, choose_dtype(self.dtype), revision=self.revision)
        return LiveSource(model, self.layer, self.text, self.tokens, seed, dtype_of(model), self.centre)

    @property
    def label(self) -> str:
        """Name for files and folders."""
        return f"{Path(self.model).name}-{self.layer}"


def open_rows(folder: Path, layer: str | None = None, *, verify: bool = True) -> Rows:
    """Rows of a folder: our store, or a data set that SAELens cached.

    Raises:
        RequestError: neither of the two, or as in `Store`.
    """
    folder = Path(folder)
    if not (folder / INDEX).exists() and any(folder.glob("*.arrow")):
        from llm_bridge.saelens_data import SAELensRows

        rows: Any = SAELensRows(folder, layer)  # its mean is a cached property, which a protocol does not know
        return rows
    return Store(folder, layer, verify=verify)
