"""The benchmark and the heat map as commands: they run, say what they measured, and continue."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from figures import bench, heat_map
from figures.cli import main
from simulator import RequestError


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def test_bench_measures_every_competitor(tmp_path, capsys):
    code, out, _ = run(capsys, "bench", "--size", "tiny", "--rounds", "2", "--out", str(tmp_path), "--json")
    assert code == 0
    rows = {row["competitor"]: row for row in json.loads(out)["steps"]}
    assert rows["encoder product"]["over the encoder product"] == 1
    assert len(rows) == 8
    for row in rows.values():
        assert row["ms"] >= row["ms fastest"] > 0
        assert row["peak MB"] > 50
        assert row["dense over this"] == pytest.approx(rows["dense autograd, tuned allocator"]["ms"] / row["ms"])
    assert len(pd.read_csv(tmp_path / "steps.csv")) == 8
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_a_competitor_that_cannot_run_is_left_out_and_named(caplog):
    # This environment stands in for one without peers.
    names = [("peer", "saelens-topk", False)]
    rows = bench.measure(bench.Shape(16, 4, 32, 0.1, 1), names, 1, python=sys.executable)
    assert [row["competitor"] for row in rows] == ["encoder product"]
    assert "left out: peer" in caplog.text
    assert "sae_lens" in caplog.text


def test_peer_python_must_be_one_with_peers(tmp_path, capsys):
    code, _, error = run(capsys, "bench", "--peer-python", str(tmp_path / "none"), "--out", str(tmp_path))
    assert code == 2
    assert "does not run" in error
    assert error.count("\n") == 1
    code, _, error = run(capsys, "bench", "--rounds", "0", "--out", str(tmp_path))
    assert code == 2
    assert "rounds = 0" in error


def test_growth_picture_and_exponent(tmp_path):
    table = pd.DataFrame(
        {"axis": "M", "value": [10.0, 100.0], "ms": [1.0, 10.0], "peak MB": [5.0, 5.0], "exponent of ms": 1.0,
         "exponent of peak MB": 0.0}
    )  # fmt: skip
    both = pd.concat([table, table.assign(axis="d")])
    bench.draw_growth(both, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000


def test_heat_map_continues_and_adds_cells(tmp_path, capsys):
    base = ("heat-map", "--size", "tiny", "--out", str(tmp_path), "--threads", "1", "--json")
    code, out, _ = run(capsys, *base, "--d", "48.5", "--p", "8.2e-5")
    assert code == 0
    first = json.loads(out)["cells"]
    assert [(row["d"], row["p"], row["paper"]) for row in first] == [(48.5, 8.2e-5, 0.0)]
    code, out, _ = run(capsys, *base, "--d", "48.5", "101.6", "--p", "8.2e-5")
    cells = json.loads(out)["cells"]
    assert cells[0] == first[0]  # read, not computed again: its seconds are the same
    assert [row["d"] for row in cells] == [48.5, 101.6]
    assert cells[1]["paper"] == 1.0
    assert len(pd.read_csv(tmp_path / "heat-map.csv")) == 2
    history = pd.read_csv(tmp_path / "cells" / cells[0]["cell"] / "history.csv")
    watched = history["watched_080"].dropna()
    assert len(watched) >= 20
    assert watched.between(0, 1).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--d", "99"), "d = 99 is no d of the map"),
        (("--p", "1"), "p = 1 is no p of the map"),
        (("--threads", "0"), "threads = 0"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_heat_map_refuses(tmp_path, capsys, options, told):
    code, _, error = run(capsys, "heat-map", "--size", "tiny", "--out", str(tmp_path / "new"), *options)
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_store_of_another_size_is_refused(tmp_path):
    heat_map.run_heat_map(tmp_path, d=[48.5], p=[8.2e-5], size="tiny", threads=1)
    with pytest.raises(RequestError, match="another command"):
        heat_map.run_heat_map(tmp_path, d=[48.5], p=[8.2e-5], size="eighth", threads=1)


def test_the_map_as_read_off():
    assert heat_map.PAPER.shape == (len(heat_map.P), len(heat_map.D)) == (9, 9)
    np.testing.assert_allclose(heat_map.D, [65536 ** (0.35 + k / 60) for k in range(9)], rtol=0.01)
