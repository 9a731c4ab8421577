"""Runs judged together: what forms a column, MCS, controls, stores and models that are another one or gone, figures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_bridge import COLUMN, GBA, LAYER, done, quiet_main, refused, snapshot
from tiny_language import tiny_model, tiny_text

import llm_bridge.evaluate as module
from figures.experiments import labelled_cells
from figures.presets import load_figure
from llm_bridge.autoencoder import Autoencoder
from llm_bridge.evaluate import Run, estimate, evaluate
from llm_bridge.measures import measure
from llm_bridge.runs import load_run
from llm_bridge.sources import StoredActivations, StoredSource
from llm_bridge.store import Store
from simulator.storage import load_tensors, save_tensors
from theory.consistency import chance_median

CONTROLS = ("random-model", "shuffled-tokens")
WIDE = "model.layers.0.mlp.gate_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a text, three stores with two layers, and runs of two seeds on each and on both layers."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_model(folder / "model")
    tiny_text(folder / "text", scale=2)
    for control in ("none", *CONTROLS):
        capture(folder, folder / control, "--tokens", 4_000, "--control", control, "--layer", LAYER, WIDE)
        for seed in (0, 1):
            train(folder / control, folder / f"{control}-{seed}", "--seed", seed)
    train(folder / "none", folder / "wide", layer=WIDE)
    return folder


def capture(place, out, *more):
    quiet_main(
        "capture", "--model", place / "model", "--text", place / "text", "--context", 32, "--dtype", "fp32", "--out",
        out, "--quiet", *more,
    )  # fmt: skip


def train(store, out, *more, layer=LAYER):
    quiet_main("train", store, "--layer", layer, *GBA, "--out", out, *more)


@pytest.fixture
def moved(place, tmp_path):
    """A copy that a test may rearrange, made by the same commands."""
    for name in ("model", "text"):
        shutil.copytree(place / name, tmp_path / name)
    capture(tmp_path, tmp_path / "store", "--tokens", 2_500, "--layer", LAYER)
    train(tmp_path / "store", tmp_path / "run")
    return tmp_path


def test_columns_are_seeds_apart_from_their_controls(place):
    lines = []
    names = [f"{control}-{seed}" for seed in (0, 1) for control in ("none", *CONTROLS)]
    columns = evaluate([place / name for name in names], samples=200, tell=lines.append)
    label = "GBA 0.1..0.001 in 3 groups, M = 24"
    assert [column.label for column in columns] == [label, *(f"{label}, {control}" for control in CONTROLS)]
    assert [column.control for column in columns] == [None, *CONTROLS]
    assert [[run.folder.name for run in column.runs] for column in columns] == [
        [f"{control}-0", f"{control}-1"] for control in ("none", *CONTROLS)
    ]
    assert len(lines) == 9  # six runs, and the model on three stores
    for column in columns:
        first, second = (run.autoencoder.encoder for run in column.runs)
        units = [W.astype(float) / np.linalg.norm(W, axis=1, keepdims=True) for W in (first, second)]
        cosines = units[0] @ units[1].T
        np.testing.assert_allclose(column.runs[0].mcs, cosines.max(axis=1), atol=1e-5)
        np.testing.assert_allclose(column.runs[1].mcs, cosines.max(axis=0), atol=1e-5)
        told = column.summary()
        assert told["seeds"] == 2
        assert told["loss"] == pytest.approx(np.mean([run.measures.loss for run in column.runs]))
        alive = [run.measures.frequency > 0 for run in column.runs]
        medians = [np.median(run.mcs[some]) for run, some in zip(column.runs, alive, strict=True)]
        assert told["mcs_median"] == pytest.approx(np.mean(medians))
        assert told["mcs_chance_median"] == chance_median(24, 16)
        assert 0 < told["mcs_chance_median"] < 1
        assert column.recovered is not None
    # Another model, another text: other cross-entropies.
    assert len({round(column.recovered.clean, 3) for column in columns}) == 3
    shapes = [run.measures.samples for column in columns for run in column.runs]
    assert shapes == [200] * 6


def test_the_rows_are_held_out(place):
    (column,) = evaluate([place / "none-0"], samples=10**6, contexts=0)
    source = StoredSource(Store(place / "none", LAYER), 0, centre=False)
    assert column.runs[0].measures.samples == len(source.held_out) * source.page
    assert column.recovered is None
    expected, _ = measure(load_run(place / "none-0")[0], source.evaluation(10**6, 0))
    assert column.runs[0].measures.loss == pytest.approx(expected.loss)


def test_neurons_and_tables(capsys, place, tmp_path):
    runs = [place / "none-0", place / "none-1", place / "random-model-0"]
    result = done(capsys, "evaluate", *runs, "--samples", 200, "--out", tmp_path / "e", "--json")
    two, one = result["columns"]
    assert set(two) == set(one) == COLUMN
    assert (two["seeds"], one["seeds"], one["mcs_median"]) == (2, 1, None)
    assert one["control"] == "random-model"
    neurons = pd.read_csv(tmp_path / "e" / "neurons.csv")
    assert list(neurons["neuron"]) == list(range(24))
    assert neurons["mcs"].between(-1, 1).all()
    alive = neurons["frequency"] > 0
    both = evaluate(runs[:2], samples=200, contexts=0)[0].runs
    np.testing.assert_allclose(neurons["mcs"], both[0].mcs, rtol=1e-5)
    assert int((~alive).sum()) == both[0].measures.dead
    # A later evaluation replaces it, and nothing of the earlier one stays.
    done(capsys, "evaluate", runs[2], "--samples", 200, "--contexts", 0, "--out", tmp_path / "e")
    assert "mcs" not in pd.read_csv(tmp_path / "e" / "neurons.csv")
    told = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert (tmp_path / "e" / "proxies.csv").exists() == bool(told["proxies"])


def test_equal_methods_on_other_data_have_their_own_columns(capsys, place):
    """Two layers of one store, and one of them at another learning rate: three labels."""
    train(place / "none", place / "fast", "--learning-rate", 0.01)
    result = done(
        capsys, "evaluate", place / "none-0", place / "wide", place / "fast", "--contexts", 0, "--out", place / "e",
        "--json",
    )  # fmt: skip
    labels = [column["label"] for column in result["columns"]]
    assert len(set(labels)) == 3
    assert WIDE in labels[1]
    assert "none-0" in labels[0]
    assert "fast" in labels[2]
    table = pd.read_csv(place / "e" / "metrics.csv").set_index("metric")
    for column in result["columns"]:
        assert table.loc["normalised loss", column["label"]] == pytest.approx(column["loss"], rel=1e-4)


def test_a_store_of_another_width(capsys, place):
    told = refused(capsys, "evaluate", place / "none-0", "--store", place / "none", "--layer", WIDE)
    assert "works on d = 16" in told
    assert "holds d = 32" in told
    assert "works on d = 16" in refused(capsys, "dashboard", place / "none-0", "--layer", WIDE)
    # What is wrong with the last run is said before the first is measured.
    assert "holds no finished run" in refused(capsys, "evaluate", place / "none-0", place / "model")


def test_a_store_that_has_moved_or_grown(capsys, moved):
    (moved / "store").rename(moved / "elsewhere")
    for command in ("evaluate", "dashboard"):
        told = refused(capsys, command, moved / "run")
        assert "is not at" in told
        assert "name it with --store" in told
    result = done(capsys, "evaluate", moved / "run", "--store", moved / "elsewhere", "--json")
    assert result["columns"][0]["notes"] == []
    # An export needs no store; it says less then.
    done(capsys, "export", moved / "run", "--out", moved / "sae")
    assert "hook_name" not in json.loads((moved / "sae" / "cfg.json").read_text())["metadata"]
    (moved / "elsewhere").rename(moved / "store")
    capture(moved, moved / "store", "--tokens", 4_000, "--layer", LAYER)
    result = done(capsys, "evaluate", moved / "run", "--json")
    (note,) = result["columns"][0]["notes"]
    assert "trained on other contents" in note
    assert "may not be held out" in note
    assert note in done(capsys, "evaluate", moved / "run")


def test_a_model_that_is_gone_or_another_one(capsys, moved):
    here = done(capsys, "evaluate", moved / "run", "--json")["columns"][0]
    assert here["ce_clean"] > 0
    (moved / "model").rename(moved / "renamed")
    gone = done(capsys, "evaluate", moved / "run", "--json")["columns"][0]
    assert set(gone) == COLUMN
    assert gone["ce_clean"] is gone["loss_recovered_zero"] is None
    assert "no loss recovered" in gone["notes"][0]
    assert {name: gone[name] for name in ("loss", "mean_l0")} == {name: here[name] for name in ("loss", "mean_l0")}
    assert "no folder with a model" in refused(capsys, "dashboard", moved / "run")
    back = done(capsys, "evaluate", moved / "run", "--model", moved / "renamed", "--json")["columns"][0]
    assert back == here
    done(capsys, "dashboard", moved / "run", "--model", moved / "renamed")
    shutil.copytree(moved / "renamed", moved / "other")
    config = moved / "other" / "config.json"
    config.write_text(config.read_text().replace("0.3", "0.4"))
    for command in ("evaluate", "dashboard"):
        told = refused(capsys, command, moved / "run", "--model", moved / "other")
        assert "is not the model that" in told
    nowhere = refused(capsys, "evaluate", moved / "run", "--model", moved / "nowhere")
    assert "no folder with a model" in nowhere


def test_saelens_folders(capsys, place, tmp_path):
    for seed in (0, 1):
        done(capsys, "export", place / f"none-{seed}", "--out", tmp_path / f"sae-{seed}")
    before = snapshot(tmp_path)
    assert "name one with --store" in refused(capsys, "evaluate", tmp_path / "sae-0")
    assert "exists; nothing is overwritten" in refused(
        capsys, "export", place / "none-1", "--out", tmp_path / "sae-0"
    )  # fmt: skip
    assert snapshot(tmp_path) == before
    command = [
        "evaluate", tmp_path / "sae-0", tmp_path / "sae-1", place / "none-0", place / "none-1", "--store",
        place / "none", "--layer", LAYER, "--out", tmp_path / "e", "--json",
    ]  # fmt: skip
    theirs, ours = done(capsys, *command)["columns"]
    assert theirs["label"] == "SAELens jumprelu"
    for name in ("seeds", "loss", "mean_l0", "ce_spliced", "mcs_median", "dead"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name


def test_dead_neurons_are_no_reason_to_stumble(capsys, place, tmp_path):
    for seed in (0, 1):
        shutil.copytree(place / f"none-{seed}", tmp_path / f"{seed}")
        file = tmp_path / f"{seed}" / "fit.safetensors"
        tensors, header = load_tensors(file)
        save_tensors(file, tensors | {"b": tensors["b"] * 0 - 2}, header)
    result = done(capsys, "evaluate", tmp_path / "0", tmp_path / "1", "--samples", 100, "--json")
    (column,) = result["columns"]
    assert (column["dead"], column["mean_l0"], column["mcs_median"]) == (24, 0, None)
    assert "0 of 24 neurons fire" in column["proxies"]
    assert result["proxies"] == []
    code_line = refused_after_lines(capsys, "dashboard", tmp_path / "0")
    assert "no neuron" in code_line


def refused_after_lines(capsys, *arguments):
    """The last line of a command that fails after it has begun to measure."""
    from test_cli import run

    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    return err.splitlines()[-1]


def test_proxies_get_projections_whatever_the_activation_function(monkeypatch, generator):
    """Codes with thresholds, shifts or decoder norms in them become (u - b_dec) w / |w| where the neuron is active."""
    W, decoder = generator.standard_normal((2, 24, 8)).astype(np.float32)
    b, b_dec = (generator.standard_normal(n).astype(np.float32) for n in (24, 8))
    X, threshold = generator.standard_normal((60, 8)).astype(np.float32), np.full(24, 0.4, np.float32)
    seen = []
    monkeypatch.setattr(module, "proxies", lambda W, codes, mcs, **more: seen.append((W, codes)))
    for changes in (
        {}, {"threshold": threshold}, {"k": 3}, {"k": 3, "rank_by_decoder_norm": True}, {"subtract_b_dec": False},
    ):  # fmt: skip
        autoencoder = Autoencoder(W, decoder, b, b_dec, **changes)
        measured, codes = measure(autoencoder, X)
        estimate(Run(Path("r"), autoencoder, {}, Path("s"), None, measured, codes), X)
        directions, found = seen.pop()
        units = W.astype(float) / np.linalg.norm(W, axis=1, keepdims=True)
        np.testing.assert_allclose(directions / np.linalg.norm(directions, axis=1, keepdims=True), units, atol=1e-5)
        centre = b_dec if autoencoder.subtract_b_dec else 0
        expected = np.where(codes.toarray() > 0, np.maximum((X - centre) @ units.T, 0), 0)
        np.testing.assert_allclose(found.toarray(), expected, atol=1e-5)


@pytest.mark.parametrize("figure", ["loss-sparsity", "consistency", "zscore"])
def test_figures_on_a_store(capsys, place, tmp_path_factory, figure):
    out = tmp_path_factory.getbasetemp() / "figures-on-a-store"  # the figures share their cells
    command = [
        "run", figure, "--size", "tiny", "--activations", place / "none", "--layer", LAYER, "--out", out, "--json",
    ]  # fmt: skip
    more = ["--jobs", 1, "--seeds", *((0,) if figure == "loss-sparsity" else (0, 1))]
    result = done(capsys, *command, *more)
    assert result["figure"] == figure
    folder = out / "figures" / f"{figure}-tiny-none-{LAYER}"
    assert (folder / f"{figure}.png").stat().st_size > 5_000
    if figure == "loss-sparsity":
        assert all(0 < row["loss"] < 2 for row in result["rows"])
        cells = list((out / "cells").glob("*/result.json"))
        assert all(json.loads(cell.read_text())["config"]["data"]["layer"] == LAYER for cell in cells)
        assert done(capsys, *command, *more)["rows"] == result["rows"]
        assert done(capsys, "plot", *command[1:])["complete"]
    # A store of the same name elsewhere does not replace the table.
    before = snapshot(folder)
    twin = shutil.copytree(place / "shuffled-tokens", tmp_path_factory.mktemp("twin") / "none")
    other = [twin if one == place / "none" else one for one in command]
    assert "result of another command" in refused(capsys, *other, *more)
    assert snapshot(folder) == before


@pytest.mark.parametrize("figure", ["loss-sparsity", "consistency", "zscore", "group-ablation"])
def test_figures_have_trainings_for_real_activations(place, figure):
    data = StoredActivations(place / "none", LAYER)
    rows = labelled_cells(load_figure(figure), "tiny", (0, 1), data)
    assert {cell.seed for _, cell, _ in rows} == {0, 1}
    for _, cell, config in rows:
        assert cell.world is None
        assert not cell.references
        assert config["data"]["type"] == "StoredActivations"
        assert config["data"]["seed"] == cell.seed
        assert config == cell.config()


def test_verify_on_a_store(capsys, place, tmp_path):
    assert "choose with --layer" in refused(capsys, "verify", "--activations", place / "none", "--out", tmp_path / "v")
    command = ["verify", "--activations", place / "none", "--layer", LAYER, *GBA, "--no-references", "--json"]
    result = done(capsys, *command, "--out", tmp_path / "v")
    assert result["origin"] == {"store": str((place / "none").resolve()), "layer": LAYER}
    trained = done(
        capsys, "train", place / "none", "--layer", LAYER, *GBA, "--learning-rate", 1e-3, "--decay", 0, "--start-bias",
        "zero", "--out", tmp_path / "t", "--json",
    )  # fmt: skip
    assert trained["loss"] == result["loss"]
    assert len(evaluate([tmp_path / "v", tmp_path / "t"], samples=100, contexts=0)) == 1
    assert "--layer belongs to a store" in refused(capsys, "verify", "--layer", LAYER, *GBA, "--out", tmp_path / "w")
