"""The commands on language models as scripts use them: capture, train, evaluate, dashboard, export; bad requests."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import FIXED, run
from tiny_language import tiny_model, tiny_text

from llm_bridge.runs import load_run
from llm_bridge.sources import StoredSource
from llm_bridge.store import Store
from simulator.storage import load_tensors

LAYER, OTHER = "model.layers.0.mlp", "model.layers.1.mlp"
BASE = ["--neurons", 24, "--steps", 40, "--batch", 64, "--samples", 300, "--buffer", 128, "--quiet"]
GBA = [*BASE, "--groups", 3]
PLAIN = [*BASE[:-3], "--quiet"]  # a buffer belongs to ba and gba
METHODS = {
    "gba": GBA, "ba": [*BASE, "--method", "ba", "--p", 0.1], "topk": [*PLAIN, "--method", "topk", "--k", 3],
    "l1": [*PLAIN, "--method", "l1", "--l1", 0.01],
}  # fmt: skip
COLUMN = {
    "label", "control", "runs", "samples", "loss", "explained_variance", "explained_variance_model", "mean_l0",
    "fraction", "fraction_pre", "dead", "activation_fraction_median", "max_activation_median", "z_score_median",
    "mcs_median", "mcs_top_share", "mcs_chance_median", "seeds", "ce_clean", "ce_spliced", "ce_zero", "ce_mean",
    "loss_recovered_zero", "loss_recovered_mean", "proxies", "notes",
}  # fmt: skip


def done(capsys, *arguments):
    """Standard output of a command that must succeed; with --json the object."""
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "Warning" not in err
    if "--json" not in arguments:
        return out
    assert out.count("\n") == 1
    return json.loads(out)


def refused(capsys, *arguments):
    """The one line of a command that must fail."""
    code, out, err = run(capsys, *arguments)
    assert code == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("sae-recovery: ")
    return err


def snapshot(folder):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a text, a store with one layer, one with two, and a run of each method on the first."""
    folder = tmp_path_factory.mktemp("bridge")
    tiny_model(folder / "model")
    tiny_text(folder / "text", scale=3)
    for name, layers in (("store", [LAYER]), ("both", [LAYER, OTHER])):
        quiet_main(
            "capture", "--model", folder / "model", "--text", folder / "text", "--tokens", 6_000, "--context", 32,
            "--layer", *layers, "--out", folder / name, "--dtype", "fp32", "--quiet",
        )  # fmt: skip
    for name, options in METHODS.items():
        quiet_main("train", folder / "store", *options, "--out", folder / name)
    return folder


def quiet_main(*arguments):
    from figures.cli import main

    with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()) as out:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0, out.getvalue()


def test_capture(capsys, place, tmp_path):
    command = [
        "capture", "--model", place / "model", "--layer", LAYER, OTHER, "--text", place / "text", "--context", 32,
        "--out", tmp_path / "s", "--dtype", "fp32", "--json", "--threads", 1,
    ]  # fmt: skip
    first = done(capsys, *command, "--tokens", 1_000)
    assert set(first) == {"store", "rows", "new", "tokens_per_second", "exhausted", "layers"}
    assert first["rows"] == first["new"] >= 1_000
    assert first["layers"] == {LAYER: 16, OTHER: 16}
    before = snapshot(tmp_path)
    again = done(capsys, *command, "--tokens", 1_000)
    assert (again["rows"], again["new"], again["tokens_per_second"]) == (first["rows"], 0, None)
    assert snapshot(tmp_path) == before
    more = done(capsys, *command, "--tokens", 10**6)  # more than the text has
    assert more["exhausted"]
    assert more["new"] == more["rows"] - first["rows"] > 0
    told = done(capsys, *command[:-3], "--tokens", 10**6)
    assert "nothing was missing" in told
    assert "The text ended before the 1,000,000" in told
    store = Store(tmp_path / "s", LAYER)
    np.testing.assert_array_equal(store.read(0, 500), Store(place / "both", LAYER).read(0, 500))


@pytest.mark.parametrize("method", METHODS)
def test_train(capsys, place, tmp_path, method):
    command = ["train", place / "store", *METHODS[method], "--out", tmp_path / "r", "--json"]
    result = done(capsys, *command)
    assert set(result) >= FIXED
    assert result == done(capsys, "train", place / "store", *METHODS[method], "--out", place / method, "--json") | {
        "seconds": result["seconds"]
    }
    assert result["origin"] == {"store": str((place / "store").resolve()), "layer": None}
    assert 0 < result["loss"] < 1.5
    tensors, _ = load_tensors(tmp_path / "r" / "fit.safetensors")
    np.testing.assert_array_equal(tensors["offset"].numpy(), Store(place / "store").mean)
    # What is printed is what the folder's autoencoder does on the held-out rows.
    autoencoder, _ = load_run(tmp_path / "r")
    X = StoredSource(Store(place / "store"), 0, centre=False).evaluation(300, 0)
    U = autoencoder.inputs(X)
    missed = autoencoder.decode_inputs(autoencoder.encode(X)) - U
    assert result["loss"] == pytest.approx(float((missed**2).sum() / (U**2).sum()), rel=1e-3)
    # A finished folder is printed again, and one of another command left alone.
    before = snapshot(tmp_path)
    assert done(capsys, *command) == result
    assert "another command (data.seed: 0 there, 1 here)" in refused(capsys, *command, "--seed", 1)
    assert snapshot(tmp_path) == before


def test_train_straight_from_a_model(capsys, place, tmp_path):
    command = [
        "train", "--model", place / "model", "--layer", LAYER, "--text", place / "text", "--tokens", 2_000,
        "--context", 32, "--model-dtype", "fp32", *GBA, "--out", tmp_path / "live",
    ]  # fmt: skip
    text = done(capsys, *command)
    assert "GBA, trained" in text
    before = snapshot(tmp_path)
    result = done(capsys, *command, "--json")
    assert set(result) >= FIXED
    assert result["origin"]["layer"] == LAYER
    assert snapshot(tmp_path) == before
    assert "name one with --store" in refused(capsys, "evaluate", tmp_path / "live")
    judged = done(capsys, "evaluate", tmp_path / "live", "--store", place / "both", "--layer", LAYER, "--json")
    assert judged["columns"][0]["loss"] == pytest.approx(result["loss"], abs=0.2)


def test_widths_and_scales_of_the_model_itself(capsys, place, tmp_path):
    """Neither centred nor scaled."""
    command = ["train", place / "store", *GBA, "--no-centre", "--no-normalise", "--out", tmp_path / "raw", "--json"]
    result = done(capsys, *command)
    autoencoder, _ = load_run(tmp_path / "raw")
    assert autoencoder.rows == "none"
    assert not autoencoder.offset.any()
    judged = done(capsys, "evaluate", tmp_path / "raw", "--samples", 300, "--json")["columns"][0]
    assert judged["loss"] == pytest.approx(result["loss"], rel=1e-3)
    assert judged["explained_variance"] == pytest.approx(judged["explained_variance_model"], rel=1e-4)
    told = done(capsys, "export", tmp_path / "raw", "--out", tmp_path / "sae")
    assert "mean taken off" not in told
    assert not (tmp_path / "sae" / "sae_recovery_input.safetensors").exists()


@pytest.mark.parametrize("live", [False, True])
def test_killed_and_started_again_gives_the_same_arrays(capsys, place, tmp_path, live):
    where = [place / "store"] if not live else [
        "--model", place / "model", "--layer", LAYER, "--text", place / "text", "--tokens", 1_500, "--context", 32,
        "--model-dtype", "fp32",
    ]  # fmt: skip
    steps = 500 if live else 2_500
    command = ["train", *where, *GBA, "--steps", steps, "--threads", 1, "--checkpoint-seconds", 0.1, "--device", "cpu"]
    code = "import torch; torch.set_num_threads(1); from figures.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--out", str(tmp_path / "killed")],
        cwd=Path(__file__).parent.parent,
    )
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_tensors(checkpoint)[1]["run"]["t"] < steps
    assert "no finished run" in refused(capsys, "evaluate", tmp_path / "killed")
    killed = done(capsys, *command, "--out", tmp_path / "killed", "--json")
    whole = done(capsys, *command, "--out", tmp_path / "whole", "--json")
    for name in ("fit.safetensors", "neurons.csv", "history.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert killed | {"seconds": 0} == whole | {"seconds": 0}
    assert not checkpoint.exists()


def test_evaluate_dashboard_export(capsys, place, tmp_path):
    runs = [place / name for name in METHODS]
    before = snapshot(place)
    text = done(capsys, "evaluate", *runs, "--out", tmp_path / "e")
    for word in ("normalised loss", "cross-entropy, nats per token", "TopK K = 3, M = 24", "MCS of random directions"):
        assert word in text
    result = done(capsys, "evaluate", *runs, "--out", tmp_path / "e", "--json")
    assert set(result) == {"columns", "proxies"}
    assert all(set(column) == COLUMN for column in result["columns"])
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == result
    assert [column["runs"] for column in result["columns"]] == [[str(folder)] for folder in runs]
    table = pd.read_csv(tmp_path / "e" / "metrics.csv")
    assert list(table.columns)[1:] == [column["label"] for column in result["columns"]]
    page = done(capsys, "dashboard", place / "topk", "--neurons", 5, "--out", tmp_path / "page.html", "--json")
    assert set(page) == {"page", "neurons", "bytes"}
    assert page["neurons"] == 5
    html = (tmp_path / "page.html").read_text()
    assert page["bytes"] == len(html.encode())
    content = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert content["title"] == f"TopK K = 3, M = 24 on {LAYER}"
    assert len(content["neurons"]) == 5
    assert content["effects"] is not None
    done(capsys, "dashboard", place / "topk", "--neurons", 6, "--out", tmp_path / "page.html")  # ours is replaced
    told = done(capsys, "export", place / "topk", "--out", tmp_path / "sae", "--json")
    assert told == {"folder": str(tmp_path / "sae")}
    assert "mean taken off" in done(capsys, "export", place / "gba", "--out", tmp_path / "sae2")
    metadata = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"], metadata["context_size"]) == ("model", LAYER, 32)
    page = done(capsys, "dashboard", tmp_path / "sae", "--store", place / "store", "--json")
    assert page["page"] == str(tmp_path / "sae" / "dashboard.html")
    assert snapshot(place) == before


def bad(place, tmp_path):
    """Name -> command and what its line says."""
    store, model, text, gba = place / "store", place / "model", place / "text", place / "gba"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("my notes")
    X = np.random.default_rng(0).standard_normal((300, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    capture = ["capture", "--model", model, "--layer", LAYER, "--text", text, "--out", tmp_path / "s"]
    train = ["train", store, *GBA, "--out", tmp_path / "r"]
    live = ["train", "--model", model, "--layer", LAYER, "--text", text, *GBA, "--out", tmp_path / "r"]
    evaluate, dashboard = ["evaluate", gba, "--out", tmp_path / "e"], ["dashboard", gba, "--out", tmp_path / "d.html"]
    return {
        "no tokens": ([*capture, "--tokens", 0], "tokens = 0"),
        "no threads": ([*capture, "--tokens", 100, "--threads", 0], "threads = 0"),
        "no such layer": ([*capture[:3], "--layer", "model.layers.9.mlp", *capture[5:], "--tokens", 9], "near names"),
        "no such model": (["capture", "--model", tmp_path / "m", *capture[3:], "--tokens", 9], "no folder with a"),
        "no such text": ([*capture[:5], "--text", "nowhere.txt", *capture[7:], "--tokens", 9], "no file and no folder"),
        "a context of one": ([*capture, "--tokens", 9, "--context", 1], "context = 1"),
        "unknown control": ([*capture, "--tokens", 9, "--control", "noise"], "noise"),
        "another capture": ([*capture[:-1], store, "--tokens", 9], "holds another capture"),
        "k with gba": ([*train, "--k", 4], "--k belongs to --method topk"),
        "htf with topk": (["train", store, *METHODS["topk"], "--htf", 0.2], "--htf belongs to --method gba"),
        "text without a model": ([*train, "--text", text], "--text belongs to --model"),
        "tokens without a model": ([*train, "--tokens", 9], "--tokens belongs to --model"),
        "model dtype without a model": ([*train, "--model-dtype", "fp32"], "--model-dtype belongs to --model"),
        "store and model": ([*live, "--", store], "one of the two"),
        "neither": (["train", *GBA], "one of the two"),
        "model without text": (["train", "--model", model, "--layer", LAYER, *GBA], "--model needs --layer and --text"),
        "model without layer": (["train", "--model", model, "--text", text, *GBA], "--model needs --layer and --text"),
        "live, no such layer": ([*live, "--layer", "model.nothing"], "no module 'model.nothing'"),
        "live, no tokens": ([*live, "--tokens", 0], "tokens = 0"),
        "no such store": (["train", tmp_path / "no", *GBA], "is no folder with activations"),
        "a folder without a store": (["train", tmp_path / "empty", *GBA], "no activation store"),
        "a store of two layers": (["train", place / "both", *GBA], "choose with --layer"),
        "a layer it has not": ([*train, "--layer", OTHER], "has no layer"),
        "few samples": ([*train, "--samples", 1], "samples = 1"),
        "no seed": ([*train, "--seed", -1], "seed = -1"),
        "k above the width": (["train", store, *METHODS["topk"], "--k", 25], "k = 25"),
        "a run's folder for another": ([*train[:-1], gba, "--seed", 5], "another command"),
        "no run": (["evaluate"], "no run"),
        "not a run": (["evaluate", store], "holds no finished run"),
        "no folder": (["evaluate", tmp_path / "no"], "holds no finished run"),
        "twice": (["evaluate", place / "model" / ".." / "gba", *evaluate[1:]], "named twice"),
        "evaluated on no rows": ([*evaluate, "--samples", 0], "samples = 0"),
        "contexts below 0": ([*evaluate, "--contexts", -1], "contexts = -1"),
        "negative seed": ([*evaluate, "--seed", -1], "seed"),
        "a model that is not run": ([*evaluate, "--model", model, "--contexts", 0], "--contexts above 0"),
        "no such store to judge on": ([*evaluate, "--store", tmp_path / "no"], "no activation store"),
        "evaluation into a run": (["evaluate", place / "topk", "--out", gba], "is not of an evaluation"),
        "dashboard of nothing": (["dashboard", tmp_path / "empty"], "holds no finished run"),
        "no neurons": ([*dashboard, "--neurons", 0], "at least 1"),
        "one row": ([*dashboard, "--rows", 1], "at least 2"),
        "a file of somebody": ([*dashboard[:-1], tmp_path / "notes.html"], "is no dashboard"),
        "dashboard over a result": ([*dashboard[:-1], gba / "result.json"], "is no dashboard"),
        "dashboard into a folder": ([*dashboard[:-1], tmp_path], "is no dashboard"),
        "dashboard with no model": ([*dashboard, "--model", tmp_path / "m"], "no folder with a model"),
        "export of nothing": (["export", tmp_path / "empty", "--out", tmp_path / "x"], "holds no finished run"),
        "a layer without a store": (
            ["run", "loss-sparsity", "--size", "tiny", "--activations", tmp_path / "x.npy", "--layer", LAYER],
            "--layer belongs to a store",
        ),
        "planted features": (["run", "selectivity", "--size", "tiny", "--activations", store], "planted features"),
        "no layer chosen": (["run", "zscore", "--size", "tiny", "--activations", place / "both"], "choose with --lay"),
        "explain without features": (["verify", "--activations", store, "--explain", 1], "--explain needs planted"),
    }  # fmt: skip


def test_bad_requests_end_with_one_line_and_two(capsys, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = bad(place, tmp_path)
    before = snapshot(place), snapshot(tmp_path)
    for name, (arguments, message) in commands.items():
        assert message in refused(capsys, *arguments), name
        left = snapshot(tmp_path)
        kept = {file: content for file, content in left.items() if file.name != ".lock"}
        assert (snapshot(place), kept) == before, name
