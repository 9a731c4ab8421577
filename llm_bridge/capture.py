"""Capture: run a language model over text and keep the activations of some layers in a store.

Every context is read from its own position 0; the row there is dropped (it is an attention sink whose norm is ten to
a hundred times that of the others), and so is padding. The same command continues an interrupted capture, and with
more tokens extends a finished one; batches do not depend on where it stopped.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_bridge.hooks import find_layer, layer_outputs
from llm_bridge.models import DTYPES, PACKAGED, LanguageModel, load_model
from llm_bridge.store import MARKS, StoreWriter, read_index
from llm_bridge.texts import Text, pad
from simulator.checks import whole
from simulator.config import difference
from simulator.errors import RequestError
from simulator.storage import claimed

CONTROLS = ("none", "random-model", "shuffled-tokens")
DROPPED = "padding and position 0 of every context"


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass: layer -> (rows, d), and the marks of `llm_bridge.store`, contexts from 0."""

    matrices: dict[str, torch.Tensor]
    marks: dict[str, np.ndarray]


@dataclass(frozen=True)
class Captured:
    """What a capture did.

    Attributes:
        rows: in the store now. new: of this run. seconds: of this run, model loaded already.
        exhausted: the text ended before the rows that were asked for.
    """

    rows: int
    new: int
    seconds: float
    exhausted: bool


def activations(model: LanguageModel, layers: Sequence[str], contexts: Sequence[np.ndarray]) -> Batch:
    """Activations of one batch of contexts, without position 0 and padding; rows in reading order.

    Raises:
        RequestError: as in `layer_outputs`, or activations that are not finite.
    """
    tokens, mask = pad(contexts)
    _refuse_unreadable(model, tokens)
    padded = None if mask.all() else torch.from_numpy(mask)
    outputs = layer_outputs(model.model, layers, torch.from_numpy(tokens), padded)
    keep = mask.astype(bool)
    keep[:, 0] = False
    rows = torch.from_numpy(np.flatnonzero(keep.ravel()))
    matrices = {}
    for path, output in zip(layers, outputs, strict=True):
        found = output.reshape(-1, output.shape[-1])[rows].cpu()
        if not bool(found.isfinite().all()):
            raise RequestError(f"{path} puts out NaN or infinity in {found.dtype}; take --dtype fp32")
        matrices[path] = found
    context, position = np.nonzero(keep)
    marks = (tokens[keep], position, context, tokens[:, 0])
    return Batch(matrices, {name: part.astype(np.int32) for name, part in zip(MARKS, marks, strict=True)})


def _refuse_unreadable(model: LanguageModel, tokens: np.ndarray) -> None:
    """Contexts or tokens beyond what the model has embeddings for: some models would read them and put out noise."""
    longest = getattr(model.model.config, "max_position_embeddings", None)
    if longest is not None and tokens.shape[1] > longest:
        raise RequestError(f"{model.name} reads at most {longest} tokens; take a context of no more")
    known = model.model.get_input_embeddings().num_embeddings
    if tokens.max() >= known:
        raise RequestError(f"the tokenizer of {model.name} makes token {tokens.max()}; the model knows {known} tokens")


def dtype_of(model: LanguageModel) -> str:
    """ "bf16" or "fp32", as a model was loaded."""
    for name, dtype in DTYPES.items():
        if model.model.dtype == dtype:
            return name
    raise RequestError(f"{model.name} is in {model.model.dtype}; load it in fp32 or bf16")


def choose_dtype(name: str) -> str:
    """ "auto" is bf16 where the processor has instructions for it or a GPU is used, else fp32."""
    if name != "auto":
        return name
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if torch.cuda.is_available() or fast() else "fp32"


def capture(
    model: LanguageModel | str,
    layers: Sequence[str],
    text: Text,
    tokens: int,
    out: Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    control: str = "none",
    batch: int = 16,
    shard_rows: int = 16_384,
    progress: Callable[[int, float], None] | None = None,
) -> Captured:
    """Write or continue a store.

    Args:
        model: a name as in `load_model`, or a loaded model (`revision`, `dtype` and `control` then describe it).
        layers: dotted module paths, captured in one pass.
        text: what is read.
        tokens: rows wanted; the capture ends with the batch that reaches them.
        out: folder of the store.
        dtype: "fp32", "bf16" or "auto", of the forward pass and of the store.
        revision: of a hub id.
        control: "none"; "random-model": the same shape with weights drawn anew; "shuffled-tokens": `text.shuffled`.
        batch: contexts per forward pass.
        shard_rows: rows after which a shard is closed.
        progress: called with (rows so far, tokens per second of this run).

    Raises:
        RequestError: an impossible request, a store of other contents, or a full disk (what is complete stays).
    """
    whole("tokens", tokens, 1)
    whole("batch", batch, 1)
    whole("shard_rows", shard_rows, 1)
    if not layers or len(set(layers)) != len(layers):
        raise RequestError(f"layers {list(layers)} must be one or more different module paths")
    if control not in CONTROLS:
        raise RequestError(f"control {control!r} is unknown; there are {', '.join(CONTROLS)}")
    if (control == "shuffled-tokens") != text.shuffled:
        raise RequestError("control shuffled-tokens goes with a text that is shuffled, and only with it")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; name a folder for the store")
    known = read_index(out)
    place: dict[str, Any] = {"loaded_from": None, "asked_revision": revision}
    if isinstance(model, str):
        place["loaded_from"] = model if model == PACKAGED or not Path(model).is_dir() else str(Path(model).resolve())
        dtype = choose_dtype(dtype) if known is None or dtype != "auto" else known["dtype"]
        drawn = control if control == "random-model" else None
        model = load_model(model, dtype, revision=revision, control=drawn, seed=text.seed)
    else:
        if dtype not in ("auto", dtype_of(model)):
            raise RequestError(f"{model.name} was loaded in {dtype_of(model)}, not in {dtype}")
        if (model.control == "random-model") != (control == "random-model"):
            raise RequestError(f"control {control} does not describe {model.name}, whose control is {model.control}")
        dtype = dtype_of(model)
    for path in layers:
        find_layer(model.model, path)
    identity = {
        "model": {"name": model.name, "revision": model.revision, "class": type(model.model).__name__},
        "text": text.config(), "control": None if control == "none" else control, "batch": batch,
        "shard_rows": shard_rows, "dropped": DROPPED,
    }  # fmt: skip
    wanted = identity | {"dtype": dtype, "layers": sorted(layers)}
    if known is not None:
        there = {key: known.get(key) for key in identity} | {
            "dtype": known.get("dtype"), "layers": sorted(known.get("layers", {})),
        }  # fmt: skip
        if there != wanted:
            raise RequestError(f"{out} holds another capture ({difference(there, wanted)}); name another folder")
        if known["complete"] and (known["rows"] >= tokens or known["exhausted"]):
            return Captured(known["rows"], 0, 0.0, known["rows"] < tokens)
    with contextlib.ExitStack() as held:
        return _run(model, list(layers), text, tokens, out, identity | place, dtype, progress, held)


def _run(
    model: LanguageModel, layers: list[str], text: Text, tokens: int, out: Path, identity: dict[str, Any],
    dtype: str, progress: Callable[[int, float], None] | None, held: contextlib.ExitStack,
) -> Captured:  # fmt: skip
    batch, shard_rows = identity["batch"], identity["shard_rows"]
    batches = text.batches(model.tokenizer, batch)
    first = next(batches, None)
    if first is None:
        raise RequestError(f"the text in {', '.join(text.files)} gives no context of at least two tokens")
    writer: StoreWriter | None = None
    before = 0
    if (known := read_index(out)) is not None:
        writer, before = StoreWriter(out, identity, known["layers"], dtype), known["rows"]
        if before >= tokens:  # stopped between the last shard and the end
            writer.save(complete=True, exhausted=False)
            return Captured(before, 0, 0.0, False)
        writer.index |= {"complete": False}
    pending: list[Batch] = []
    locked = False
    rows, began = before, time.perf_counter()
    for number, contexts in enumerate(itertools.chain([first], batches)):
        if writer is not None and number < writer.index["batches"]:
            continue
        pending.append(activations(model, layers, contexts))
        if not locked:  # only now, so that a request that cannot be met leaves no folder behind
            locked = True
            held.enter_context(claimed(out))
            if read_index(out) != known:
                raise RequestError(f"another process has written to {out} meanwhile; run the same command again")
        rows += len(pending[-1].marks["token_ids"])
        if writer is None:
            widths = {path: matrix.shape[1] for path, matrix in pending[0].matrices.items()}
            writer = StoreWriter(out, identity, widths, dtype)
        if progress is not None:
            progress(rows, (rows - before) / (time.perf_counter() - began))
        if rows >= tokens or rows - writer.index["rows"] >= shard_rows:
            _flush(writer, pending)
            pending = []
        if rows >= tokens:
            break
    assert writer is not None
    if pending:
        _flush(writer, pending)
    exhausted = rows < tokens
    writer.save(complete=True, exhausted=exhausted)
    return Captured(rows, rows - before, time.perf_counter() - began, exhausted)


def _flush(writer: StoreWriter, pending: Sequence[Batch]) -> None:
    matrices = {path: torch.cat([part.matrices[path] for part in pending]) for path in pending[0].matrices}
    offset, contexts = writer.index["contexts"], []
    for part in pending:
        contexts.append(part.marks["contexts"] + offset)
        offset += len(part.marks["first_tokens"])
    marks = {name: np.concatenate([part.marks[name] for part in pending]) for name in MARKS}
    writer.append(matrices, marks | {"contexts": np.concatenate(contexts).astype(np.int32)}, len(pending))
