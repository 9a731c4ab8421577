"""Command bench: time of a training step, ours beside a dense step, the encoder product and the peers.

Every competitor is a process of its own that waits until it is asked, so that all are timed in turn, many times
over (interleaved), with pinned threads: what a busy machine does to one it does to all, and ratios hold.
A round in which the encoder product itself was slow is measured again.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from figures.cells import write_csv
from figures.style import ACCENT, DARK, MARKERS, MIDDLE, new_figure, save_figure
from simulator.errors import RequestError

logger = logging.getLogger(__name__)

# glibc returns every large temporary to the kernel and faults it in again; these settings keep them.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 27),
}
PEERS = ("saelens-topk", "saelens-batchtopk", "sklearn", "spams")
MODULES = {"saelens-topk": "sae_lens", "saelens-batchtopk": "sae_lens", "sklearn": "sklearn", "spams": "spams"}


@dataclass(frozen=True)
class Shape:
    """Sizes of a step: samples, dimension, neurons, mean activation frequency, threads."""

    batch: int
    d: int
    M: int
    p: float
    threads: int = 2
    seed: int = 0
    activations: str = ""
    """A .npy file with real ones instead of random numbers."""

    def text(self) -> str:
        """One label."""
        return f"{self.batch}, {self.d}, {self.M}, {self.p:g}" + (" (1 thread)" if self.threads == 1 else "")


TABLE = (
    Shape(512, 100, 65_536, 2e-4),
    Shape(512, 64, 16_384, 1e-3),
    Shape(512, 64, 16_384, 2e-2),
    Shape(1024, 128, 1024, 1e-2, threads=1),
    Shape(512, 100, 262_144, 1e-4),
)
TINY = (Shape(64, 16, 256, 1e-2, threads=1),)
# Where a dense step could be the faster one: small networks, few samples, high frequencies.
CORNERS = tuple(
    Shape(batch, d, M, p, threads=1)
    for batch, d, M in ((32, 8, 64), (512, 64, 1024), (1024, 16, 4096))
    for p in (0.02, 0.1, 0.3, 0.499)
)
GROWTH = Shape(512, 64, 16_384, 1e-3, threads=1)


class Worker:
    """A competitor's process."""

    def __init__(self, name: str, shape: Shape, python: Path | None = None, tuned: bool = False) -> None:
        # One thread in the pool that the team stands for; the dense step sets its own number.
        environment = {**os.environ, "OMP_NUM_THREADS": str(shape.threads), "MKL_NUM_THREADS": str(shape.threads)}
        environment |= {"OPENBLAS_NUM_THREADS": str(shape.threads), **(TUNED if tuned else {})}
        self.name = name
        if python is None:
            command = [sys.executable, "-m", "figures.bench_worker"]
        else:
            command = [str(python), str(Path(__file__).with_name("bench_worker.py"))]
        # A file, not a pipe: nobody reads along, and a full pipe would stop the worker.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by stop)
        self.process = subprocess.Popen(
            [*command, name, json.dumps(asdict(shape))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment,
        )  # fmt: skip

    def ready(self) -> bool:
        """Whether it could be set up; waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == "ready"

    def trouble(self) -> str:
        """The last line that it wrote before it ended."""
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def run(self, repetitions: int) -> dict[str, Any]:
        """`seconds` and `peak` of some repetitions."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{repetitions}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RequestError(f"the benchmark of {self.name} ended: {self.trouble()}; free memory or leave it out")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextlib.contextmanager
def workers(names: Sequence[tuple[str, str, bool]], shape: Shape, python: Path | None) -> Iterator[dict[str, Worker]]:
    """Processes by label, those that could be set up; the others are named on standard error."""
    running: dict[str, Worker] = {}
    try:
        for label, name, tuned in names:
            worker = Worker(name, shape, python if name in PEERS else None, tuned)
            running[label] = worker
            if not worker.ready():
                logger.warning("left out: %s at %s: %s", label, shape.text(), worker.trouble())
                worker.stop()
                del running[label]
        yield running
    finally:
        for worker in running.values():
            worker.stop()


def measure(
    shape: Shape, names: Sequence[tuple[str, str, bool]], rounds: int, python: Path | None = None
) -> list[dict[str, Any]]:
    """Median seconds of every competitor over interleaved rounds, beside the encoder product's.

    A round is thrown away and repeated (up to `rounds` extra times) where the encoder product took more than 1.3
    times the fastest so far: something else had the machine.
    """
    with workers([("encoder product", "encoder", False), *names], shape, python) as running:
        if "encoder product" not in running:
            raise RequestError("the encoder product could not be run; see the message above")
        times: dict[str, list[float]] = {label: [] for label in running}
        peaks: dict[str, int] = {}
        kept: list[dict[str, float]] = []
        fastest = np.inf
        for _ in range(2 * rounds):
            one = {}
            for label, worker in running.items():
                reply = worker.run(2)
                # The first of two warms the caches that the others have emptied.
                one[label], peaks[label] = reply["seconds"][-1], reply["peak"]
            again = running["encoder product"].run(2)["seconds"][-1]
            one["slowness"] = max(one["encoder product"], again)
            fastest = min(fastest, one["encoder product"], again)
            kept = [row for row in [*kept, one] if row["slowness"] <= 1.3 * fastest]
            if len(kept) >= rounds:
                break
        disturbed = len(kept) < rounds
        chosen = kept or [one]
        times = {label: [row[label] for row in chosen] for label in running}
    base = float(np.median(times["encoder product"]))
    return [
        {
            **{name: value for name, value in asdict(shape).items() if name not in ("seed", "activations")},
            "competitor": label, "ms": 1e3 * float(np.median(values)), "rounds": len(values),
            "ms fastest": 1e3 * min(values), "over the encoder product": float(np.median(values)) / base,
            "peak MB": peaks[label] / 1e6, "disturbed": disturbed,
        }
        for label, values in times.items()
    ]  # fmt: skip


def step_table(
    shapes: Sequence[Shape], rounds: int, python: Path | None, progress: Callable[[str], None]
) -> pd.DataFrame:
    """The step without and with optimiser, against the dense reference, the encoder product and the peers."""
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        progress(shape.text())
        names = [
            ("step", "ba/sparse", False),
            ("step without bf16", "ba/float32", False),
            ("dense autograd, tuned allocator", "ba/reference", True),
            ("dense autograd, default allocator", "ba/reference", False),
            ("training step", "ba/sparse/train", False),
            ("training step, dense", "ba/reference/train", True),
            ("training step, TopK", "topk/sparse/train", False),
        ]
        if python is not None and shape.M <= 2048:
            names += [(name, name, True) for name in PEERS]
        rows += measure(shape, names, rounds, python)
    table = pd.DataFrame(rows)
    for column, of in (
        ("dense over this", "dense autograd, tuned allocator"),
        ("TopK over this", "training step, TopK"),
    ):
        base = table[table["competitor"] == of].set_index(["batch", "d", "M", "p", "threads"])["ms"]
        key = pd.MultiIndex.from_frame(table[["batch", "d", "M", "p", "threads"]])
        table[column] = base.reindex(key).to_numpy() / table["ms"].to_numpy()
    return table


def corner_table(shapes: Sequence[Shape], rounds: int, progress: Callable[[str], None]) -> pd.DataFrame:
    """What `auto` takes against the dense reference where dense could win."""
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        progress(shape.text())
        for kind in ("ba", "topk"):
            names = [("auto", f"{kind}/auto", True), ("dense", f"{kind}/reference", True)]
            found = {row["competitor"]: row for row in measure(shape, names, rounds)}
            rows.append(
                {**found["auto"], "competitor": kind, "dense over auto": found["dense"]["ms"] / found["auto"]["ms"]}
            )
    return pd.DataFrame(rows)


def growth_table(rounds: int, progress: Callable[[str], None]) -> pd.DataFrame:
    """Time and memory of a training step against one size at a time, with the exponent of a power law."""
    axes: dict[str, Sequence[float]] = {
        "M": (4096, 16_384, 65_536, 262_144), "d": (32, 64, 128, 256), "batch": (128, 512, 2048),
        "p": (1e-4, 1e-3, 1e-2, 1e-1),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for axis, values in axes.items():
        found = []
        for value in values:
            shape = replace(GROWTH, **{axis: value})
            progress(f"{axis} = {value:g}")
            for row in measure(shape, [("training step", "ba/sparse/train", False)], rounds):
                if row["competitor"] == "training step":
                    found.append({"axis": axis, "value": value, "ms": row["ms"], "peak MB": row["peak MB"]})
        x = np.log([row["value"] for row in found])
        for column in ("ms", "peak MB"):
            exponent = float(np.polyfit(x, np.log([row[column] for row in found]), 1)[0])
            for row in found:
                row[f"exponent of {column}"] = exponent
        rows += found
    return pd.DataFrame(rows + sampler_growth(progress))


def sampler_growth(progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time of a batch of 512 samples against n, the number of features."""
    from simulator import Exactly, World

    found = []
    for n in (4096, 16_384, 65_536):
        progress(f"n = {n}")
        source = World(n, 64, Exactly(3)).stream(0)
        times = []
        for t in range(50):  # the median leaves the first, cold ones out
            began = time.perf_counter()
            source.batch(t, 512)
            times.append(time.perf_counter() - began)
        found.append({"axis": "n (a batch from the world)", "value": n, "ms": 1e3 * float(np.median(times))})
    exponent = float(np.polyfit(np.log([r["value"] for r in found]), np.log([r["ms"] for r in found]), 1)[0])
    return [{**row, "exponent of ms": exponent} for row in found]


def find_peers(python: Path | None) -> list[str]:
    """Peers that an environment has; RequestError where it is no Python."""
    if python is None:
        return []
    code = "import importlib.util as u,sys; print(*[m for m in sys.argv[1:] if u.find_spec(m)])"
    try:
        reply = subprocess.run(
            [str(python), "-c", code, *sorted(set(MODULES.values()))], capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        reply = None
    if reply is None or reply.returncode:
        raise RequestError(f"--peer-python {python} does not run; name the python of an environment with the peers")
    found = reply.stdout.split()
    if not found:
        raise RequestError(
            f"--peer-python {python} has none of {', '.join(sorted(set(MODULES.values())))}; install one"
        )
    return found


def draw_steps(table: pd.DataFrame, path: Path) -> None:
    """Every competitor's time over the encoder product's, a row of points per shape."""
    shapes = list(dict.fromkeys(zip(*(table[c] for c in ("batch", "d", "M", "p", "threads")), strict=True)))
    names = [name for name in dict.fromkeys(table["competitor"]) if name != "encoder product"]
    figure, axis = new_figure(width=7.6, height=1.4 + 0.55 * len(shapes))
    for index, name in enumerate(names):
        own = table[table["competitor"] == name]
        at = [shapes.index(key) for key in zip(*(own[c] for c in ("batch", "d", "M", "p", "threads")), strict=True)]
        colour = ACCENT if name == "step" else (MIDDLE if "dense" in name else DARK)
        fill = colour if index < len(MARKERS) else "white"
        axis.plot(
            own["over the encoder product"], at, MARKERS[index % len(MARKERS)], color=colour, mfc=fill, label=name
        )
    axis.axvline(1, color=DARK, lw=0.8)
    axis.set_xscale("log")
    axis.set_ylim(len(shapes) - 0.5, -0.5)
    axis.set_yticks(range(len(shapes)), [Shape(*map(_number, key)).text() for key in shapes], fontsize=8)
    axis.set_ylabel("batch, d, M, p")
    axis.set_xlabel("time / time of the float32 encoder product alone")
    figure.legend(fontsize=7, frameon=False, ncols=3, loc="outside upper center")
    save_figure(figure, path)


def _number(value: Any) -> Any:
    return int(value) if float(value).is_integer() and value >= 1 else float(value)


def draw_growth(table: pd.DataFrame, path: Path) -> None:
    """Time and memory against each size, with the fitted exponents."""
    axes = list(dict.fromkeys(table["axis"]))
    figure, panels = new_figure(columns=len(axes), width=2.6, height=2.8)
    for name, panel in zip(axes, panels, strict=True):
        own = table[table["axis"] == name]
        panel.loglog(
            own["value"], own["ms"], "o-", color=ACCENT, label=f"ms, exponent {own['exponent of ms'].iloc[0]:.2f}"
        )
        if own["peak MB"].notna().all():
            told = f"peak MB, exponent {own['exponent of peak MB'].iloc[0]:.2f}"
            panel.loglog(own["value"], own["peak MB"], "s--", color=DARK, label=told)
        panel.set_xlabel(name, fontsize=9)
        panel.set_xticks(own["value"], [f"{value:g}" for value in own["value"]], fontsize=7)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def run_bench(
    folder: Path,
    size: str,
    rounds: int,
    python: Path | None,
    progress: Callable[[str], None],
    store: Path | None = None,
    layer: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Measure, save CSV and PNG into a folder, return the tables by name.

    Args:
        folder: where.
        size: "table" (steps), "corners" (where dense could win), "growth", "all", "tiny", "peers" (whole training
            steps of the same method on the benchmark's world), or "bridge" (capture with the packaged model,
            training on the activations in `store`).
        rounds: kept per row.
        python: interpreter of an environment with peers, or None.
        progress: called with what is measured next.
        store, layer: real activations.
    """
    if (size == "bridge") != (store is not None):
        raise RequestError("--size bridge and --store STORE go together")
    if rounds < 1:
        raise RequestError(f"rounds = {rounds} must be a whole number of at least 1")
    find_peers(python)
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, pd.DataFrame] = {}
    if size in ("table", "tiny", "all"):
        tables["steps"] = step_table(TINY if size == "tiny" else TABLE, rounds, python, progress)
        draw_steps(tables["steps"], folder / "steps.png")
    if size in ("corners", "all"):
        tables["corners"] = corner_table(CORNERS, rounds, progress)
    if size in ("growth", "all"):
        tables["growth"] = growth_table(rounds, progress)
        draw_growth(tables["growth"], folder / "growth.png")
    if size == "peers":
        from figures.peer_bench import peers_table

        tables["peers"] = peers_table(rounds, python, progress)
    if store is not None:
        from figures.bridge_bench import activations_table, capture_table

        tables["training"] = activations_table(store, layer, rounds, python, progress)
        tables["capture"] = capture_table(rounds, progress)
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    return tables
