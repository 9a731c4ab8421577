"""The command line as scripts use it: fixed words, one JSON object, one line per error, resume, exit codes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from figures.cli import main
from simulator.storage import load_tensors, save_tensors

BASE = ["--neurons", "24", "--steps", "30", "--batch", "32", "--samples", "400", "--quiet"]
BA = ["--method", "ba", "--p", "0.15"]
WORLD = ["--n", "16", "--d", "8", "--s", "2"]
TINY = [*WORLD, *BA, *BASE]
FIXED = {
    "frr_080", "frr_090", "frr_090_untrained", "neuron_precision_090", "mcc", "mcc_chance", "loss", "mean_l0",
    "dead", "seconds", "steps",
}  # fmt: skip


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def verify(capsys, *arguments):
    code, out, err = run(capsys, "verify", *arguments)
    assert code == 0, err
    return out


def test_fixed_words(capsys, tmp_path):
    result = json.loads(verify(capsys, *TINY, "--seed", 0, "--out", tmp_path / "r", "--json"))
    assert set(result) >= FIXED
    assert result["steps"] == 30
    assert all(0 <= result[name] <= 1 for name in FIXED if name.startswith(("frr", "neuron_", "mcc")))
    fitted, _ = load_tensors(tmp_path / "r" / "fit.safetensors")
    assert {name: tuple(value.shape) for name, value in fitted.items()} == {
        "W": (24, 8), "a": (24,), "b": (24,), "b_pre": (8,)
    }  # fmt: skip
    world, _ = load_tensors(tmp_path / "r" / "world.safetensors")
    assert tuple(world["V"].shape) == (16, 8)
    V, W = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (world["V"].numpy(), fitted["W"].numpy()))
    best = (V.astype(float) @ W.astype(float).T).max(axis=1)
    assert result["frr_080"] == (best > 0.8).mean()
    files = {file.name for file in (tmp_path / "r").iterdir()} - {".lock"}
    assert files == {
        "result.json", "fit.safetensors", "world.safetensors", "features.csv", "neurons.csv", "history.csv",
        "report.png",
    }  # fmt: skip


def test_every_number_in_the_report_is_there(capsys, tmp_path):
    text = verify(capsys, *TINY, "--out", tmp_path / "r")
    for word in (
        "BA, trained",
        "true dictionary",
        "NNLS",
        "random dictionary",
        "random data points",
        "k-means",
    ):
        assert word in text
    assert "chance level" in text
    assert str(tmp_path / "r") in text


GBA = "--method gba --htf 0.3 --ltf 0.05 --groups 3"
OTHERS = [
    f"--n 16 --d 8 --s 2 {GBA}",
    f"--n 16 --d 8 --s 2 {GBA} --start-bias quantile --rule two-sided",
    "--n 16 --d 8 --s 2 --method topk --k 2 --auxiliary-k 4",
    "--n 16 --d 8 --s 2 --method l1 --l1 0.02",
    "--n 16 --d 8 --s 1 4 --method ba --p 0.2",
    f"--n 16 --d 8 --s 2 --support bernoulli --zipf 0.5 --coefficients exponential --noise 0.01 {GBA}",
    f"--n 16 --d 8 --s 2 --support paired --rho 0.4 --dictionary coherent --dtype float64 {GBA}",
    f"--n 8 --d 8 --s 2 --dictionary orthonormal --coefficients uniform --no-unit-rows --no-normalise {GBA}",
]


@pytest.mark.parametrize("options", OTHERS)
def test_methods_and_worlds(capsys, tmp_path, options):
    arguments = [*BASE, *options.split(), "--no-references", "--out", tmp_path / "r", "--json"]
    result = json.loads(verify(capsys, *arguments))
    assert set(result) >= FIXED
    assert 0 <= result["loss"] < 2
    assert [row["row"].split(", ")[1] for row in result["rows"]] == ["trained", "untrained"]


def test_the_result_is_what_the_saved_network_does(capsys, tmp_path):
    """loss, mean_l0, precision and untrained rate again, by plain formulas from the saved arrays and fresh samples."""
    from simulator import Exactly, World

    result = json.loads(verify(capsys, *TINY, "--seed", 3, "--no-references", "--out", tmp_path / "r", "--json"))
    saved = {
        name: value.double().numpy() for name, value in load_tensors(tmp_path / "r" / "fit.safetensors")[0].items()
    }
    sample = World(16, 8, Exactly(2)).sample(400, 3, name="evaluation")
    X = sample.X.astype(float)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    z = (X - saved["b_pre"]) @ saved["W"].T
    active = z + saved["b"] > 0
    residual = (z * active * saved["a"]) @ saved["W"] + saved["b_pre"] - X
    assert result["loss"] == pytest.approx((residual**2).sum() / (X**2).sum(), rel=1e-4)
    # A pre-activation within rounding of zero may fall on either side: one pair in 9,600 is let through.
    assert result["mean_l0"] == pytest.approx(active.sum() / 400, abs=1 / 400)
    V = sample.V / np.linalg.norm(sample.V, axis=1, keepdims=True)
    best = (saved["W"] / np.linalg.norm(saved["W"], axis=1, keepdims=True) @ V.T).max(axis=1)
    assert result["neuron_precision_080"] == pytest.approx((best[active.any(axis=0)] > 0.8).mean())
    history = np.genfromtxt(tmp_path / "r" / "history.csv", delimiter=",", names=True)
    assert history["step"][-1] == 30


def test_a_diverged_run_is_a_result(capsys, tmp_path):
    arguments = [*TINY, "--learning-rate", "1e25", "--out", tmp_path / "r"]
    text = verify(capsys, *arguments)
    assert "THE RUN DIVERGED" in text
    result = json.loads(verify(capsys, *arguments, "--json"))
    assert set(result) >= FIXED
    assert result["status"] == "diverged"


def test_a_finished_folder_is_printed_again_without_computing(capsys, tmp_path):
    first = verify(capsys, *TINY, "--out", tmp_path / "r", "--json")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "r").iterdir()}
    assert verify(capsys, *TINY, "--out", tmp_path / "r", "--json") == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "r").iterdir()} == before
    told = verify(capsys, *TINY, "--out", tmp_path / "r", "--explain", 3)
    assert "feature 3" in told
    code, _, err = run(capsys, "verify", *TINY, "--seed", 1, "--out", tmp_path / "r")
    assert code == 2
    assert "another command (seed: 0 there, 1 here)" in err
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "r").iterdir()} == before


def test_killed_and_started_again_gives_the_same_arrays(capsys, tmp_path):
    """SIGKILL in mid-run; the same command ends bit-equal to one that was never stopped."""
    long = [*TINY, "--steps", "6000", "--threads", "1", "--no-references", "--checkpoint-seconds", "0.1"]
    command = [
        sys.executable,
        "-c",
        "from figures.cli import main; main()",
        "verify",
        *long,
        "--out",
        tmp_path / "killed",
    ]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = load_tensors(checkpoint)[1]["run"]["t"]
    assert 0 < reached < 6_000
    killed = json.loads(verify(capsys, *long, "--out", tmp_path / "killed", "--json"))
    whole = json.loads(verify(capsys, *long, "--out", tmp_path / "whole", "--json"))
    for name in ("fit.safetensors", "features.csv", "neurons.csv", "history.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for result in (killed, whole):
        result.pop("seconds")
    assert killed == whole
    assert not checkpoint.exists()


def test_activations_from_a_file(capsys, tmp_path):
    X = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    arguments = [*BA, *BASE, "--activations", tmp_path / "x.npy", "--out", tmp_path / "r", "--json"]
    result = json.loads(verify(capsys, *arguments))
    assert set(result) >= FIXED
    assert result["frr_090"] is None
    assert 0 < result["loss"] < 1
    save_tensors(tmp_path / "x.safetensors", {"X": X}, {})
    arguments[arguments.index(tmp_path / "x.npy")] = tmp_path / "x.safetensors"
    assert json.loads(verify(capsys, *arguments)) == result  # same rows, same result, whatever the file


def test_check_on_files(capsys, tmp_path):
    draw = np.random.default_rng(1)
    V = draw.standard_normal((12, 6))
    np.save(tmp_path / "V.npy", V)
    np.save(tmp_path / "W.npy", V[::-1] * draw.uniform(0.5, 2, (12, 1)))
    np.save(tmp_path / "f.npy", np.geomspace(0.01, 0.2, 12))
    code, out, _ = run(
        capsys, "check", tmp_path / "V.npy", tmp_path / "W.npy", "--untrained", tmp_path / "V.npy", "--frequencies",
        tmp_path / "f.npy", "--explain", 2, "--out", tmp_path / "c", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert (result["frr_090"], result["mcc"], result["uniqueness"]) == (1.0, 1.0, 1.0)
    assert result["mcc_chance"] < 1
    assert sum(row["features"] for row in result["by_frequency"]) == 12
    assert json.loads((tmp_path / "c" / "result.json").read_text()) == result
    code, out, _ = run(capsys, "check", tmp_path / "V.npy", tmp_path / "W.npy")
    assert code == 0
    assert "random dictionary of this shape" in out


@pytest.mark.parametrize("name", ["first-recovery", "thousand-features", "imbalanced-toy", "imbalanced-toy-trials"])
def test_presets(capsys, tmp_path, name):
    arguments = [
        "--preset",
        name,
        "--size",
        "tiny",
        "--seeds",
        0,
        1,
        "--jobs",
        1,
        "--out",
        tmp_path / "p",
        "--quiet",
    ]
    result = json.loads(verify(capsys, *arguments, "--json"))
    assert result["preset"] == name
    assert all(cell["frr_090"] is not None for cell in result["cells"])
    cells = {file: file.stat().st_mtime_ns for file in (tmp_path / "p" / "cells").rglob("result.json")}
    assert {cell["seed"] for cell in result["cells"]} == {0, 1}
    assert (tmp_path / "p" / f"{name}.png").stat().st_size > 5_000
    # One cell lost: the same command computes that one and no other, and ends with the same numbers.
    lost = min(cells)
    lost.unlink()
    again = json.loads(verify(capsys, *arguments, "--json"))
    for table in (result, again):
        for row in [*table["cells"], *table["rows"]]:
            row.pop("seconds", None)
            row.pop("s / run", None)
            row.pop("s / run ±", None)
    assert again == result
    changed = {file for file, then in cells.items() if file.stat().st_mtime_ns != then}
    assert changed == {lost}


BAD = {
    "s above n": (["--s", "17"], "s = 17"),
    "s of zero": (["--s", "0"], "s = 0"),
    "p of one": (["--p", "1"], "> 0 and < 1"),
    "p is not a number": (["--p", "nan"], "> 0 and < 1"),
    "a word for a number": (["--p", "often"], "could not convert"),
    "orthonormal": (["--dictionary", "orthonormal"], "orthonormal"),
    "unknown preset": (["--preset", "no-such"], "unknown preset 'no-such'; there are first-recovery"),
    "preset and option": (["--preset", "imbalanced-toy"], "decided by the preset"),
    "unknown option": (["--neuron-count", "4"], "neuron-count"),
    "unknown method": (["--method", "sgd"], "sgd"),
    "no neurons": (["--neurons", "0"], "neurons = 0"),
    "k above neurons": (["--method", "topk", "--p", "0.03", "--k", "25"], "k = 25"),
    "negative seed": (["--seed", "-1"], "seed"),
    "no device": (["--device", "tpu"], "not available"),
    "few samples": (["--samples", "1"], "samples = 1"),
    "feature out of range": (["--explain", "16"], "0 to 15"),
    "no file": (["--activations", "nowhere.npy", *["--n", "128", "--d", "42", "--s", "3"]], "nowhere.npy"),
    "no features file": (["--features", "nowhere.npy", *["--n", "128", "--d", "42"]], "nowhere.npy"),
    "world beside a file": (["--activations", "nowhere.npy"], "--n belongs to a world"),
    "p without ba": (["--method", "gba"], "--p belongs to --method ba"),
    "rho without pairs": (["--rho", "0.3"], "--rho belongs to --support paired"),
    "seeds without a preset": (["--seeds", "1", "2"], "--seeds belongs to --preset"),
    "huge n": (["--n", "1" + 21 * "0"], "n = 1"),
    "zero threads": (["--threads", "0"], "threads"),
    "folder is a file": (["--out", "/dev/null"], "/dev/null"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_end_with_one_line_and_two(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[name]
    code, out, err = run(capsys, "verify", *TINY, *(["--out", "r"] if "--out" not in arguments else []), *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("sae-recovery: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "r" / "result.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no numpy file at all", "no readable .npy file"),
        (np.zeros((0, 8)), "empty"),
        (np.full((9, 8), np.nan), "NaN or infinity"),
        (np.where(np.eye(8) > 0, np.inf, 0.0), "row 0"),
        (np.zeros(8), "shape (8,)"),
        (np.array([["a", "b"]]), "dtype"),
        (np.ones((4, 4), complex), "dtype"),
        (np.array([[None]], dtype=object), "readable"),
    ],
    ids=str,
)
def test_bad_activations(capsys, tmp_path, content, message):
    file = tmp_path / "x.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    code, _, err = run(capsys, "verify", *BA, *BASE, "--activations", file, "--out", tmp_path / "r")
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_damaged_files_are_named_and_left_alone(capsys, tmp_path):
    verify(capsys, *TINY, "--out", tmp_path / "r")
    (tmp_path / "r" / "result.json").write_text("{half")
    code, _, err = run(capsys, "verify", *TINY, "--out", tmp_path / "r")
    assert code == 2
    assert "result.json is damaged" in err
    (tmp_path / "r" / "result.json").unlink()
    (tmp_path / "r" / "checkpoint.safetensors").write_bytes(b"\x10")
    code, _, err = run(capsys, "verify", *TINY, "--out", tmp_path / "r")
    assert code == 2
    assert "checkpoint.safetensors is truncated" in err
    assert (tmp_path / "r" / "checkpoint.safetensors").read_bytes() == b"\x10"


def test_results_of_other_commands_are_left_alone(capsys, tmp_path):
    verify(capsys, *TINY, "--no-references", "--out", tmp_path / "r")
    np.save(tmp_path / "V.npy", np.eye(3))
    before = {file: file.read_bytes() for file in (tmp_path / "r").iterdir()}
    for arguments in (
        ["check", tmp_path / "V.npy", tmp_path / "V.npy", "--out", tmp_path / "r"],
        ["verify", "--preset", "first-recovery", "--size", "tiny", "--quiet", "--out", tmp_path / "r"],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert "result of another command" in err
    assert {file: file.read_bytes() for file in (tmp_path / "r").iterdir()} == before


def test_no_space_left(capsys, tmp_path, monkeypatch):
    """A full disk: one line, exit code 2, and what was there before is untouched."""
    import errno
    import os

    long = [*TINY, "--no-references", "--checkpoint-seconds", "0"]
    verify(capsys, *long, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole" / "fit.safetensors").read_bytes()
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run(capsys, "verify", *long, "--out", tmp_path / "r")
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left" in err
    assert load_tensors(tmp_path / "r" / "checkpoint.safetensors")[1]["run"]["t"] == 10
    assert not list((tmp_path / "r").glob(".*.part"))
    monkeypatch.undo()
    verify(capsys, *long, "--out", tmp_path / "r")
    assert (tmp_path / "r" / "fit.safetensors").read_bytes() == whole


def test_interrupted_and_continued(capsys, tmp_path, monkeypatch):
    """Ctrl-C: exit code 130, one line, and the state of that moment is kept."""
    from simulator import train

    monkeypatch.setattr(train.time, "perf_counter", lambda: 0.0)  # no checkpoint by time
    record, steps = train._Run.record, []

    def record_and_stop(self, observe):
        record(self, observe)
        steps.append(self.t)
        if self.t == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(train._Run, "record", record_and_stop)
    code, _, err = run(capsys, "verify", *TINY, "--no-references", "--out", tmp_path / "r")
    assert code == 130
    assert err == "sae-recovery: interrupted; the same command continues where this one stopped\n"
    verify(capsys, *TINY, "--no-references", "--out", tmp_path / "r")
    assert steps[:13] == list(range(13))
    assert steps[13:] == list(range(13, 31))  # not from the start


def test_one_folder_one_process(capsys, tmp_path):
    from figures.cells import claimed

    with claimed(tmp_path / "r"):
        code, _, err = run(capsys, "verify", *TINY, "--out", tmp_path / "r")
    assert code == 2
    assert "another process is working" in err


def test_help_names_every_option(capsys):
    code, out, _ = run(capsys, "verify", "--help")
    assert code == 0
    for word in ("--n ", "--htf", "--ltf", "--groups", "--k ", "--l1", "--activations", "--json", "--preset"):
        assert word in out
