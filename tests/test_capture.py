"""Capture against plain forward passes, context by context; killed anywhere, it goes on as if nothing had happened."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_language import WIDTH, tiny_model, tiny_text

from llm_bridge.capture import Captured, activations, capture, choose_dtype, dtype_of
from llm_bridge.models import load_model
from llm_bridge.store import Store, read_index
from llm_bridge.texts import Text
from simulator import RequestError
from simulator.storage import claimed

# Executed in another order than named: a whole decoder layer, the attention (puts out a tuple), an MLP.
LAYERS = ("model.layers.2.mlp", "model.layers.0.self_attn", "model.layers.1")
SMALL = {"batch": 4, "shard_rows": 300}
CONTEXT = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("capture")


@pytest.fixture(scope="module")
def folder(place):
    return tiny_model(place / "model")


@pytest.fixture(scope="module")
def models(folder):
    return {dtype: load_model(str(folder), dtype, device="cpu") for dtype in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def text(place):
    return Text((str(tiny_text(place / "text")),), CONTEXT)


@pytest.fixture(scope="module")
def whole_store(place, models, text):
    """All of the text: the same command, never stopped."""
    capture(models["fp32"], LAYERS, text, 10**6, place / "whole", **SMALL)
    return place / "whole"


def files(folder: Path) -> dict[str, bytes]:
    """What a store consists of."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.startswith(".")}


def cut(tokenizer, text: Text) -> dict[tuple[int, ...], int]:
    """How often each context occurs, straight from the files."""
    found: dict[tuple[int, ...], int] = {}
    for path in text.paths:
        words = path.read_bytes().decode("utf-8", "replace")
        tokens = tokenizer.encode(words, add_special_tokens=False)
        while len(tokens) > 1:
            part, tokens = tuple(tokens[: text.context]), tokens[text.context :]
            found[part] = found.get(part, 0) + 1
    return found


def plain(model, layers, tokens) -> list[np.ndarray]:
    """Outputs of the layers for one context, by a full forward pass with hooks of this test's own."""
    kept: dict[str, torch.Tensor] = {}

    def keeper(name):
        def keep(module, inputs, output):
            kept[name] = (output if isinstance(output, torch.Tensor) else output[0]).float()[0]

        return keep

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keeper(name)) for name in layers]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return [kept[name].numpy() for name in layers]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_rows_are_those_of_plain_forward_passes(dtype, batch, models, text, tmp_path):
    model = models[dtype]
    done = capture(model, LAYERS, text, 10**6, tmp_path / "s", batch=batch, shard_rows=700)
    expected = cut(model.tokenizer, text)
    rows = sum((len(part) - 1) * times for part, times in expected.items())
    assert (done.rows, done.new, done.exhausted) == (rows, rows, True)
    stores = [Store(tmp_path / "s", layer) for layer in LAYERS]
    assert len(stores[0].index["shards"]) > 3
    assert [s.d for s in stores] == [WIDTH] * 3
    contexts, positions = stores[0].marks("contexts"), stores[0].marks("positions")
    found: dict[tuple[int, ...], int] = {}
    at = 0
    for number, tokens in enumerate(stores[0].context_tokens()):
        key = tuple(tokens.tolist())
        found[key] = found.get(key, 0) + 1
        past = at + len(key) - 1
        assert set(contexts[at:past]) == {number}
        assert positions[at:past].tolist() == list(range(1, len(key)))
        assert stores[0].marks("token_ids", at, past).tolist() == list(key[1:])
        for store, truth in zip(stores, plain(model.model, LAYERS, key), strict=True):
            error = np.abs(store.read(at, past) - truth[1:]).max() / np.abs(truth).max()
            # Products of another shape sum in another order; bf16 has 8 bits, and several roundings in a row.
            assert error < (1e-5 if dtype == "fp32" else 2**-6)
        at = past
    assert (found, at) == (expected, rows)


def test_bf16_is_stored_bit_by_bit(models, text, tmp_path):
    model = models["bf16"]
    capture(model, LAYERS[:1], text, 200, tmp_path / "s", batch=4)
    batch = activations(model, LAYERS[:1], next(text.batches(model.tokenizer, 4)))
    matrix = batch.matrices[LAYERS[0]]
    assert matrix.dtype == torch.bfloat16
    np.testing.assert_array_equal(Store(tmp_path / "s").read(0, len(matrix)), matrix.float().numpy())


def test_mean_and_scale_are_those_of_the_stored_rows(whole_store):
    for layer in LAYERS:
        store = Store(whole_store, layer)
        X = store.read(0, store.N).astype(np.float64)
        np.testing.assert_allclose(store.mean, X.mean(axis=0), rtol=1e-6, atol=1e-7)
        scaled = store.index["scale"][layer] * (X - X.mean(axis=0))
        assert (scaled**2).sum(axis=1).mean() == pytest.approx(WIDTH, rel=1e-9)


def test_the_end_of_the_text_and_the_tokens_asked_for(whole_store, models, text, tmp_path):
    index = read_index(whole_store)
    assert index["complete"] and index["exhausted"]
    some = capture(models["fp32"], LAYERS, text, 500, tmp_path / "s", **SMALL)
    assert 500 <= some.rows < 500 + 4 * CONTEXT and not some.exhausted
    again = capture(models["fp32"], LAYERS, text, 500, tmp_path / "s", **SMALL)
    assert again == Captured(some.rows, 0, 0.0, False)
    everything = capture(models["fp32"], LAYERS, text, index["rows"], tmp_path / "s", **SMALL)
    assert (everything.rows, everything.exhausted) == (index["rows"], False)
    for _ in range(2):  # found out by reading on, then known
        more = capture(models["fp32"], LAYERS, text, index["rows"] + 1, tmp_path / "s", **SMALL)
        assert (more.rows, more.new, more.exhausted) == (index["rows"], 0, True)


def test_extending_gives_the_rows_of_one_capture(whole_store, models, text, tmp_path):
    for tokens in (1, 400, 1_000, 10**6):
        capture(models["fp32"], LAYERS[::-1], text, tokens, tmp_path / "s", **SMALL)
    for layer in LAYERS:
        once, often = Store(whole_store, layer), Store(tmp_path / "s", layer)
        np.testing.assert_array_equal(once.read(0, once.N), often.read(0, often.N))
        np.testing.assert_allclose(once.mean, often.mean, rtol=1e-6, atol=1e-9)
    for name in ("token_ids", "positions", "contexts"):
        np.testing.assert_array_equal(once.marks(name), often.marks(name))
    for one, other in zip(once.context_tokens(), often.context_tokens(), strict=True):
        np.testing.assert_array_equal(one, other)


class Killed(BaseException):
    """Nothing in the program catches this."""


def test_killed_after_any_batch(whole_store, models, text, tmp_path):
    reference, seen = files(whole_store), []
    capture(models["fp32"], LAYERS, text, 10**6, tmp_path / "count", **SMALL, progress=lambda *x: seen.append(x))
    assert [rows for rows, _ in seen] == sorted(rows for rows, _ in seen)
    assert files(tmp_path / "count") == reference

    def stopping(last):
        def stop(rows, rate):
            if rows == last:
                raise Killed

        return stop

    for number, (last, _) in enumerate(seen[::3]):
        out = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            capture(models["fp32"], LAYERS, text, 10**6, out, **SMALL, progress=stopping(last))
        capture(models["fp32"], LAYERS, text, 10**6, out, **SMALL)
        assert files(out) == reference


@pytest.mark.parametrize("tokens", [900, 10**6])
def test_killed_at_any_write(tokens, models, text, tmp_path, monkeypatch):
    """Between a shard and its index, too; with and without an end of the text."""
    fsync, left = os.fsync, [0]

    def counted(handle):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        fsync(handle)

    def run(name):
        return capture(models["fp32"], LAYERS, text, tokens, tmp_path / name, **SMALL)

    monkeypatch.setattr(os, "fsync", counted)
    run("reference")
    writes = -left[0]
    assert writes % 2 == 1 and writes > 5  # a shard and its index, and the index at the end
    for write in range(1, writes + 1, 1 if tokens == 900 else 5):
        left[0] = write
        with pytest.raises(Killed):
            run(f"at-{write}")
        left[0] = 3  # once more, in the continued run, unless it is done before
        try:
            run(f"at-{write}")
        except Killed:
            run(f"at-{write}")
        assert files(tmp_path / f"at-{write}") == files(tmp_path / "reference")
        assert run(f"at-{write}").new == 0


def test_sigkill_of_the_command_while_it_writes(folder, text, tmp_path):
    """The second shard is half written; what is left of it harms nobody."""
    code = (
        "import os, signal, sys\n"
        "from figures.cli import main\n"
        "count, fsync = [0], os.fsync\n"
        "def dying(handle):\n"
        "    count[0] += 1\n"
        "    if count[0] == 3:\n"
        "        os.ftruncate(handle, 1000)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    fsync(handle)\n"
        "os.fsync = dying\n"
        "main(sys.argv[1:])\n"
    )
    killed, out = tmp_path / "killed", tmp_path / "never"
    command = ["capture", "--model", str(folder), "--layer", *LAYERS, "--text", *text.files, "--tokens", "1000"]
    command += ["--context", str(CONTEXT), "--batch", "4", "--shard-rows", "300", "--dtype", "fp32", "--quiet"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--out", str(killed)],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert list(killed.glob(".*.part"))
    assert len(read_index(killed)["shards"]) == 1
    assert Store(killed, LAYERS[0]).N >= 300
    for where in (killed, out):
        capture(str(folder), LAYERS, text, 1000, where, dtype="fp32", **SMALL)
    assert files(killed) == files(out)


def test_a_shard_that_the_index_does_not_know_is_overwritten(whole_store, models, text, tmp_path):
    (tmp_path / "s").mkdir()
    for number in range(3):
        (tmp_path / "s" / f"shard-{number:05d}.safetensors").write_bytes(b"left by a killed process")
    (tmp_path / "s" / ".shard-00001.safetensors.x.part").write_bytes(b"half")
    capture(models["fp32"], LAYERS, text, 10**6, tmp_path / "s", **SMALL)
    assert files(tmp_path / "s") == files(whole_store)


def test_no_space_left(whole_store, models, text, tmp_path, monkeypatch):
    def run():
        return capture(models["fp32"], LAYERS, text, 10**6, tmp_path / "s", **SMALL)

    size = len(files(whole_store)["shard-00000.safetensors"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a write that fails in the middle: no file may become longer than half a shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        with pytest.raises(RequestError, match=r"cannot write .*shard-00000"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in (tmp_path / "s").iterdir()] == [".lock"]
    fsync, left = os.fsync, [6]

    def full(handle):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)  # the third index
    for shard in (3, 3):
        with pytest.raises(RequestError, match="No space left on device; free some space") as caught:
            run()
        assert "\n" not in str(caught.value)
        assert len(Store(tmp_path / "s", LAYERS[0]).index["shards"]) == shard - 1
        left[0] = 0
    monkeypatch.setattr(os, "fsync", fsync)
    with claimed(tmp_path / "s"), pytest.raises(RequestError, match="another process is working in"):
        run()
    run()
    assert files(tmp_path / "s") == files(whole_store)


def test_another_request_is_refused_and_changes_nothing(whole_store, models, text, tmp_path):
    before = files(whole_store)
    longer, longer_text = tmp_path / "t", replace(text, context=16)
    tiny_text(longer)
    (longer / "more.txt").write_text("more of it")
    requests = {
        "text.context: 32 there, 16 here": (models["fp32"], LAYERS, longer_text, SMALL),
        "text.seed: 0 there, 1 here": (models["fp32"], LAYERS, replace(text, seed=1), SMALL),
        r"text\.files: 9 there|text\.files: 10 there": (models["fp32"], LAYERS, Text((str(longer),), 32), SMALL),
        "dtype: 'fp32' there, 'bf16' here": (models["bf16"], LAYERS, text, SMALL),
        "layers: .* there, .* here": (models["fp32"], LAYERS[:2], text, SMALL),
        "batch: 4 there, 5 here": (models["fp32"], LAYERS, text, SMALL | {"batch": 5}),
        "shard_rows: 300 there, 301 here": (models["fp32"], LAYERS, text, SMALL | {"shard_rows": 301}),
        "control: None there, 'shuffled-tokens' here": (
            models["fp32"], LAYERS, replace(text, shuffled=True), SMALL | {"control": "shuffled-tokens"},
        ),
        "model.revision: '.*' there, 'other' here": (replace(models["fp32"], revision="other"), LAYERS, text, SMALL),
    }  # fmt: skip
    for message, (model, layers, words, options) in requests.items():
        with pytest.raises(RequestError, match=message) as caught:
            capture(model, layers, words, 10**7, whole_store, **options)
        assert "name another folder" in str(caught.value)
    assert files(whole_store) == before


def test_a_store_is_continued_in_its_own_precision(folder, text, tmp_path):
    capture(str(folder), LAYERS, text, 100, tmp_path / "s", dtype="bf16", **SMALL)
    capture(str(folder), LAYERS, text, 300, tmp_path / "s", **SMALL)
    assert read_index(tmp_path / "s")["dtype"] == "bf16"
    assert read_index(tmp_path / "s")["loaded_from"] == str(folder)
    assert choose_dtype("auto") in ("bf16", "fp32")


def test_shuffled_tokens_are_the_same_tokens(whole_store, models, text, tmp_path):
    mixed = replace(text, shuffled=True)
    capture(models["fp32"], LAYERS, mixed, 10**6, tmp_path / "s", control="shuffled-tokens", **SMALL)
    one, other = Store(whole_store, LAYERS[0]), Store(tmp_path / "s", LAYERS[0])
    assert other.identity()["control"] == "shuffled-tokens"
    parts, mixed_parts = one.context_tokens(), other.context_tokens()
    assert [len(part) for part in parts] == [len(part) for part in mixed_parts]
    before, after = np.concatenate(parts), np.concatenate(mixed_parts)
    np.testing.assert_array_equal(np.sort(before), np.sort(after))
    assert (before != after).mean() > 0.5


def test_random_model_control(folder, models, text, tmp_path):
    capture(str(folder), LAYERS, text, 100, tmp_path / "s", dtype="fp32", control="random-model", **SMALL)
    drawn = load_model(str(folder), "fp32", control="random-model", seed=text.seed)
    capture(drawn, LAYERS, text, 100, tmp_path / "t", control="random-model", **SMALL)
    for layer in LAYERS:
        one, other = Store(tmp_path / "s", layer), Store(tmp_path / "t", layer)
        np.testing.assert_array_equal(one.read(0, one.N), other.read(0, one.N))
    with pytest.raises(RequestError, match="control none does not describe model, whose control is random-model"):
        capture(drawn, LAYERS, text, 100, tmp_path / "u", **SMALL)


def test_requests_that_cannot_be_met(models, text, tmp_path):
    model = models["fp32"]
    (tmp_path / "file").write_text("x")
    (tmp_path / "words.txt").write_text("x")
    single = Text((str(tmp_path / "words.txt"),), 32)
    half = replace(model, model=load_model(model_folder(model), "fp32").model.half())
    cases = [
        ({"layers": ()}, "must be one or more different"),
        ({"layers": LAYERS[:1] * 2}, "must be one or more different"),
        ({"layers": ("model.layers.9.mlp",)}, r"no module 'model.layers.9.mlp'; near names: .*model\.layers\.\d\.mlp"),
        ({"layers": ("lm_head.weight",)}, "near names"),
        ({"layers": ("model",)}, "module model puts out BaseModelOutput"),
        ({"layers": ("model.rotary_emb",)}, r"model.rotary_emb puts out shape \(1, 32, 8\)"),
        ({"layers": (LAYERS[0], "model.layers.1.self_attn.q_proj.nothing")}, "near names"),
        ({"tokens": 0}, "tokens = 0"),
        ({"tokens": 1.5}, "tokens = 1.5"),
        ({"batch": 0}, "batch = 0"),
        ({"shard_rows": 0}, "shard_rows = 0"),
        ({"control": "zero"}, "control 'zero' is unknown"),
        ({"control": "shuffled-tokens"}, "goes with a text that is shuffled"),
        ({"text": replace(text, shuffled=True)}, "goes with a text that is shuffled"),
        ({"text": single}, "gives no context of at least two tokens"),
        ({"text": replace(text, context=1000)}, "reads at most 512 tokens"),
        ({"dtype": "bf16"}, "was loaded in fp32, not in bf16"),
        ({"model": half}, "load it in fp32 or bf16"),
        ({"out": tmp_path / "file"}, "is a file; name a folder"),
        ({"out": tmp_path / "file" / "below"}, "cannot use the folder"),
    ]
    for changes, message in cases:
        request = {"model": model, "layers": LAYERS, "text": text, "tokens": 100, "out": tmp_path / "s"} | changes
        with pytest.raises(RequestError, match=message) as caught:
            capture(**{"batch": 4} | request)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "s").exists()


def model_folder(model) -> str:
    return model.model.config._name_or_path


def test_activations_that_are_not_finite_and_tokens_without_embedding(models, folder):
    model = load_model(str(folder), "bf16")
    assert dtype_of(model) == "bf16"
    with torch.no_grad():
        model.model.get_submodule("model.layers.0.mlp.down_proj").weight[0, 0] = float("inf")
    with pytest.raises(RequestError, match=r"model.layers.0 puts out NaN or infinity in torch.bfloat16"):
        activations(model, ["model.layers.0"], [np.array([1, 2, 3], np.int32)])
    with pytest.raises(RequestError, match="makes token 300; the model knows 300 tokens"):
        activations(models["fp32"], LAYERS, [np.array([1, 300], np.int32)])
