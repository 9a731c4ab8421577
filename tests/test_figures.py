"""The figures and their runner: everything at size tiny through the command line, once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures import experiments
from figures.cli import main
from figures.experiments import Workers, finished_cells, labelled_cells, run_experiment
from figures.presets import FIGURES, PRESETS, load_figure, load_preset
from simulator import RequestError

PNG_LIMIT = 200_000


def call(capsys, *arguments):
    """Exit code, standard output, standard error of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every figure at size tiny."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "--size", "tiny", "--out", str(folder), "--quiet"])
    assert stop.value.code == 0
    return folder


def test_the_report(store):
    page = (store / "reproduction-tiny" / "README.md").read_text()
    claims = json.loads((store / "reproduction-tiny" / "claims.json").read_text())["claims"]
    for name in FIGURES:
        assert f"## {name}: " in page
        picture = (store / "reproduction-tiny" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        folder = store / "figures" / f"{name}-tiny"
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(folder / "table.csv"))
        assert any(claim["figure"] == name for claim in claims)
    assert {claim["verdict"] for claim in claims} <= {"agrees", "does not agree", "open"}
    for claim in claims:
        both = claim["ours"] is not None and claim["paper"] is not None
        assert claim["statement"] in page
        assert claim["remark"] in page
        assert both or claim["statement"]
    assert "/" not in page.split("Command:")[1].split("`")[1]  # no path of this machine


def test_running_again_computes_nothing(store, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(experiments, "_compute", refuse)
    code, out, _ = call(capsys, "run", "loss-sparsity", "--size", "tiny", "--out", store, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["figure"] == "loss-sparsity"
    assert {row["count"] for row in result["rows"]} == {"TopK (post)", "TopK (pre)", "L1", "BA", "GBA"}


def test_figures_share_cells(store):
    own = {
        name: {one.folder for one in finished_cells(labelled_cells(load_figure(name), "tiny"), store) if one}
        for name in ("loss-sparsity", "consistency", "zscore")
    }
    assert own["zscore"] < own["consistency"]
    assert len(own["consistency"] & own["loss-sparsity"]) >= 4


def test_status(store, capsys, tmp_path):
    code, out, _ = call(capsys, "status", "--out", store, "--json")
    assert code == 0
    rows = json.loads(out)["figures"]
    assert len(rows) == 3 * len(FIGURES)
    for row in rows:
        assert row["cells done"] == (row["of"] if row["size"] == "tiny" else 0)
        assert row["picture"] == ("drawn" if row["size"] == "tiny" else "-")
    small = {row["figure"]: row["of"] for row in rows if row["size"] == "small"}
    assert small["selectivity"] >= 60
    assert {row["figure"]: row["of"] for row in rows if row["size"] == "paper"}["selectivity"] == 81
    code, out, _ = call(capsys, "status", "--out", tmp_path / "nothing")
    assert code == 0
    assert "selectivity" in out


def test_plot_draws_the_same_picture_from_the_table(store, capsys):
    """From the table alone; six digits in the CSV may move a pixel, so the sizes are compared, not the bytes."""
    for name in FIGURES:
        picture = store / "figures" / f"{name}-tiny" / f"{name}.png"
        before = picture.read_bytes()
        picture.unlink()
        code, out, err = call(capsys, "plot", name, "--size", "tiny", "--out", store)
        assert code == 0, err
        assert name in out
        assert abs(len(picture.read_bytes()) / len(before) - 1) < 0.05


def test_plot_of_a_run_that_is_not_finished(store, capsys, tmp_path):
    """From the cells that are there; the finished table stays what it is."""
    experiment = load_figure("width")
    done = finished_cells(labelled_cells(experiment, "tiny"), store)
    (tmp_path / "cells").mkdir()
    for one in done[:3]:
        os.symlink(one.folder, tmp_path / "cells" / one.folder.name)
    code, out, _ = call(capsys, "plot", "width", "--size", "tiny", "--out", tmp_path)
    assert code == 0
    assert f"3 of {len(done)} cells" in out
    assert (tmp_path / "figures" / "width-tiny" / "width-partial.png").exists()
    assert not (tmp_path / "figures" / "width-tiny" / "table.csv").exists()
    code, _, err = call(capsys, "plot", "dynamics", "--size", "tiny", "--out", tmp_path)
    assert code == 2
    assert "run dynamics" in err


@pytest.mark.parametrize("damage", ["result", "table", "arrays", "gone", "foreign"])
def test_a_damaged_cell_is_computed_again(store, tmp_path, damage):
    import shutil

    experiment = load_figure("dynamics")
    run_experiment(experiment, tmp_path / "figure", seeds=(0,), size="tiny", store=tmp_path, jobs=1)
    (cell,) = finished_cells(labelled_cells(experiment, "tiny", (0,)), tmp_path, experiment.needs)
    before = (cell.folder / "features.csv").read_bytes()
    file = cell.folder / {"table": "features.csv", "arrays": "fit.safetensors"}.get(damage, "result.json")
    if damage == "gone":
        (cell.folder / "world.safetensors").unlink()
    elif damage == "foreign":
        file.write_text(file.read_text().replace(json.loads(file.read_text())["fingerprint"], "0" * 64))
    else:
        file.write_bytes(file.read_bytes()[:-9])
    assert finished_cells(labelled_cells(experiment, "tiny", (0,)), tmp_path, experiment.needs) == [None]
    table, _ = run_experiment(experiment, tmp_path / "figure", seeds=(0,), size="tiny", store=tmp_path, jobs=1)
    assert len(table)
    (again,) = finished_cells(labelled_cells(experiment, "tiny", (0,)), tmp_path, experiment.needs)
    assert (again.folder / "features.csv").read_bytes() == before
    shutil.rmtree(tmp_path / "cells")


def test_a_cell_without_arrays_is_computed_again_for_a_figure_that_needs_them(tmp_path):
    from dataclasses import replace

    experiment = load_figure("dynamics")
    thrifty = replace(experiment, needs=(), collect=None, name="thrifty")
    run_experiment(thrifty, tmp_path / "a", seeds=(0,), size="tiny", store=tmp_path, jobs=1)
    assert not list(tmp_path.glob("cells/*/fit.safetensors"))
    run_experiment(experiment, tmp_path / "b", seeds=(0,), size="tiny", store=tmp_path, jobs=1)
    assert len(list(tmp_path.glob("cells/*/fit.safetensors"))) == 1


def test_killed_in_the_middle_and_continued(tmp_path):
    """SIGKILL loses the cells in hand at most; the same command ends with the table of an undisturbed run."""
    command = [sys.executable, "-m", "figures.cli", "run", "width", "--size", "tiny", "--jobs", "1", "--quiet", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("killed/cells/*/result.json"))) < 2 and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    for folder in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / folder)], check=True, env=environment, capture_output=True)
    tables = [pd.read_csv(tmp_path / folder / "figures/width-tiny/table.csv") for folder in ("killed", "whole")]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_of_two_workers(tmp_path):
    """The same numbers as local processes, computed by both workers."""
    distributed = pytest.importorskip("distributed")
    experiment = load_figure("width")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path / "d")
    )
    with cluster:
        workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
        far, _ = run_experiment(experiment, tmp_path / "far", size="tiny", workers=workers, store=tmp_path / "far")
    near, _ = run_experiment(experiment, tmp_path / "near", size="tiny", jobs=1, store=tmp_path / "near")
    pd.testing.assert_frame_equal(far.drop(columns="seconds"), near.drop(columns="seconds"))


def test_nobody_answers_at_the_address():
    pytest.importorskip("distributed")
    workers = Workers(backend="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(RequestError, match="no dask scheduler answers"), workers.parallel(2):
        pass


@pytest.mark.parametrize("name", ["loss-sparsity", "consistency", "group-ablation", "zscore"])
def test_figures_on_activations(name, tmp_path, capsys):
    """The same code on a matrix: no column about planted features is made up."""
    rows = np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32)
    np.save(tmp_path / "residual.npy", rows)
    arguments = ("run", name, "--size", "tiny", "--out", tmp_path, "--activations", tmp_path / "residual.npy")
    code, _, err = call(capsys, *arguments, "--quiet")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "figures" / f"{name}-tiny-residual" / "table.csv")
    assert len(table)
    for column in {"frr_090", "correct", "cosine"} & set(table):
        assert table[column].isna().all()
    code, _, err = call(capsys, "plot", *arguments[1:])
    assert code == 0, err


def test_figures_on_activations_that_never_vary(tmp_path, capsys):
    """Nothing can be learned from equal rows; the pictures say so instead of failing."""
    np.save(tmp_path / "constant.npy", np.ones((50, 8), np.float32))
    for name in ("loss-sparsity", "consistency", "group-ablation", "zscore"):
        code, _, err = call(
            capsys,
            "run",
            name,
            "--size",
            "tiny",
            "--out",
            tmp_path,
            "--activations",
            tmp_path / "constant.npy",
            "--quiet",
        )
        assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nothing"), "there are bias-adaptation"),
        (("run", "resonance"), "verify --preset resonance"),
        (("run", "width", "--seeds", "0", "0"), "repeat"),
        (("run", "width", "--jobs", "-1"), "jobs"),
        (("run", "width", "--backend", "dask"), "--scheduler"),
        (("run", "width", "--scheduler", "tcp://a:1"), "--backend dask"),
        (("run", "width", "--activations", "x.npy"), "planted features"),
        (("run", "loss-sparsity", "--size", "tiny", "--activations", "missing.npy"), "missing.npy"),
        (("run", "consistency", "--size", "tiny", "--seeds", "3"), "fewer than two seeds"),
        (("run", "width", "--size", "huge"), "huge"),
        (("plot", "nothing"), "there are"),
    ],
)
def test_impossible_requests(arguments, words, tmp_path, capsys):
    code, _, err = call(capsys, *arguments, "--out", tmp_path)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_table_is_named(store, capsys, tmp_path):
    folder = tmp_path / "figures" / "width-tiny"
    folder.mkdir(parents=True)
    (folder / "table.csv").write_text("a,b\n1,2\n")
    code, _, err = call(capsys, "plot", "width", "--size", "tiny", "--out", tmp_path)
    assert code == 2
    assert "table.csv is damaged" in err


def test_the_estimate_is_printed_before_a_run_at_paper_size(store, tmp_path, capsys, monkeypatch):
    """Two of the paper's cells are made small; the estimate is measured on them."""
    from dataclasses import replace

    experiment = load_figure("width")
    monkeypatch.setattr(
        "figures.runner.load_figure",
        lambda name: replace(experiment, cells=lambda seeds, size: experiment.cells(seeds, "tiny")[:2]),
    )
    code, _, err = call(capsys, "run", "width", "--size", "paper", "--seeds", "0", "--out", tmp_path, "--quiet")
    assert code == 0
    assert "2 cells to compute: about 0 minutes and" in err
    assert "GB of memory" in err


def test_estimates_grow_with_the_work():
    from figures.estimate import estimate, memory

    cells = [cell for _, cell in load_figure("width").cells((0,), "tiny")]
    one, many = estimate(cells[:1], 1), estimate(cells * 5, 1)
    assert many.cells == 5 * len(cells)
    assert many.seconds > one.seconds > 0
    small, paper = (load_figure("selectivity").cells((0,), size)[0][1] for size in ("small", "paper"))
    assert memory(paper, paper.world.d) > 8 * 48 * 262_144
    assert memory(small, small.world.d) < memory(paper, paper.world.d)
    assert estimate([], 2).seconds == 0


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "co-occurrence"])
def test_a_diverged_run_is_left_out(name, tmp_path, monkeypatch):
    """One seed diverges in every cell; the figure is drawn from the others (two of them, for consistency)."""
    from dataclasses import replace

    from figures.runner import write_figure

    experiment = load_figure(name)
    found = experiment.cells((0, 1, 2), "tiny")
    kept = {}
    for label, cell in found:
        kept.setdefault(tuple(map(str, label.values())), []).append((label, cell))
    few = [item for group in list(kept.values())[:2] for item in group]
    wild = [
        (label, replace(cell, training=replace(cell.training, learning_rate=1e30, unit_rows=False)) if k == 0 else cell)
        for k, (label, cell) in enumerate(few)
    ]
    some = replace(experiment, cells=lambda seeds, size: wild)
    if len(wild) == 1:
        wild.append(found[0])
    table, _ = run_experiment(some, tmp_path / "f", size="tiny", seeds=(0,), jobs=1, store=tmp_path)
    states = {json.loads(file.read_text())["status"] for file in tmp_path.glob("cells/*/result.json")}
    assert states == {"diverged", "finished"}
    write_figure(some, table, tmp_path / "f", experiment.name)
    assert (tmp_path / "f" / f"{name}.png").exists()


def test_every_name_loads():
    assert [load_figure(name).name for name in FIGURES] == list(FIGURES)
    assert all(load_preset(name).name for name in PRESETS)


def test_sizes_are_a_dial():
    """Equal questions at every size: the same label columns, more cells at small than at tiny."""
    for name in FIGURES:
        cells = {size: load_figure(name).cells((0, 1), size) for size in ("tiny", "small", "paper")}
        assert len({tuple(sorted(label)) for found in cells.values() for label, _ in found}) == 1
        assert len(cells["tiny"]) <= len(cells["small"])


def test_committed_report_is_complete():
    """docs/reproduction holds the page, its claims and a picture under 200 kB for every figure."""
    folder = Path(__file__).parents[1] / "docs" / "reproduction"
    page = (folder / "README.md").read_text()
    for name in FIGURES:
        assert f"({name}.png)" in page
        assert 5_000 < (folder / f"{name}.png").stat().st_size < PNG_LIMIT
    for claim in json.loads((folder / "claims.json").read_text())["claims"]:
        assert claim["statement"] in page
