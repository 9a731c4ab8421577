"""The store: what was appended is what is read; whatever is damaged is named and refused."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llm_bridge.sources import open_rows
from llm_bridge.store import FORMAT, INDEX, MARKS, Store, StoreWriter, read_index
from simulator import RequestError
from simulator.storage import save_tensors

LENGTHS = ((3, 1, 4), (2,), (5, 2))
"""Rows of each context of each shard."""
LAYERS = {"low": 3, "high": 5}


def write(folder, dtype="fp32", shards=LENGTHS, layers=LAYERS, seed=0):
    """A store and what it must hold: layer -> matrix, and the tokens of every context."""
    generator = np.random.default_rng(seed)
    writer = StoreWriter(folder, {"model": {"name": "m"}, "control": None}, layers, dtype)
    matrices = {path: [] for path in layers}
    tokens = []
    for lengths in shards:
        rows = sum(lengths)
        new = {path: torch.from_numpy(generator.standard_normal((rows, d)) + 1).float() for path, d in layers.items()}
        parts = [generator.integers(0, 100, length + 1).astype(np.int32) for length in lengths]
        marks = {
            "token_ids": np.concatenate([part[1:] for part in parts]),
            "positions": np.concatenate([np.arange(1, len(part)) for part in parts]).astype(np.int32),
            "contexts": np.repeat(np.arange(len(tokens), len(tokens) + len(parts)), lengths).astype(np.int32),
            "first_tokens": np.array([part[0] for part in parts], np.int32),
        }
        writer.append(new, marks, 1)
        tokens += parts
        for path, matrix in new.items():
            matrices[path].append(matrix.to(torch.bfloat16).float() if dtype == "bf16" else matrix)
    writer.save(complete=True, exhausted=False)
    return {path: torch.cat(parts).numpy() for path, parts in matrices.items()}, tokens


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_any_stretch_of_rows(dtype, tmp_path):
    matrices, tokens = write(tmp_path, dtype)
    for path, expected in matrices.items():
        store = Store(tmp_path, path)
        assert (store.N, store.d, store.layer) == (17, LAYERS[path], path)
        for start in range(18):
            for stop in range(start, 18):
                read = store.read(start, stop)
                assert read.dtype == np.float32
                np.testing.assert_array_equal(read, expected[start:stop])
                np.testing.assert_array_equal(
                    store.marks("token_ids", start, stop), np.concatenate([t[1:] for t in tokens])[start:stop]
                )
        np.testing.assert_allclose(store.mean, expected.mean(axis=0, dtype=np.float64), rtol=1e-6)
        scaled = store.index["scale"][path] * (expected - store.mean)
        assert float((scaled**2).sum(axis=1).mean()) == pytest.approx(LAYERS[path], rel=1e-5)
        for start, stop in ((-1, 3), (5, 4), (0, 18)):
            with pytest.raises(RequestError, match=f"rows {start} to {stop} of .*; it has 0 to 17"):
                store.read(start, stop)


def test_tokens_of_contexts(tmp_path):
    _, tokens = write(tmp_path)
    store = Store(tmp_path, "low")
    for found, expected in zip(store.context_tokens(), tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, number in zip(store.context_tokens([5, 0, 3, 3]), [5, 0, 3, 3], strict=True):
        np.testing.assert_array_equal(found, tokens[number])
    assert store.context_tokens([]) == []
    for outside in (6, -1):
        with pytest.raises(RequestError, match=f"context {outside} of .*; it has 0 to 5"):
            store.context_tokens([0, outside])
    with pytest.raises(RequestError, match="'first_tokens' is no mark of rows"):
        store.marks("first_tokens")


def test_shards_are_ordinary_safetensors_files(tmp_path):
    """Read by the library itself."""
    matrices, _ = write(tmp_path, "bf16")
    shards = [load_file(tmp_path / shard["file"]) for shard in read_index(tmp_path)["shards"]]
    assert set(shards[0]) == {*LAYERS, *MARKS}
    assert shards[0]["low"].dtype == torch.bfloat16
    for path, expected in matrices.items():
        np.testing.assert_array_equal(torch.cat([shard[path] for shard in shards]).float().numpy(), expected)


def test_identity_is_that_of_the_rows(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "c", seed=1)
    write(tmp_path / "d", "bf16")
    one = Store(tmp_path / "a", "low").identity()
    assert one == Store(tmp_path / "b", "low").identity()
    others = [Store(tmp_path / "c", "low"), Store(tmp_path / "d", "low"), Store(tmp_path / "a", "high")]
    assert all(one != other.identity() for other in others)
    assert json.loads(json.dumps(one)) == one


def test_equal_rows_have_a_scale(tmp_path):
    writer = StoreWriter(tmp_path, {}, {"x": 2}, "fp32")
    marks = {name: np.zeros(3 if name != "first_tokens" else 1, np.int32) for name in MARKS}
    writer.append({"x": torch.ones(3, 2)}, marks, 1)
    assert Store(tmp_path).index["scale"] == {"x": 1.0}


@pytest.mark.parametrize("where", ["header", "numbers", "end"])
def test_a_flipped_bit(where, tmp_path):
    write(tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[{"header": 20, "numbers": len(content) // 2, "end": -1}[where]] ^= 1
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"shard-00001.safetensors is damaged .*checksum") as caught:
        Store(tmp_path, "low")
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_the_index(tmp_path):
    """Refused, or one that changes nothing (in the name of the checksum's own key)."""
    write(tmp_path, shards=LENGTHS[:1], layers={"x": 2})
    content = (tmp_path / INDEX).read_bytes()
    good = read_index(tmp_path)
    for at in range(len(content)):
        (tmp_path / INDEX).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            found = read_index(tmp_path)
        except RequestError as error:
            assert INDEX in str(error) and "damaged" in str(error)
            continue
        assert {key: found[key] for key in good} == good
    assert len(content) > 500


def truncate(file):
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "shard-00002.safetensors").unlink(), "shard-00002.safetensors is missing; restore it"),
        (lambda f: truncate(f / "shard-00000.safetensors"), "shard-00000.safetensors is damaged"),
        (lambda f: (f / "shard-00000.safetensors").write_bytes(b""), "shard-00000.safetensors is damaged"),
        (lambda f: (f / INDEX).write_text(""), f"{INDEX} is damaged or no index of {FORMAT}"),
        (lambda f: (f / INDEX).write_bytes(b"\xff\xfe"), "is damaged or no index"),
        (lambda f: truncate(f / INDEX), "is damaged or no index"),
        (lambda f: (f / INDEX).write_text("[]"), "is damaged or no index"),
        (lambda f: (f / INDEX).write_text("[" * 100_000), "is damaged or no index"),
        (lambda f: (f / INDEX).write_text('{"format": "another 1", "shards": []}'), "is damaged or no index"),
        (lambda f: (f / INDEX).write_text(json.dumps({"format": FORMAT, "shards": []})), "is damaged or no index"),
        (lambda f: (f / INDEX).unlink(), f"has no {INDEX}: no activation store"),
    ],
)
def test_damage(harm, message, tmp_path):
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        Store(tmp_path, "low")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 18}, {"rows": "17"}, {"layers": {}}, {"layers": {"low": 3, "high": 4}}, {"dtype": "fp16"},
        {"shards": {}}, {"complete": None}, {"statistics": {}}, {"mean": {}}, {"contexts": None},
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_together(change, tmp_path):
    """Written by hand: without a checksum."""
    write(tmp_path)
    index = read_index(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert Store(tmp_path, "low").N == 17
    (tmp_path / INDEX).write_text(json.dumps(index | change))
    with pytest.raises(RequestError, match="is damaged or no index"):
        Store(tmp_path, "low")


def test_a_shard_outside_the_folder_is_not_read(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    index = read_index(tmp_path / "b")
    index["shards"][0]["file"] = "../a/shard-00000.safetensors"
    (tmp_path / "b" / INDEX).write_text(json.dumps(index))
    with pytest.raises(RequestError, match="is damaged or no index"):
        Store(tmp_path / "b", "low")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 8) + b'{"x": 1}',
        struct.pack("<Q", 48) + b'{"x": {"dtype": "F32", "shape": [1], "data": 0}}',
    ],
)
def test_unreadable_shards_without_checksums(content, tmp_path):
    write(tmp_path)
    (tmp_path / "shard-00001.safetensors").write_bytes(content)
    with pytest.raises(RequestError, match=r"shard-00001\.safetensors is no readable shard") as caught:
        Store(tmp_path, "low", verify=False)
    assert "\n" not in str(caught.value)


def test_shards_that_hold_something_else(tmp_path):
    write(tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    marks = {name: np.zeros(2, np.int32) for name in MARKS}
    for tensors, name in (
        (marks | {"low": np.zeros((3, 3), np.float32)}, "low"),
        (marks | {"low": np.zeros((2, 4), np.float32)}, "low"),
        (marks | {"low": np.zeros((2, 3), np.float64)}, "low"),
        ({"low": np.zeros((2, 3), np.float32)}, "token_ids"),
        (marks | {"low": np.zeros((2, 3), np.float32), "positions": np.zeros(3, np.int32)}, "positions"),
    ):
        save_tensors(file, tensors, {})
        with pytest.raises(RequestError, match=rf"does not hold what index.json says of it \({name}\)"):
            Store(tmp_path, "low", verify=False)


def test_a_shard_cut_off_after_it_was_opened(tmp_path):
    write(tmp_path)
    store = Store(tmp_path, "low")
    file = tmp_path / "shard-00002.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    with pytest.raises(RequestError, match=r"shard-00002\.safetensors ends too early"):
        store.read(0, 17), store.marks("positions"), store.context_tokens()


def test_which_layer(tmp_path):
    write(tmp_path / "two")
    write(tmp_path / "one", layers={"low": 3})
    assert Store(tmp_path / "one").layer == "low"
    with pytest.raises(RequestError, match="holds 2 layers; choose with --layer: low, high"):
        open_rows(tmp_path / "two")
    for folder in ("one", "two"):
        with pytest.raises(RequestError, match="has no layer 'middle'; it has low"):
            open_rows(tmp_path / folder, "middle")


def test_folders_without_rows(tmp_path):
    StoreWriter(tmp_path / "none", {}, {"low": 3}, "fp32").save()
    with pytest.raises(RequestError, match="holds no shard yet; let its capture go on"):
        Store(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file", "."):
        with pytest.raises(RequestError, match="no activation store; sae-recovery capture writes one"):
            open_rows(tmp_path / name)
