"""Runs as autoencoders, their measures by plain formulas, and the loss recovered by a model written out here."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_language import tiny_model

from figures.cells import Cell, run_cell
from llm_bridge.autoencoder import Autoencoder
from llm_bridge.loss_recovered import LossRecovered, loss_recovered
from llm_bridge.measures import gate, measure
from llm_bridge.models import load_model
from llm_bridge.runs import load_run, method_text, of_network
from llm_bridge.saelens import write_saelens
from simulator import BA, GBA, L1, Exactly, RequestError, TopK, Training, World, fit
from simulator.storage import load_tensors, save_tensors

METHODS = {
    "BA": (BA(0.1, buffer=128), "auto"),
    "GBA": (GBA(0.3, 0.03, 3, buffer=128), "auto"),
    "TopK relu": (TopK(3), "relu"),
    "TopK jumprelu": (TopK(3), "jumprelu"),
    "L1 relu": (L1(0.003), "relu"),
    "L1 jumprelu": (L1(0.003), "jumprelu"),
}


def rows(N=400):
    """Activations with a mean and norms of their own."""
    X = World(16, 8, Exactly(2)).sample(N, 0).X
    return (X * np.linspace(0.5, 3, N)[:, None] + 0.7).astype(np.float32)


def training(name, **changes):
    method, activation = METHODS[name]
    return Training(method, 24, 60, 64, activation, 3e-3, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A report folder on a matrix."""
    place = tmp_path_factory.mktemp("runs")
    np.save(place / "x.npy", rows())
    cell = Cell(None, training("GBA"), 0, place / "x.npy", 100, references=False)
    run_cell(cell, place / "run", picture=False)
    return place / "run"


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_network_computes_what_the_trained_one_does(name, normalise):
    X = rows()
    outcome = fit(X, training(name, normalise=normalise), 0)
    settings = outcome.training
    ours = of_network(
        outcome.W, outcome.a, outcome.b, outcome.b_pre, gate=settings.gate,
        k=getattr(settings.method, "k", None), normalise=normalise,
    )  # fmt: skip
    codes = outcome.encode(X)
    found = ours.encode_inputs(outcome.prepare(X))
    assert codes.nnz > 0
    np.testing.assert_array_equal(found.indptr, codes.indptr)
    np.testing.assert_array_equal(found.indices, codes.indices)
    np.testing.assert_array_equal(found.data, codes.data)
    # (a w) phi and w (a phi) round differently.
    np.testing.assert_allclose(ours.decode_inputs(codes), outcome.decode(codes), atol=2e-6)
    # From raw activations: their unit rows are rounded in another order.
    np.testing.assert_allclose(ours.inputs(X), outcome.prepare(X), atol=1e-6)
    lengths = np.linalg.norm(X, axis=1, keepdims=True) if normalise else 1
    np.testing.assert_allclose(ours.reconstruct(X, found), outcome.decode(codes) * lengths, atol=2e-5)


def test_the_gate_that_scores_are_taken_at_is_the_trained_one(generator):
    """y > 0 exactly where the neuron is active, with thresholds, shifts, and codes in units of the decoder's norms."""
    W, decoder = generator.standard_normal((2, 24, 8)).astype(np.float32)
    b, b_dec = generator.standard_normal(24).astype(np.float32), generator.standard_normal(8).astype(np.float32)
    X = rows(50)
    threshold = generator.uniform(0, 1, 24).astype(np.float32)
    for changes in (
        {}, {"threshold": threshold}, {"subtract_b_dec": False}, {"rank_by_decoder_norm": True},
        {"rank_by_decoder_norm": True, "threshold": threshold},
    ):  # fmt: skip
        autoencoder = Autoencoder(W, decoder, b, b_dec, **changes)
        encoder, shift, centre = gate(autoencoder)
        y = (X - centre).astype(np.float64) @ encoder.T + shift
        active = autoencoder.encode(X).toarray() > 0
        sure = np.abs(y) > 1e-5
        np.testing.assert_array_equal((y > 0)[sure], active[sure])


def test_a_positive_bias_of_a_jumprelu_is_refused():
    with pytest.raises(RequestError, match="biases <= 0"):
        of_network(np.eye(3), np.ones(3), np.full(3, 0.1), np.zeros(3), gate="jumprelu")


def test_a_run_folder_comes_back(trained):
    autoencoder, known = load_run(trained)
    saved, _ = load_tensors(trained / "fit.safetensors")
    np.testing.assert_array_equal(autoencoder.encoder, saved["W"].numpy())
    np.testing.assert_array_equal(autoencoder.threshold, -saved["b"].numpy())
    np.testing.assert_array_equal(autoencoder.decoder, saved["W"].numpy() * saved["a"].numpy()[:, None])
    assert (autoencoder.rows, autoencoder.k, autoencoder.offset) == ("unit", None, None)
    assert known == json.loads((trained / "result.json").read_text())
    assert method_text(known) == "GBA 0.3..0.03 in 3 groups, M = 24"
    X = rows()
    assert measure(autoencoder, X)[0].loss == pytest.approx(known["loss"], abs=0.05)  # of 100 of these rows


def test_method_texts():
    def told(**method):
        return method_text({"config": {"training": {"method": method, "neurons": 64}}})

    assert told(type="BA", p=0.01) == "BA p = 0.01, M = 64"
    assert told(type="TopK", k=32) == "TopK K = 32, M = 64"
    assert told(type="L1", weight=0.003) == "L1 lambda = 0.003, M = 64"
    assert method_text({"saelens": {"architecture": "topk"}}) == "SAELens topk"


def test_a_saelens_folder_and_a_run_in_one_folder(run_folder, tmp_path):
    autoencoder, _ = load_run(run_folder)
    write_saelens(tmp_path / "sae", autoencoder, {})
    again, known = load_run(tmp_path / "sae")
    assert known["saelens"]["architecture"] == "jumprelu"
    np.testing.assert_allclose(again.reconstruct(rows()), autoencoder.reconstruct(rows()), atol=1e-5)
    # A run stays the run that it is when it is exported into its own folder.
    write_saelens(run_folder, autoencoder, {})
    assert "config" in load_run(run_folder)[1]


def test_diverged_runs_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", rows())
    cell = Cell(None, Training(BA(0.1), 8, 20, 32, learning_rate=1e25), 0, tmp_path / "x.npy", 50, references=False)
    assert run_cell(cell, tmp_path / "run", picture=False)["status"] == "diverged"
    with pytest.raises(RequestError, match="diverged; train again with a lower --learning-rate"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "text", ["", "{half", "[]", "3", "{}", '{"config": {}}', '{"config": []}', '{"config": {"training": {}}}',
             '{"config": {"training": {"method": {"type": "GBA"}, "neurons": 4}}}',
             '{"config": {"training": {"method": {"type": "BA", "p": 0.1}, "neurons": 4}, "data": []}}'],
)  # fmt: skip
def test_damaged_results(run_folder, text):
    (run_folder / "result.json").write_text(text)
    with pytest.raises(RequestError, match=r"result\.json is damaged or no result of a run"):
        load_run(run_folder)


def test_damaged_fits(run_folder):
    file = run_folder / "fit.safetensors"
    content = file.read_bytes()
    tensors, header = load_tensors(file)
    without = {name: value for name, value in tensors.items() if name != "a"}
    for changed, told, message in (
        (without, header, "holds no W"),
        (tensors | {"W": tensors["W"].reshape(-1)}, header, "holds no W"),
        (tensors | {"b_pre": tensors["b_pre"][1:]}, header, "holds no W"),
        (tensors | {"offset": tensors["b_pre"][1:]}, header, "holds no W"),
        (tensors, {}, "how it was trained"),
        (tensors, [], "how it was trained"),
        (tensors, {"training": {"activation": "relu"}}, "how it was trained"),
        (tensors | {"W": tensors["W"] * np.nan}, header, "diverged"),
        (tensors | {"b": -tensors["b"] + 1}, header, "positive bias"),
        (tensors, {**header, "training": {**header["training"], "method": {"type": "TopK", "k": 25}}}, "k = 25"),
    ):
        save_tensors(file, changed, told)
        with pytest.raises(RequestError, match=message) as error:
            load_run(run_folder)
        assert "\n" not in str(error.value)
    for damaged in (b"", content[: len(content) // 2], b"\x10" * 100):
        file.write_bytes(damaged)
        with pytest.raises(RequestError, match="truncated, damaged"):
            load_run(run_folder)
    file.unlink()
    with pytest.raises(RequestError, match=r"no finished run \(result.json and fit.safetensors\)"):
        load_run(run_folder)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("offset", [None, np.full(8, 0.7, np.float32)])
def test_every_number_by_a_plain_formula(name, offset):
    """In float64, neuron by neuron. Pairs within rounding of a gate may fall on either side, hence abs."""
    X = rows()
    outcome = fit(X - (0 if offset is None else offset), training(name), 0)
    k, jump = getattr(outcome.training.method, "k", None), outcome.training.gate == "jumprelu"
    found, codes = measure(
        of_network(outcome.W, outcome.a, outcome.b, outcome.b_pre, gate=outcome.training.gate, k=k, offset=offset), X
    )
    centred = X.astype(float) - (0 if offset is None else offset)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    u = centred / length
    z = (u - outcome.b_pre) @ outcome.W.T.astype(float)
    y = z + outcome.b
    pre = y > 0
    active = pre if k is None else pre & (y >= np.sort(y, axis=1)[:, [-k]])
    phi = np.where(active, z if jump else y, 0)
    u_hat = (phi * outcome.a) @ outcome.W.astype(float) + outcome.b_pre
    x_hat = u_hat * length + (0 if offset is None else offset)
    pair = 1 / y.size
    assert found.samples == 400
    assert found.loss == pytest.approx(((u_hat - u) ** 2).sum() / (u**2).sum(), rel=1e-4)
    assert found.explained_variance == pytest.approx(1 - ((u_hat - u) ** 2).sum() / ((u - u.mean(axis=0)) ** 2).sum())
    x = X.astype(float)
    own = 1 - ((x_hat - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert found.explained_variance_model == pytest.approx(own, abs=1e-4)
    assert found.mean_l0 == pytest.approx(active.sum() / 400, abs=1 / 400)
    assert found.fraction == pytest.approx(active.mean(), abs=pair)
    assert found.fraction_pre == pytest.approx(pre.mean(), abs=pair)
    np.testing.assert_allclose(found.frequency, active.mean(axis=0), atol=1 / 400)
    np.testing.assert_allclose(found.scores.pre_frequency, pre.mean(axis=0), atol=1 / 400)
    np.testing.assert_allclose(found.scores.max_activation, np.maximum(y, 0).max(axis=0), atol=1e-5)
    assert found.dead == (active.sum(axis=0) == 0).sum()
    np.testing.assert_allclose(codes.toarray(), phi, atol=1e-5)
    if k is None:
        assert found.fraction_pre == pytest.approx(found.fraction, abs=pair)
    else:
        assert found.fraction_pre > found.fraction
        assert found.mean_l0 <= k
    told, alive = found.summary(), active.any(axis=0)
    assert told["activation_fraction_median"] == pytest.approx(np.median(pre.mean(axis=0)[alive]), abs=1 / 400)
    assert told["dead"] == found.dead


def identity(d, rows="none", **changes):
    """relu(x) - relu(-x) = x."""
    W = np.concatenate([np.eye(d), -np.eye(d)]).astype(np.float32)
    return Autoencoder(W, W, np.zeros(2 * d, np.float32), np.zeros(d, np.float32), rows=rows, **changes)


def nothing(d, **changes):
    zeros = np.zeros((4, d), np.float32)
    return Autoencoder(zeros, zeros, np.zeros(4, np.float32), np.zeros(d, np.float32), **changes)


@pytest.mark.parametrize("rows_as", ["none", "unit", "rms"])
def test_perfect_and_empty_autoencoders(rows_as):
    found, _ = measure(identity(8, rows_as), rows())
    assert found.loss < 1e-12
    assert found.explained_variance == pytest.approx(1)
    assert found.explained_variance_model == pytest.approx(1)
    assert found.mean_l0 == pytest.approx(8)
    assert found.fraction == found.fraction_pre == pytest.approx(0.5)
    found, codes = measure(nothing(8, rows=rows_as), rows())
    assert found.loss == 1
    assert codes.nnz == 0
    assert found.dead == 4
    assert found.explained_variance < 0  # the rows have a mean, and nothing is worse than the mean
    assert found.summary()["z_score_median"] == 0
    # Of centred rows the mean itself is reconstructed: no variance is explained.
    X = rows()
    found, _ = measure(nothing(8, offset=X.mean(axis=0)), X)
    assert found.explained_variance_model == pytest.approx(0, abs=1e-6)


def test_nothing_depends_on_the_blocks(monkeypatch):
    import llm_bridge.measures as module

    autoencoder = identity(8, "unit", k=3)
    whole, _ = measure(autoencoder, rows())
    monkeypatch.setattr(module, "_BLOCK", 8 * 7)
    parts, _ = measure(autoencoder, rows())
    assert parts.loss == pytest.approx(whole.loss)
    assert parts.explained_variance == pytest.approx(whole.explained_variance)
    assert parts.explained_variance_model == pytest.approx(whole.explained_variance_model)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((0, 8)), "0 rows"), (np.ones((1, 8)), "1 rows"), (np.zeros((5, 8)), "all equal"),
        (np.full((7, 8), 0.1), "all equal"), (np.outer(np.arange(1, 50) / 7, np.arange(1, 9)), "all equal"),
        (np.ones((5, 7)), r"needs \(N, 8\)"), (np.full((5, 8), np.nan), "must be finite"),
    ],
)  # fmt: skip
def test_rows_on_which_nothing_can_be_measured(X, message):
    with pytest.raises(RequestError, match=message):
        measure(identity(8, "unit"), X.astype(np.float32))


LAYER = "model.layers.0.mlp"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def contexts(model):
    """Of different lengths, so that batches are padded; two of them too short to predict from position 1 on."""
    draw = np.random.default_rng(0)
    vocabulary = model.unembedding.shape[0]
    return [draw.integers(0, vocabulary, n).astype(np.int32) for n in (12, 7, 20, 3, 2, 9, 1, 20, 5)]


def hidden(model):
    return model.unembedding.shape[1]


def by_hand(model, contexts, replace=None):
    """Mean cross-entropy of the tokens 2, 3, ... of every context by itself; `replace` from position 1 on."""

    def hook(module, inputs, output):
        changed = output.clone()
        changed[:, 1:] = replace(output[:, 1:])
        return changed

    handle = model.model.get_submodule(LAYER).register_forward_hook(hook) if replace is not None else None
    total, tokens = 0.0, 0
    for ids in contexts:
        with torch.no_grad():
            logits = model.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()
        for at in range(1, len(ids) - 1):
            total += float(logits[at].logsumexp(0) - logits[at, int(ids[at + 1])])
            tokens += 1
    if handle is not None:
        handle.remove()
    return total / tokens, tokens


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_cross_entropies_are_those_of_a_model_run_by_hand(model, contexts, batch):
    d = hidden(model)
    mean = np.linspace(-1, 1, d).astype(np.float32)
    half = identity(d)
    half = Autoencoder(half.encoder, half.decoder * np.float32(0.5), half.b_enc, half.b_dec)
    found = loss_recovered(model, LAYER, half, contexts, mean, batch=batch)
    clean, tokens = by_hand(model, contexts)
    assert found.tokens == tokens == sum(max(len(ids) - 2, 0) for ids in contexts)
    assert found.clean == pytest.approx(clean, rel=1e-5)
    assert found.spliced == pytest.approx(by_hand(model, contexts, lambda x: x / 2)[0], rel=1e-5)
    assert found.zero == pytest.approx(by_hand(model, contexts, torch.zeros_like)[0], rel=1e-5)
    fixed = by_hand(model, contexts, lambda x: torch.from_numpy(mean).expand_as(x))[0]
    assert found.mean == pytest.approx(fixed, rel=1e-5)
    assert len({round(value, 4) for value in (found.clean, found.spliced, found.zero, found.mean)}) == 4


def test_a_perfect_autoencoder_recovers_all_and_an_empty_one_nothing(model, contexts):
    d = hidden(model)
    mean = np.full(d, 0.1, np.float32)
    found = loss_recovered(model, LAYER, identity(d), contexts, mean)
    assert found.spliced == pytest.approx(found.clean, abs=1e-5)
    empty = loss_recovered(model, LAYER, nothing(d), contexts, mean)
    assert empty.spliced == empty.zero
    assert empty.clean == found.clean
    centred = loss_recovered(model, LAYER, nothing(d, offset=mean), contexts, mean)
    assert centred.spliced == pytest.approx(centred.mean, abs=1e-6)
    for one, recovered in ((found, 1), (empty, 0)):
        if one.against_zero is not None:
            assert one.against_zero == pytest.approx(recovered, abs=0.01)


def test_loss_recovered_is_a_ratio_or_nothing():
    assert LossRecovered(9, 3.0, 3.5, 5.0, 4.0).against_zero == pytest.approx(0.75)
    assert LossRecovered(9, 3.0, 3.5, 5.0, 4.0).against_mean == pytest.approx(0.5)
    assert LossRecovered(9, 3.0, 5.5, 5.0, 4.0).against_zero == pytest.approx(-0.25)
    harmless = LossRecovered(9, 3.0, 3.5, 3.0005, 2.5)  # ablation does not hurt, or even helps
    assert harmless.against_zero is None
    assert harmless.against_mean is None


def test_hooks_are_gone_afterwards_and_after_errors(model, contexts):
    d = hidden(model)
    before = by_hand(model, contexts)
    layer = model.model.get_submodule(LAYER)
    calls = []
    loss_recovered(
        model,
        LAYER,
        identity(d),
        contexts,
        np.zeros(d),
        batch=4,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 7), (7, 7)]
    wrong = [
        (nothing(d + 1), contexts, np.zeros(d + 1), "this autoencoder needs"),
        (identity(d), contexts, np.zeros(d + 1), "the mean has shape"),
        (identity(d), [ids[:2] for ids in contexts], np.zeros(d), "no context of at least three tokens"),
        (identity(d), [], np.zeros(d), "no context of at least three tokens"),
    ]
    for autoencoder, some, mean, message in wrong:
        with pytest.raises(RequestError, match=message):
            loss_recovered(model, LAYER, autoencoder, some, mean)
    with pytest.raises(RequestError, match="no module"):
        loss_recovered(model, "model.layers.7.mlp", identity(d), contexts, np.zeros(d))
    with pytest.raises(RequestError, match="batch = 0"):
        loss_recovered(model, LAYER, identity(d), contexts, np.zeros(d), batch=0)
    assert not layer._forward_hooks
    assert by_hand(model, contexts) == before
