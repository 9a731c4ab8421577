"""SAELens folders: ours read back, cases worked by hand, bad files. The real sae-lens: test_saelens_peer.py."""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from llm_bridge.autoencoder import Autoencoder
from llm_bridge.saelens import CONFIG, INPUT, SCALER, WEIGHTS, read_saelens, write_saelens
from simulator.errors import RequestError

ROWS = ("none", "unit", "rms", "layer_norm")
KINDS = ("standard", "topk", "ranked", "jumprelu")


def activations(N: int = 60, d: int = 12) -> np.ndarray:
    """Rows of different lengths with a mean that matters."""
    generator = np.random.default_rng(5)
    X = generator.normal(size=(N, d)) * generator.uniform(0.5, 3, size=(N, 1)) + np.linspace(-1, 2, d)
    return X.astype(np.float32)


def network(
    kind: str, rows: str = "none", *, offset: bool = False, scale: float = 1.0, subtract: bool = True,
    M: int = 30, d: int = 12, seed: int = 0,
) -> Autoencoder:  # fmt: skip
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return Autoencoder(
        draw(M, d), draw(M, d) * np.linspace(0.2, 2, M, dtype=np.float32)[:, None], 0.3 * draw(M), 0.2 * draw(d),
        threshold=np.abs(draw(M)) if kind == "jumprelu" else None, k=min(4, M) if kind in ("topk", "ranked") else None,
        offset=draw(d) if offset else None, scale=scale, rows=rows, subtract_b_dec=subtract,
        rank_by_decoder_norm=kind == "ranked",
    )  # fmt: skip


def cases() -> dict[str, Autoencoder]:
    """Every kind x row scaling x offset x scale x subtract_b_dec."""
    grid = itertools.product(KINDS, ROWS, (False, True), (1.0, 0.37), (True, False))
    return {
        f"{kind}-{rows}-{'offset' if offset else 'plain'}-{scale}-{'apply' if subtract else 'raw'}": network(
            kind, rows, offset=offset, scale=scale, subtract=subtract
        )
        for kind, rows, offset, scale, subtract in grid
    }


CASES = cases()


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to 1e-5 of the largest entry; float32 sums of a few dozen terms in another order are good for that."""
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 0
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def assert_equal_networks(found: Autoencoder, wanted: Autoencoder, X: np.ndarray) -> None:
    assert_same(found.encode(X).toarray(), wanted.encode(X).toarray())
    assert_same(found.reconstruct(X), wanted.reconstruct(X))


# Round trips


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_back(tmp_path, name):
    write_saelens(tmp_path / "sae", CASES[name], {"model_name": "tiny", "hook_name": "layers.3"})
    found, config = read_saelens(tmp_path / "sae")
    assert_equal_networks(found, CASES[name], activations())
    assert config["architecture"] == {"ranked": "topk"}.get(name.split("-")[0], name.split("-")[0])
    assert config["metadata"]["model_name"] == "tiny"
    assert ("offset" in name and "none" not in name) <= (tmp_path / "sae" / INPUT).exists()


def test_a_second_export_is_the_first(tmp_path):
    write_saelens(tmp_path / "a", network("jumprelu", "layer_norm", offset=True, scale=2.0), {})
    found, config = read_saelens(tmp_path / "a")
    write_saelens(tmp_path / "b", found, config["metadata"])
    for name in (WEIGHTS, INPUT, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # The input is prepared no longer once the offset is gone, and the metadata must not say so either.
    write_saelens(tmp_path / "c", replace(found, offset=None, scale=1.0), config["metadata"])
    assert not (tmp_path / "c" / INPUT).exists()
    assert read_saelens(tmp_path / "c")[0].offset is None


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS), st.sampled_from(ROWS), st.booleans(), st.booleans(), st.floats(0.01, 100),
    st.integers(1, 20), st.integers(2, 9), st.integers(0, 99),
)  # fmt: skip
def test_round_trips_of_random_shapes(kind, rows, offset, subtract, scale, M, d, seed):
    wanted = network(kind, rows, offset=offset, scale=scale, subtract=subtract, M=M, d=d, seed=seed)
    X = activations(20, d)
    with tempfile.TemporaryDirectory() as folder:
        write_saelens(Path(folder) / "sae", wanted, {})
        found, _ = read_saelens(Path(folder) / "sae")
    # Pre-activations agree to rounding, so codes can only differ where one lies on its threshold.
    ours, theirs = wanted.encode(X).toarray(), found.encode(X).toarray()
    size = max(np.abs(wanted.inputs(X)).max(), 1) * 10
    both = (ours > 0) & (theirs > 0)
    assert np.abs(ours - theirs)[both].max(initial=0) <= 1e-5 * max(size, ours.max(initial=0))
    assert (ours > 0).sum() == pytest.approx((theirs > 0).sum(), abs=1)


# By hand


def test_unit_rows_by_hand(tmp_path):
    """d = 4, so SAELens scales rows to norm 2 where ours have norm 1.

    x = (0, 3, 0, 4) + o has x - o = 5 u with u = (0, 0.6, 0, 0.8), b_dec = (0, 0, 0, 0.1).
    y = (0.6, 0.8 - 0.1) = (0.6, 0.7); with both thresholds at 0.65 phi = (0, 0.7).
    u^ = 0.7 (1, 0, 0, 0) + b_dec = (0.7, 0, 0, 0.1); x^ = 5 u^ + o = (3.5, 0, 0, 0.5) + o.
    Written: W_enc / 2, 2 W_dec, 2 b_dec, thresholds as they are, and o beside them.
    SAELens on x - o: v = 2 u = (0, 1.2, 0, 1.6); h = ((0, 1.2, 0, 1.6) - (0, 0, 0, 0.2)) W_enc' = (0.6, 0.7).
    """
    encoder = np.array([[0, 1, 0, 0], [0, 0, 0, 1]], np.float32)
    decoder = np.array([[0, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    b_dec, o = np.array([0, 0, 0, 0.1], np.float32), np.array([7, -2, 1, 3], np.float32)
    threshold = np.full(2, 0.65, np.float32)
    ours = Autoencoder(encoder, decoder, np.zeros(2, np.float32), b_dec, threshold=threshold, offset=o, rows="unit")
    x = np.array([[0, 3, 0, 4]], np.float32) + o
    np.testing.assert_allclose(ours.encode(x).toarray(), [[0, 0.7]], atol=1e-6)
    np.testing.assert_allclose(ours.reconstruct(x), np.array([[3.5, 0, 0, 0.5]]) + o, atol=1e-5)

    write_saelens(tmp_path / "sae", ours, {})
    tensors = load_file(tmp_path / "sae" / WEIGHTS)
    assert set(tensors) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    np.testing.assert_allclose(tensors["W_enc"], [[0, 0], [0.5, 0], [0, 0], [0, 0.5]])
    np.testing.assert_allclose(tensors["W_dec"], [[0, 2, 0, 0], [2, 0, 0, 0]])
    np.testing.assert_allclose(tensors["b_dec"], [0, 0, 0, 0.2])
    np.testing.assert_allclose(tensors["b_enc"], [0, 0])
    np.testing.assert_allclose(tensors["threshold"], [0.65, 0.65])
    np.testing.assert_allclose(load_file(tmp_path / "sae" / INPUT)["offset"], o)
    config = json.loads((tmp_path / "sae" / CONFIG).read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "jumprelu", "d_in": 4, "d_sae": 2, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "constant_norm_rescale", "reshape_activations": "none",
    }  # fmt: skip
    assert "subtract the tensor offset" in metadata["sae_recovery"]["input"]
    assert metadata["sae_lens_training_version"] is None


@pytest.mark.parametrize("subtract", [True, False])
def test_scale_and_offset_by_hand(tmp_path, subtract):
    """One dimension, W_enc = 2, W_dec = 3, b_enc = 1, b_dec = 4, s = 0.5, o = 10, threshold 2.

    Written: W_enc' = 0.5 * 2 = 1, W_dec' = 3 / 0.5 = 6, b_dec' = 4 / 0.5 + 10 = 18.
    b_dec taken off:      y = 2 (0.5 (x - 10) - 4) + 1 = x - 17,  h = (x - 18) * 1 + 1: b_enc' = 1.
    b_dec not taken off:  y = 2 (0.5 (x - 10)) + 1 = x - 9,       h = x * 1 + b_enc': b_enc' = 1 - 10 = -9.
    At x = 20: phi = 3 or 11; x^ = 3 * 6 + 18 = 36 or 11 * 6 + 18 = 84.
    """
    one = np.ones((1, 1), np.float32)
    ours = Autoencoder(
        2 * one, 3 * one, one[0], 4 * one[0], threshold=2 * one[0], offset=10 * one[0], scale=0.5,
        subtract_b_dec=subtract,
    )  # fmt: skip
    write_saelens(tmp_path / "sae", ours, {})
    tensors = {name: float(value.reshape(())) for name, value in load_file(tmp_path / "sae" / WEIGHTS).items()}
    assert tensors == {"W_enc": 1, "W_dec": 6, "b_dec": 18, "b_enc": 1 if subtract else -9, "threshold": 2}
    found, _ = read_saelens(tmp_path / "sae")
    for autoencoder in (ours, found):
        assert autoencoder.encode(20 * one).toarray().item() == (3 if subtract else 11)
        assert autoencoder.reconstruct(20 * one).item() == (36 if subtract else 84)


# What SAELens writes, without SAELens


def plain_folder(folder: Path, changes: dict | None = None, architecture: str = "jumprelu", M: int = 6) -> Path:
    """A small folder as SAELens lays it out; None in `changes` takes an entry out."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    tensors = {"W_enc": (3, M), "W_dec": (M, 3), "b_enc": (M,), "b_dec": (3,)}
    if architecture == "jumprelu":
        tensors["threshold"] = (M,)
    save_file({name: generator.normal(size=s).astype(np.float32) for name, s in tensors.items()}, folder / WEIGHTS)
    config = {"architecture": architecture, "d_in": 3, "d_sae": M, "dtype": "float32", "device": "cpu"}
    config |= {"metadata": {"sae_lens_version": "6.54.12"}} | (changes or {})
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_defaults_are_those_of_saelens(tmp_path):
    found, config = read_saelens(plain_folder(tmp_path / "a"))
    assert found.subtract_b_dec and found.rows == "none" and found.scale == 1 and found.offset is None
    assert config["normalize_activations"] == "none"
    found, config = read_saelens(plain_folder(tmp_path / "b", {"architecture": None}, "standard"))
    assert found.threshold is None and found.k is None and config["architecture"] == "standard"
    found, _ = read_saelens(plain_folder(tmp_path / "c", {}, "topk", M=120))
    assert found.k == 100 and not found.rank_by_decoder_norm


def test_weights_are_rounded_to_the_dtype_that_is_named(tmp_path):
    exact, _ = read_saelens(plain_folder(tmp_path / "a"))
    rounded, _ = read_saelens(plain_folder(tmp_path / "b", {"dtype": "torch.bfloat16"}))
    assert rounded.encoder.dtype == np.float32
    np.testing.assert_array_equal(rounded.encoder, torch.tensor(exact.encoder).bfloat16().float())


def test_files_from_before_6_0(tmp_path):
    old = {"metadata": None, "architecture": None}
    topk = old | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "normalize_activations": False}
    found, config = read_saelens(plain_folder(tmp_path / "a", topk, "standard"))
    assert found.k == 2 and config["architecture"] == "topk"
    with pytest.raises(RequestError, match="hook_z"):
        read_saelens(plain_folder(tmp_path / "b", old | {"hook_point": "blocks.1.attn.hook_z"}, "standard"))
    with pytest.raises(RequestError, match="tanh"):
        read_saelens(plain_folder(tmp_path / "c", old | {"activation_fn": "tanh-relu"}, "standard"))


def test_the_factor_of_an_unfolded_checkpoint(tmp_path, caplog):
    folder = plain_folder(tmp_path / "a", {"normalize_activations": "expected_average_only_in"})
    assert read_saelens(folder)[0].scale == 1
    assert SCALER in caplog.text
    (folder / SCALER).write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    assert read_saelens(folder)[0].scale == 0.25
    (folder / SCALER).write_text('{"scaling_factor": null, "has_whitening": true}')
    with pytest.raises(RequestError, match="whitening"):
        read_saelens(folder)


# Requests that cannot be met


def refusal(call, *arguments) -> str:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "gated"}, "'gated' cannot be read; standard, topk and jumprelu work"),
        ({"architecture": "jumprelu_transcoder"}, "'jumprelu_transcoder' cannot be read"),
        ({"architecture": ["topk"]}, "['topk'] cannot be read"),
        ({"architecture": "standard"}, "holds threshold too; architecture standard has exactly W_enc"),
        ({"dtype": None}, 'names no dtype; add "dtype": "float32"'),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"d_in": 4}, "W_enc has shape (3, 6); cfg.json asks for (4, 6)"),
        ({"d_sae": None}, "has no d_sae"),
        ({"d_sae": "6"}, "has d_sae = '6'"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' cannot be read"),
        ({"reshape_activations": "hook_z"}, "'hook_z' cannot be read"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input = 1; true or false"),
        ({"metadata": []}, "metadata = []; a mapping is needed"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, told):
    assert told in refusal(read_saelens, plain_folder(tmp_path / "sae", changes))


@pytest.mark.parametrize("k", [0, 7, 2.5, True, "3"])
def test_a_k_that_is_refused(tmp_path, k):
    assert f"k = {k!r} of 6" in refusal(read_saelens, plain_folder(tmp_path / "sae", {"k": k}, "topk"))


def tensors_changed(folder: Path, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / CONFIG).unlink(), "cfg.json does not exist"),
        (lambda f: (f / CONFIG).write_text("{"), "cfg.json is no readable JSON"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "cfg.json is no readable JSON"),
        (lambda f: (f / CONFIG).write_text("[1]"), "cfg.json holds a list"),
        (lambda f: (f / CONFIG).write_text("[" * 100_000), "cfg.json is no readable JSON"),
        (lambda f: (f / WEIGHTS).unlink(), "sae_weights.safetensors does not exist"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "is truncated or damaged"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "is truncated or damaged"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04pickle"), "is truncated or damaged"),
        (lambda f: tensors_changed(f, W_dec=None, b_enc=None), "lacks W_dec, b_enc; architecture jumprelu has"),
        (lambda f: tensors_changed(f, b_gate=np.ones(6)), "holds b_gate too"),
        (lambda f: tensors_changed(f, scaling_factor=np.full(6, 2.0)), "holds scaling_factor too"),
        (lambda f: tensors_changed(f, threshold=np.ones(5)), "threshold has shape (5,); cfg.json asks for (6,)"),
        (lambda f: tensors_changed(f, b_dec=np.ones(3, np.int32)), "b_dec has dtype torch.int32"),
        (lambda f: tensors_changed(f, W_enc=np.full((3, 6), np.nan)), "W_enc holds NaN or infinity"),
        (lambda f: tensors_changed(f, b_enc=np.full(6, 1e300)), "b_enc holds NaN or inf"),
    ],
)
def test_damaged_folders(tmp_path, damage, told):
    folder = plain_folder(tmp_path / "sae")
    damage(folder)
    text = refusal(read_saelens, folder)
    assert told in text
    assert str(folder) in text


def test_a_factor_of_ones_that_saelens_once_wrote_is_skipped(tmp_path):
    folder = plain_folder(tmp_path / "sae")
    tensors_changed(folder, scaling_factor=np.ones(6))
    assert read_saelens(folder)[0].M == 6


def test_an_offset_that_got_lost(tmp_path):
    folder = tmp_path / "sae"
    write_saelens(folder, network("jumprelu", "unit", offset=True), {})
    whole = (folder / INPUT).read_bytes()
    (folder / INPUT).unlink()
    assert f"{INPUT} does not exist" in refusal(read_saelens, folder)
    (folder / INPUT).write_bytes(whole[:-4])
    assert "truncated" in refusal(read_saelens, folder)
    (folder / INPUT).write_bytes(whole)
    config = json.loads((folder / CONFIG).read_text())
    config["metadata"]["sae_recovery"]["input_tensors"] = ["../offset"]
    (folder / CONFIG).write_text(json.dumps(config))
    assert "input_tensors = ['../offset']" in refusal(read_saelens, folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, INPUT])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    assert "nothing is overwritten" in refusal(write_saelens, tmp_path, network("topk"), {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_networks_that_cannot_be_written(tmp_path):
    jump = network("jumprelu")
    assert "both k and thresholds" in refusal(write_saelens, tmp_path / "a", replace(jump, k=3), {})
    broken = replace(jump, b_dec=np.full(12, np.nan, np.float32))
    assert "b_dec holds NaN" in refusal(write_saelens, tmp_path / "a", broken, {})
    assert "no JSON" in refusal(write_saelens, tmp_path / "a", jump, {"when": object()})
    assert "no JSON" in refusal(write_saelens, tmp_path / "a", jump, {"loss": float("nan")})
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(write_saelens, tmp_path / "file", jump, {})
    assert not (tmp_path / "a").exists()
    # Thresholds that gate nothing are no obstacle.
    write_saelens(tmp_path / "a", replace(jump, k=3, threshold=np.zeros(30, np.float32)), {})
    assert read_saelens(tmp_path / "a")[0].k == 3
