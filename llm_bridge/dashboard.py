"""The dashboard: one HTML page about the neurons of a sparse autoencoder, complete in itself.

`collect_neurons` finds where every neuron is most active, `logit_effects` what it writes towards the logits, and
`write_dashboard` puts both with a table of numbers into `dashboard.html`. The page opens from disk, fetches nothing
and is forbidden to by its Content-Security-Policy.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from simulator.checks import whole
from simulator.errors import RequestError
from simulator.storage import write_atomically
from theory.validation import size

_PLACEHOLDER = "__DATA__"
_BLOCK = 1 << 23  # logits held at once
_LABELS = {
    "neuron": "Neuron", "z_score": "Z-score", "mcs": "MCS", "frequency": "Activation frequency",
    "max_activation": "Maximum activation", "target": "Target frequency",
}  # fmt: skip
_REQUIRED = ("neuron", "frequency", "max_activation", "z_score", "target")


@dataclass(frozen=True)
class TopContext:
    """The part of one context around a neuron's largest activation in it; w tokens are shown.

    Attributes:
        context: its number. length: its tokens in all. start: position of the first token shown.
        tokens: token ids shown, (w,).
        activations: of the neuron at each of them, (w,) float32; 0 where it is inactive or there is no row.
        peak: place of the largest activation of the context among the w; the earliest one of equals.
    """

    context: int
    length: int
    start: int
    tokens: np.ndarray
    activations: np.ndarray
    peak: int


@dataclass(frozen=True)
class NeuronPage:
    """What is shown of one neuron.

    Attributes:
        neuron: its number.
        max_activation: its largest activation; 0 if it is never active.
        counts: rows per bin of activations above 0, (bins,) int64; their sum is the number of rows it is active on.
        edges: of the bins, from 0 to max_activation, (bins + 1,).
        contexts: those of largest activation, each once, largest first; of equals the earliest row first.
    """

    neuron: int
    max_activation: float
    counts: np.ndarray
    edges: np.ndarray
    contexts: tuple[TopContext, ...]


class LogitEffects(NamedTuple):
    """Tokens whose logits M' neurons raise most and lower most, each (M', count), strongest first."""

    promoted: np.ndarray
    promoted_values: np.ndarray
    suppressed: np.ndarray
    suppressed_values: np.ndarray


def collect_neurons(
    codes: sparse.csr_array,
    contexts: np.ndarray,
    positions: np.ndarray,
    tokens: Sequence[np.ndarray],
    neurons: np.ndarray | Sequence[int],
    *,
    top: int = 8,
    before: int = 14,
    after: int = 6,
    bins: int = 24,
) -> list[NeuronPage]:
    """Activation histogram and top contexts of some neurons.

    Args:
        codes: activations, (N, M), none below 0.
        contexts: number of the context of every row, an index into `tokens`, (N,).
        positions: of every row's token in its context, counted from 0, (N,).
        tokens: token ids of every context, complete, also where a position has no row.
        neurons: which ones, each once, (M',).
        top: contexts per neuron at most.
        before, after: tokens shown around the largest activation.
        bins: of the histogram.

    Returns:
        One page per neuron, in the order asked for.

    Raises:
        RequestError: lengths that do not fit, numbers out of range, two rows at one position, no neuron, or activations
            that are negative or not finite.
    """
    for name, value, least in (("top", top, 1), ("before", before, 0), ("after", after, 0), ("bins", bins, 1)):
        whole(name, value, least)
    contexts, positions = np.asarray(contexts), np.asarray(positions)
    N, M = size(codes)
    lengths = np.fromiter((len(part) for part in tokens), np.int64, len(tokens))
    _check_rows(N, contexts, positions, lengths)
    chosen = np.asarray(neurons)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu":
        raise RequestError(f"neurons of shape {chosen.shape} and type {chosen.dtype}; a row of numbers is needed")
    if chosen.min() < 0 or chosen.max() >= M:
        wrong = chosen[(chosen < 0) | (chosen >= M)][0]
        raise RequestError(f"neuron {wrong} is asked for; there are the neurons 0 to {M - 1}")
    if len(np.unique(chosen)) < len(chosen):
        raise RequestError("a neuron is asked for twice; each can be shown once")
    columns = sparse.csc_array(sparse.csr_array(codes)[:, chosen])
    columns.sum_duplicates()
    columns.eliminate_zeros()
    if columns.nnz and not (columns.data.min() > 0 and np.isfinite(columns.data).all()):
        raise RequestError("codes hold activations that are negative or not finite; activations >= 0 are needed")
    pages = []
    for neuron, first, past in zip(chosen.tolist(), columns.indptr[:-1], columns.indptr[1:], strict=True):
        rows, values = columns.indices[first:past], columns.data[first:past].astype(np.float64)
        found = _top_contexts(contexts[rows], positions[rows], values, tokens, top, before, after)
        largest = float(values.max()) if len(values) else 0.0
        counts, edges = np.zeros(bins, np.int64), np.zeros(bins + 1)
        if largest > 0:
            counts, edges = np.histogram(values, bins, (0.0, largest))
        pages.append(NeuronPage(neuron, largest, counts, edges, found))
    return pages


def _check_rows(N: int, contexts: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> None:
    """Every row has one place in one context, and no two rows have the same."""
    for name, marks in (("contexts", contexts), ("positions", positions)):
        if marks.shape != (N,) or (N and marks.dtype.kind not in "iu"):
            raise RequestError(f"{name} has shape {marks.shape} and type {marks.dtype}; {N} integers are needed")
    if N == 0:
        raise RequestError("codes have no row; at least one is needed")
    if contexts.min() < 0 or contexts.max() >= len(lengths):
        raise RequestError(
            f"contexts run from {contexts.min()} to {contexts.max()}; tokens has {len(lengths)} contexts, from 0"
        )
    if positions.min() < 0 or (positions >= lengths[contexts]).any():
        row = int(np.flatnonzero((positions < 0) | (positions >= lengths[contexts]))[0])
        where, length = contexts[row], lengths[contexts[row]]
        raise RequestError(f"row {row} is at position {positions[row]} of context {where}, which has {length} tokens")
    places = contexts.astype(np.int64) * int(lengths.max()) + positions
    if len(np.unique(places)) < N:
        raise RequestError("two rows have the same context and position; each token has one row at most")


def _top_contexts(
    contexts: np.ndarray, positions: np.ndarray, values: np.ndarray, tokens: Sequence[np.ndarray],
    top: int, before: int, after: int,
) -> tuple[TopContext, ...]:  # fmt: skip
    """From one neuron's activations above 0: context, position and value of each, in the order of the rows."""
    order = np.argsort(-values, kind="stable")
    # The first time that a context appears in this order is its largest activation.
    first = np.sort(np.unique(contexts[order], return_index=True)[1])[:top]
    found = []
    for entry in order[first]:
        number, at = int(contexts[entry]), int(positions[entry])
        start, stop = max(0, at - before), min(len(tokens[number]), at + after + 1)
        same = contexts == number
        place, value = positions[same] - start, values[same]
        inside = (place >= 0) & (place < stop - start)
        shown = np.zeros(stop - start, np.float32)
        shown[place[inside]] = value[inside]
        ids = np.asarray(tokens[number])
        found.append(TopContext(number, len(ids), start, ids[start:stop], shown, at - start))
    return tuple(found)


def logit_effects(
    decoder: np.ndarray, unembedding: np.ndarray, norm_weight: np.ndarray | None = None, count: int = 8
) -> LogitEffects:
    """What neurons write towards the logits on the direct path, past all later layers.

        effect = U (g * w) - mean over the vocabulary

    with w the neuron's decoder direction, g the weight of the final norm and U the unembedding. The norm's bias and
    its division by the size of the residual stream are left out, so that values compare within a neuron and, for one
    residual stream, between neurons; they are no logits of the model.

    Args:
        decoder: the directions, (M', d).
        unembedding: (vocabulary, d).
        norm_weight: (d,), or None for a model without one.
        count: tokens on either side.

    Raises:
        RequestError: shapes that do not fit, or more tokens than the vocabulary has.
    """
    whole("count", count, 1)
    if decoder.ndim != 2 or unembedding.ndim != 2 or decoder.shape[1] != unembedding.shape[1]:
        raise RequestError(
            f"decoder {decoder.shape} and unembedding {unembedding.shape} do not fit; (M', d) and (vocabulary, d) do"
        )
    if norm_weight is not None and norm_weight.shape != decoder.shape[1:]:
        raise RequestError(f"norm_weight has shape {norm_weight.shape}; {decoder.shape[1:]} is needed")
    neurons, vocabulary = len(decoder), len(unembedding)
    if count > vocabulary:
        raise RequestError(f"count = {count} tokens of a vocabulary of {vocabulary}; at most all of them can be shown")
    W = np.asarray(decoder, np.float32)
    W = W if norm_weight is None else W * np.asarray(norm_weight, np.float32)
    U = np.asarray(unembedding, np.float32)
    ids, values = np.empty((2, neurons, count), np.int64), np.empty((2, neurons, count), np.float32)
    step = max(1, _BLOCK // vocabulary)
    for start in range(0, neurons, step):
        block = slice(start, start + step)
        logits = W[block] @ U.T
        logits -= logits.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        for side in range(2):
            if side:
                np.negative(logits, out=logits)
            # Largest first, of equals the smaller id.
            best = np.sort(np.argpartition(logits, vocabulary - count, axis=1)[:, vocabulary - count :], axis=1)
            found = np.take_along_axis(logits, best, axis=1)
            order = np.argsort(-found, axis=1, kind="stable")
            ids[side, block] = np.take_along_axis(best, order, axis=1)
            values[side, block] = np.take_along_axis(found, order, axis=1)
    return LogitEffects(ids[0], values[0], ids[1], -values[1])


def write_dashboard(
    path: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    table: pd.DataFrame,
    neurons: Sequence[NeuronPage],
    token_strings: Mapping[int, str],
    effects: LogitEffects | None = None,
) -> None:
    """Write the page.

    Activations at tokens are stored as round(255 phi / max phi), at least 1 where the neuron is active.

    Args:
        path: the file, replaced as a whole.
        title: of the page.
        facts: (name, value) shown at its top: model, layer, method, loss.
        table: one row per neuron, in the order of `neurons`, with the columns neuron, frequency, max_activation,
            z_score, target and any further ones of numbers (mcs); NaN is shown as a dash.
        neurons: from `collect_neurons`.
        token_strings: token id -> decoded string, of every id that is shown.
        effects: from `logit_effects`, rows as `neurons`.

    Raises:
        RequestError: no neuron, table or effects that do not fit the neurons, a token without a string, or a place that
            cannot be written to.
    """
    if not neurons:
        raise RequestError("no neuron to show; at least one is needed")
    columns = _columns(table, neurons)
    if effects is not None and any(part.ndim != 2 or len(part) != len(neurons) for part in effects):
        raise RequestError(f"effects have {len(effects.promoted)} rows for {len(neurons)} neurons; one row each")
    ids = np.concatenate([np.zeros(0, np.int64), *(context.tokens for page in neurons for context in page.contexts)])
    of_effects = () if effects is None else (effects.promoted.ravel(), effects.suppressed.ravel())
    used = np.unique(np.concatenate([ids, *of_effects]))
    missing = [token for token in used.tolist() if token not in token_strings]
    if missing:
        raise RequestError(f"token_strings has no string for token {missing[0]} ({len(missing)} are missing)")
    # Different ids can decode to the same string (parts of characters do).
    strings: dict[str, int] = {}
    index = np.array([strings.setdefault(token_strings[token], len(strings)) for token in used.tolist()], np.int64)
    wide = len(strings) > 1 << 16
    content = {
        "title": title,
        "facts": [[str(name), str(value)] for name, value in facts],
        "columns": columns,
        "strings": list(strings),
        "wide": wide,
        "tokens": _base64(index[np.searchsorted(used, ids)].astype("<u4" if wide else "<u2")),
        "activations": _base64(np.concatenate([np.zeros(0, np.uint8), *map(_quantised, neurons)])),
        "neurons": [
            {
                "max": page.max_activation,
                "counts": page.counts.tolist(),
                "contexts": [[c.context, c.start, len(c.tokens), c.peak, c.length] for c in page.contexts],
            }
            for page in neurons
        ],
        "effects": None if effects is None else _effects(effects, index, used),
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # JSON stays JSON, and nothing in it can end the script element, open another one or a comment.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = files("llm_bridge").joinpath("dashboard.html").read_text(encoding="utf-8")
    write_atomically(Path(path), template.replace(_PLACEHOLDER, text, 1).encode())


def _columns(table: pd.DataFrame, neurons: Sequence[NeuronPage]) -> list[dict[str, Any]]:
    """The table column by column, known ones first."""
    absent = [name for name in _REQUIRED if name not in table]
    if absent:
        raise RequestError(f"the table has no column {absent[0]}; it needs {', '.join(_REQUIRED)}")
    if len(table) != len(neurons):
        raise RequestError(f"the table has {len(table)} rows for {len(neurons)} neurons; one row per neuron is needed")
    wrong = np.flatnonzero(table["neuron"].to_numpy() != [page.neuron for page in neurons])
    if len(wrong):
        number, page = table["neuron"].iloc[wrong[0]], neurons[wrong[0]]
        raise RequestError(f"row {wrong[0]} of the table is neuron {number}, of the data neuron {page.neuron}")
    names = [name for name in _LABELS if name in table] + [str(name) for name in table if name not in _LABELS]
    columns = []
    for name in names:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise RequestError(f"column {name} of the table has type {table[name].dtype}; numbers are needed")
        values = table[name].to_numpy(np.float64, na_value=math.nan)
        numbers = [_short(value, 6) for value in values.tolist()] if name != "neuron" else table[name].tolist()
        columns.append({"key": name, "label": _LABELS.get(name, name.replace("_", " ")), "values": numbers})
    return columns


def _effects(effects: LogitEffects, index: np.ndarray, used: np.ndarray) -> list[list[list[Any]]]:
    """Per neuron: strings and values of the promoted, strings and values of the suppressed."""
    parts = []
    for ids, values in ((effects.promoted, effects.promoted_values), (effects.suppressed, effects.suppressed_values)):
        parts.append(index[np.searchsorted(used, ids)].tolist())
        parts.append([[_short(value, 4) for value in row] for row in values.tolist()])
    return [list(row) for row in zip(*parts, strict=True)]


def _quantised(page: NeuronPage) -> np.ndarray:
    """Activations of all its contexts, one after the other, in steps of max / 255; uint8."""
    if not page.contexts:
        return np.zeros(0, np.uint8)
    values = np.concatenate([context.activations for context in page.contexts]).astype(np.float64)
    return np.where(values > 0, np.clip(np.rint(values * (255 / page.max_activation)), 1, 255), 0).astype(np.uint8)


def _short(value: float, digits: int) -> float | None:
    """Rounded to some significant digits; None, JSON's null, where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
