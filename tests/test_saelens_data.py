"""Activations that SAELens cached, from files laid out as `datasets` lays them out; its own: test_saelens_peer.py."""

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llm_bridge.saelens_data import SAELensRows, open_saelens_dataset
from simulator.errors import RequestError

pa = pytest.importorskip("pyarrow")

HOOK = "blocks.2.hook_mlp_out"


def nested(values: np.ndarray) -> object:
    """(contexts, context, d) as lists of lists, the way that Array2D is stored."""
    contexts, context, d = values.shape
    inner = pa.ListArray.from_arrays(
        np.arange(contexts * context + 1, dtype=np.int32) * d, pa.array(values.reshape(-1))
    )
    return pa.ListArray.from_arrays(np.arange(contexts + 1, dtype=np.int32) * context, inner)


def write(file: Path, columns: dict, sizes: list[int]) -> None:
    """One stream with record batches of these many rows."""
    table = pa.table(columns)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        start = 0
        for size in sizes:
            for batch in table.slice(start, size).to_batches():
                writer.write_batch(batch)
            start += size


def columns(values: np.ndarray, tokens: bool = True) -> dict:
    found = {HOOK: nested(values)}
    if tokens:
        numbers = np.arange(values.shape[0] * values.shape[1], dtype=np.int32)
        found["token_ids"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers), values.shape[1])
    return found


def activations(contexts: int = 9, context: int = 5, d: int = 3, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(2).normal(size=(contexts, context, d)).astype(dtype)


def state(folder: Path, names: list, **more: object) -> None:
    content = {"_data_files": [{"filename": name} for name in names], "_split": None, **more}
    (folder / "state.json").write_text(json.dumps(content))


def folder_of(folder: Path, values: np.ndarray, cut: int = 4, tokens: bool = True) -> Path:
    """Two files; the first has record batches of 1 and cut - 1 contexts."""
    folder.mkdir()
    parts = [
        {k: v[:cut] for k, v in columns(values, tokens).items()},
        {k: v[cut:] for k, v in columns(values, tokens).items()},
    ]
    # Names whose alphabetical order is not the order of the data: state.json has the say.
    write(folder / "data-b.arrow", parts[0], [1, cut - 1])
    write(folder / "data-a.arrow", parts[1], [len(values) - cut])
    state(folder, ["data-b.arrow", "data-a.arrow"])
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_range_of_contexts(tmp_path, dtype):
    values = activations(dtype=dtype)
    data = open_saelens_dataset(folder_of(tmp_path / "data", values))
    assert (data.columns, data.d, data.context, data.contexts) == ([HOOK], {HOOK: 3}, 5, 9)
    assert data.dtypes == {HOOK: dtype}
    tokens = np.arange(45, dtype=np.int32).reshape(9, 5)
    for first in range(10):
        for past in range(first, 10):
            found = data.read(HOOK, first, past)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, values[first:past].astype(np.float32))
            assert data.tokens(first, past).dtype == np.int32
            np.testing.assert_array_equal(data.tokens(first, past), tokens[first:past])


def test_rows_are_tokens(tmp_path):
    values = activations()
    rows = SAELensRows(folder_of(tmp_path / "data", values))
    flat = values.reshape(-1, 3)
    assert (rows.N, rows.d, rows.layer) == (45, 3, HOOK)
    for start in range(0, 46, 3):
        for stop in range(start, 46):
            np.testing.assert_array_equal(rows.read(start, stop), flat[start:stop])
    np.testing.assert_allclose(rows.mean, flat.mean(axis=0), atol=1e-7)
    identity = rows.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["shape"] == [45, 3] and identity["layer"] == HOOK


def test_without_token_ids_and_with_other_columns(tmp_path):
    values = activations()
    data = open_saelens_dataset(folder_of(tmp_path / "data", values, tokens=False))
    assert data.tokens(0, 9) is None
    (tmp_path / "more").mkdir()
    second = nested(activations(d=7))
    write(tmp_path / "more" / "x.arrow", {"text": pa.array(["a"] * 9), **columns(values), "late": second}, [9])
    state(tmp_path / "more", ["x.arrow"])
    data = open_saelens_dataset(tmp_path / "more")
    assert data.d == {HOOK: 3, "late": 7}
    np.testing.assert_array_equal(data.read("late", 2, 4), activations(d=7)[2:4])
    assert "holds 2 layers; choose with --layer" in refusal(SAELensRows, tmp_path / "more")
    assert SAELensRows(tmp_path / "more", "late").d == 7


def test_the_type_that_datasets_registers(tmp_path):
    """In a process that has imported `datasets`, its columns arrive as an extension type."""

    class Array2D(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.list_(pa.list_(pa.float32())), "sae_recovery.test.Array2D")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: object, serialized: bytes) -> "Array2D":
            return cls()

    values = activations()
    pa.register_extension_type(Array2D())
    try:
        (tmp_path / "data").mkdir()
        stored = pa.ExtensionArray.from_storage(Array2D(), nested(values).cast(Array2D().storage_type))
        write(tmp_path / "data" / "x.arrow", {HOOK: stored}, [5, 4])
        state(tmp_path / "data", ["x.arrow"])
        data = open_saelens_dataset(tmp_path / "data")
        np.testing.assert_array_equal(data.read(HOOK, 3, 8), values[3:8])
    finally:
        pa.unregister_extension_type("sae_recovery.test.Array2D")


def test_the_fingerprint_is_of_the_bytes_in_order(tmp_path):
    values = activations()
    first = open_saelens_dataset(folder_of(tmp_path / "a", values)).fingerprint()
    assert first == open_saelens_dataset(folder_of(tmp_path / "b", values)).fingerprint()
    state(tmp_path / "b", ["data-a.arrow", "data-b.arrow"])
    assert first != open_saelens_dataset(tmp_path / "b").fingerprint()
    values[4, 2, 1] += 1
    assert first != open_saelens_dataset(folder_of(tmp_path / "c", values)).fingerprint()


def test_memory_is_bounded_by_what_is_asked_for(tmp_path):
    """One record batch of 8 MB; reading one context of 16 kB must not make a copy of it."""
    (tmp_path / "data").mkdir()
    values = activations(512, 16, 256)
    write(tmp_path / "data" / "x.arrow", columns(values), [512])
    state(tmp_path / "data", ["x.arrow"])
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        data = open_saelens_dataset(tmp_path / "data")
        np.testing.assert_array_equal(data.read(HOOK, 300, 301), values[300:301])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert pa.total_allocated_bytes() - before < 1 << 20


# Requests that cannot be met


def refusal(call, *arguments) -> str:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def lengths(folder: Path) -> None:
    """Contexts of 5, 4 and 6 tokens: the sum is right, the parts are not."""
    inner = nested(activations(3)).values
    uneven = pa.ListArray.from_arrays(pa.array([0, 5, 9, 15], pa.int32()), inner)
    write(folder / "data-b.arrow", {**columns(activations(3)), HOOK: uneven}, [3])


def holes(folder: Path) -> None:
    inner = nested(activations(3)).values
    some = pa.ListArray.from_arrays(pa.array([0, None, 5, 10], pa.int32()), inner.slice(0, 10))
    write(folder / "data-b.arrow", {**columns(activations(3)), HOOK: some}, [3])


def bad_offsets(folder: Path) -> None:
    """Lists that point behind the end of their numbers."""
    file = folder / "data-b.arrow"
    content = bytearray(file.read_bytes())
    wanted = np.arange(4, dtype=np.int32) * 5  # of the second record batch, three contexts
    at = content.rindex(wanted.tobytes())
    content[at + 12 : at + 16] = np.int32(1 << 30).tobytes()
    file.write_bytes(bytes(content))


def read_all(folder: Path) -> None:
    data = open_saelens_dataset(folder)
    data.read(HOOK, 0, data.contexts)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "state.json").unlink(), "state.json does not exist; give a folder that SAELens"),
        (lambda f: (f / "state.json").write_text("{"), "state.json is damaged"),
        (lambda f: (f / "state.json").write_text('{"_data_files": [1]}'), "state.json is damaged"),
        (lambda f: state(f, []), "names no data files"),
        (lambda f: state(f, ["../data-b.arrow"]), "names no data files in its own folder"),
        (lambda f: state(f, ["data-b.arrow"], _indices_data_files=[{"filename": "i"}]), "reorders its rows"),
        (lambda f: (f / "data-a.arrow").unlink(), "data-a.arrow is missing, but state.json names it"),
        (lambda f: cut(f / "data-a.arrow", 0), "data-a.arrow is truncated or damaged"),
        (lambda f: cut(f / "data-a.arrow", 200), "data-a.arrow is truncated"),
        (lambda f: cut(f / "data-a.arrow", -8), "data-a.arrow is truncated: its end marker is missing"),
        (
            lambda f: (f / "data-a.arrow").write_bytes(b"x" * 99 + b"\xff" * 4 + bytes(4)),
            "data-a.arrow is truncated or",
        ),
        (lambda f: write(f / "data-a.arrow", {"other": pa.array([1])}, [1]), "data-a.arrow has other columns than"),
        (
            lambda f: write(f / "data-a.arrow", {**columns(activations(2)), HOOK: nested(activations(2, 4))}, [2]),
            "data-a.arrow: contexts 4 to 6 of column",
        ),
        (lambda f: write(f / "data-a.arrow", columns(activations(2, d=2)), [2]), "are not all of shape (5, 3)"),
        (lengths, "data-b.arrow: contexts 0 to 3 of column blocks.2.hook_mlp_out are not all of shape (5, 3)"),
        (holes, "data-b.arrow: column blocks.2.hook_mlp_out has empty places"),
        (bad_offsets, "data-b.arrow is truncated or damaged"),
    ],
)
def test_damaged_folders(tmp_path, damage, told):
    folder = folder_of(tmp_path / "data", activations())
    damage(folder)
    text = refusal(read_all, folder)
    assert told in text
    assert str(folder) in text


def test_folders_without_activations(tmp_path):
    (tmp_path / "none").mkdir()
    write(tmp_path / "none" / "x.arrow", {"token_ids": columns(activations())["token_ids"]}, [9])
    state(tmp_path / "none", ["x.arrow"])
    assert "it has ['token_ids']" in refusal(open_saelens_dataset, tmp_path / "none")
    write(tmp_path / "none" / "x.arrow", columns(activations()), [0])
    assert "holds no context" in refusal(open_saelens_dataset, tmp_path / "none")
    uneven = {**columns(activations()), "long": nested(activations(context=6))}
    write(tmp_path / "none" / "x.arrow", uneven, [9])
    assert "contexts of [5, 6] tokens" in refusal(open_saelens_dataset, tmp_path / "none")


def test_what_is_not_there(tmp_path):
    folder = folder_of(tmp_path / "data", activations())
    data, rows = open_saelens_dataset(folder), SAELensRows(folder, HOOK)
    assert f"has no layer 'blocks.9'; it has {HOOK}" in refusal(data.read, "blocks.9", 0, 1)
    assert "has no layer 'blocks.9'" in refusal(SAELensRows, folder, "blocks.9")
    assert "contexts 3 to 10 of" in refusal(data.read, HOOK, 3, 10)
    assert "contexts 4 to 3 of" in refusal(data.tokens, 4, 3)
    assert "contexts 0 to 1152921504606846976 of" in refusal(data.read, HOOK, 0, 1 << 60)
    assert "rows 3 to 46 of" in refusal(rows.read, 3, 46)


def test_without_pyarrow(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "data", activations())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'sae-recovery[llm]'" in refusal(open_saelens_dataset, folder)
