"""Checkpoints: a killed run continues bit-equal; a file that cannot be continued is refused and left as it is."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from simulator import BA, Exactly, RequestError, Training, World, fit
from simulator.storage import load_tensors

WORLD = World(n=24, d=10, support=Exactly(2))
TRAINING = Training(BA(0.1, buffer=256), neurons=40, steps=60, batch=64)

KILLED = """
import sys
from pathlib import Path
from simulator import BA, Exactly, Training, World, fit
world = World(n=24, d=10, support=Exactly(2))
training = Training(BA(0.1, buffer=256), neurons=40, steps=100_000, batch=64)
fit(world.stream(3), training, 3, device="cpu", threads=1, checkpoint=Path(sys.argv[1]), checkpoint_seconds=0.05)
"""


def test_killed_by_sigkill_and_continued(tmp_path):
    """A process killed in mid-run, twice, leaves a checkpoint that continues bit-equal."""
    file = tmp_path / "checkpoint.safetensors"
    for _ in range(2):
        before = file.read_bytes() if file.exists() else b""
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + 120
        while (not file.exists() or file.read_bytes() == before) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = checkpoint_step(file)
    assert 0 < reached < 100_000
    training = dataclasses.replace(TRAINING, steps=100_000)
    arguments = {"seed": 3, "device": "cpu", "threads": 1}
    stop = reached + 200
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())

    def interrupted(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    for checkpoint in (copy, tmp_path / "fresh.safetensors"):
        # Saved by Ctrl-C at the same step; a file for each of thousands of steps would take minutes.
        with pytest.raises(KeyboardInterrupt):
            fit(
                WORLD.stream(3),
                training,
                **arguments,
                checkpoint=checkpoint,
                checkpoint_seconds=1e9,
                progress=interrupted,
            )
    continued, fresh = load_tensors(copy), load_tensors(tmp_path / "fresh.safetensors")
    records = [json.dumps(header["run"]["records"]) for _, header in (continued, fresh)]  # NaN != NaN
    assert records[0] == records[1]
    for name, value in fresh[0].items():
        assert torch.equal(continued[0][name], value), name


def checkpoint_step(file):
    return load_tensors(file)[1]["run"]["t"]


def test_checkpoints_that_cannot_be_continued(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    fit(WORLD.stream(3), TRAINING, 3, device="cpu", checkpoint=file)
    content = file.read_bytes()
    with pytest.raises(RequestError, match=r"another configuration \(training.method.p: 0.1 there, 0.2 here\)"):
        fit(
            WORLD.stream(3),
            dataclasses.replace(TRAINING, method=BA(0.2, buffer=256)),
            3,
            device="cpu",
            checkpoint=file,
        )
    with pytest.raises(RequestError, match="another configuration"):
        fit(WORLD.stream(4), TRAINING, 3, device="cpu", checkpoint=file)
    assert file.read_bytes() == content
    for damaged in (content[: len(content) // 2], content[:5], b"", b"x" * 1000):
        file.write_bytes(damaged)
        with pytest.raises(RequestError, match="truncated, damaged"):
            fit(WORLD.stream(3), TRAINING, 3, device="cpu", checkpoint=file)
        assert file.read_bytes() == damaged


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_access(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RequestError, match="cannot write"):
        fit(
            WORLD.stream(3),
            TRAINING,
            3,
            device="cpu",
            checkpoint=tmp_path / "locked" / "c.safetensors",
        )
