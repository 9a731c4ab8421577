"""One training loop for every method: `fit(source, training, seed) -> Fit`.

Algorithm 1 of Chen et al. 2025 (arXiv:2506.14002): batch, normalise, step on everything but the
biases, fill the buffer, adapt the biases when it is full. Batch t depends on the seed and t only, so
that a run continued from a checkpoint is bit-equal on the CPU to one that was never stopped (for one
set of versions, one number of threads and one engine).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from simulator import sae
from simulator.activations import ActivationMatrix
from simulator.adaptation import adapt
from simulator.checks import whole
from simulator.config import difference, fingerprint, to_config
from simulator.devices import choose_device, choose_threads, torch_threads
from simulator.engine import EngineName, make_engine, numba_version
from simulator.errors import RequestError
from simulator.methods import BA, GBA, BatchTopK, Gated, JumpReLU, TopK
from simulator.optimiser import AdamW
from simulator.sae import Parameters
from simulator.storage import load_tensors, save_tensors
from simulator.training import Training, normalise_rows, prepare, quantile_bias, start_directions

logger = logging.getLogger(__name__)

Observer = Callable[[int, np.ndarray, np.ndarray], Mapping[str, float]]


class Source(Protocol):
    """Where batches come from: a world's stream, a matrix of activations, or your own."""

    d: int

    def batch(self, t: int, size: int) -> Tensor:
        """Batch t = 0, 1, ..., shape (size, d); must depend on nothing but t and size."""
        ...

    def config(self) -> dict[str, Any]:
        """What identifies the data, JSON-able; a checkpoint is only continued on equal data."""
        ...


@dataclass(frozen=True)
class Fit:
    """The outcome of a run. A run that diverged is a value (`status`), not an exception."""

    W: np.ndarray
    """(M, d)."""
    a: np.ndarray
    """Output scales, (M,)."""
    b: np.ndarray
    """Biases, (M,)."""
    b_pre: np.ndarray
    """(d,)."""
    threshold: np.ndarray
    """(M,): a neuron is active where its pre-activation lies above it. Zero but for JumpReLU, BatchTopK (the same for
    all neurons) and Gated (whose gate and magnitude are folded into a, b and this when the run ends)."""
    W_start: np.ndarray
    """W before training, (M, d): what the untrained network of the same shape can do."""
    history: dict[str, np.ndarray]
    """One entry per record: step, loss (normalised, mean since the last record), mean_l0, dead (neurons
    without activation since the last record), and what the observer returned."""
    status: Literal["finished", "diverged"]
    steps: int
    """Steps done."""
    seconds: float
    """Training time, over all sittings."""
    training: Training
    targets: np.ndarray | None
    """Target activation frequency per neuron, (M,), where the method has them."""
    engine: str
    """How the steps were computed."""
    device: str
    """Where: cpu, cuda, ..."""
    threads: int
    """Threads on the CPU."""

    def prepare(self, X: np.ndarray) -> np.ndarray:
        """Inputs as the network sees them: unit rows where `Training.normalise`; shape (N, d)."""
        return prepare(X, self.training)

    def encode(self, X: np.ndarray) -> sparse.csr_array:
        """Codes phi of inputs (N, d), which are prepared first; sparse, (N, M), without the output scales."""
        method = self.training.method
        k = method.k if isinstance(method, TopK) else None
        return sae.encode(self.prepare(X), self.W, self.b, self.b_pre, self.training.gate, k, threshold=self.threshold)

    def decode(self, codes: sparse.csr_array) -> np.ndarray:
        """Reconstructions of the prepared inputs from codes (N, M); shape (N, d)."""
        return sae.decode(codes, self.W, self.a, self.b_pre)


class _Run:
    """The state of a run between two steps: all of it, so that it can be saved and continued."""

    def __init__(
        self,
        source: Source,
        training: Training,
        seed: int,
        device: torch.device,
        engine: EngineName,
        threads: int,
    ):
        self.source, self.training, self.device = source, training, device
        self.threads = threads
        dtype = getattr(torch, training.dtype)
        M, d = training.neurons, source.d
        self.seed = seed
        like = {"dtype": dtype, "device": device}
        targets = training.targets()
        self.parameters = Parameters(
            torch.from_numpy(start_directions(seed, M, d, training.dtype)).to(device),
            torch.full((M,), training.start_scale, **like),
            torch.zeros(M, **like),
            torch.zeros(d, **like),
            torch.full((M,), training.method.start_threshold, **like)
            if isinstance(training.method, JumpReLU)
            else None,
            *([torch.zeros(M, **like), torch.zeros(M, **like)] if isinstance(training.method, Gated) else []),
        )
        self.running_threshold = 0.0
        """BatchTopK's."""
        if targets is not None:
            self.targets = torch.from_numpy(targets).to(**like)
            self.bounds = training.group_bounds()
            lengths = None if training.normalise else self.batch(0).norm(dim=1)
            self.lowest = -1.0 if lengths is None else -float(lengths.max())
            if training.start_bias == "quantile":
                rms = None if lengths is None else float(lengths.square().mean().sqrt())
                self.parameters.b.copy_(torch.from_numpy(quantile_bias(targets, d, rms)))
        self.engine = make_engine(engine, training.method, training.gate, device, threads, M, training.batch)
        self.engine_name = self.engine.name
        team = getattr(self.engine, "team", None)
        self.optimiser = AdamW(
            self.parameters, training.trained, training.learning_rate, training.weight_decay, training.betas,
            training.eps, training.unit_rows, team,
        )  # fmt: skip
        self.t = 0
        self.consistent = True
        """False while a step is half applied."""
        self.seconds = 0.0
        self.buffered = 0
        self.buffer_counts = torch.zeros(M, dtype=torch.int64, device=device)
        self.buffer_maxima = torch.zeros(M, **like)
        self.window_counts = torch.zeros(M, dtype=torch.int64, device=device)
        self.window = {"samples": 0, "loss": 0.0, "energy": 0.0}
        self.last_active = torch.zeros(M, dtype=torch.int64, device=device)
        self.records: list[dict[str, float]] = []
        self.watch: list[int] = []
        """Neurons of the history."""

    def batch(self, t: int) -> Tensor:
        X = torch.as_tensor(self.source.batch(t, self.training.batch))
        if X.shape != (self.training.batch, self.source.d):
            wanted = (self.training.batch, self.source.d)
            raise RequestError(f"batch {t} of the source has shape {tuple(X.shape)}; {wanted} is needed")
        X = X.to(self.device, self.parameters.W.dtype)
        return normalise_rows(X) if self.training.normalise else X

    def advance(self) -> float:
        """One step of Algorithm 1; returns the loss of its batch."""
        training, method = self.training, self.training.method
        X = self.batch(self.t)
        N = X.shape[0]
        dead = None
        if isinstance(method, TopK | BatchTopK) and method.auxiliary_k:
            dead = self.t * N - self.last_active >= method.dead_after
        step = self.engine.step(self.parameters, X, dead)
        self.consistent = False
        self.t += 1
        tail = training.decay * training.steps
        factor = min(1.0, (training.steps - self.t + 1) / tail) if tail >= 1 else 1.0
        self.optimiser.update(self.parameters, step, self.t, factor)
        if self.parameters.threshold is not None:
            self.parameters.threshold.clamp_(min=0)
        if isinstance(method, BatchTopK) and step.smallest is not None:
            rate = max(method.threshold_rate, 1 / self.t)  # first a plain mean, which does not remember the 0
            self.running_threshold += rate * (step.smallest - self.running_threshold)
        if isinstance(method, BA | GBA):
            self.buffer_counts += step.counts
            torch.maximum(self.buffer_maxima, step.maxima, out=self.buffer_maxima)
            self.buffered += N
            if self.buffered >= method.buffer:
                q = self.buffer_counts.to(self.targets.dtype) / self.buffered
                b = adapt(self.parameters.b, q, self.buffer_maxima, self.targets, self.bounds, method.rule, self.lowest)
                self.parameters.b.copy_(b)
                self.buffered = 0
                self.buffer_counts.zero_()
                self.buffer_maxima.zero_()
        if dead is not None:
            self.last_active[step.counts > 0] = self.t * N
        self.window_counts += step.counts
        self.window["samples"] += N
        self.window["loss"] += step.loss * 2 * N
        self.window["energy"] += float(X.square().sum())
        self.consistent = True
        return step.loss

    def record(self, observe: Observer | None) -> None:
        """Append one line of history and start a new window."""
        samples = self.window["samples"]
        nothing_yet = samples == 0
        row = {
            "step": float(self.t),
            "loss": np.nan if nothing_yet else self.window["loss"] / max(self.window["energy"], 1e-30),
            "mean_l0": np.nan if nothing_yet else int(self.window_counts.sum()) / samples,
            "dead": np.nan if nothing_yet else float((self.window_counts == 0).sum()),
        }
        for m in self.watch:
            row[f"bias_{m}"] = float(self.parameters.b[m])
            row[f"frequency_{m}"] = np.nan if nothing_yet else int(self.window_counts[m]) / samples
        if observe is not None:
            row |= observe(self.t, self.parameters.W.cpu().numpy(), self.parameters.b.cpu().numpy())
        if self.records and list(row) != list(self.records[0]):
            before = ", ".join(list(self.records[0])[4:]) or "nothing"
            raise RequestError(f"the history observes {before} so far and {', '.join(list(row)[4:]) or 'nothing'} now")
        self.records.append(row)
        self.window_counts.zero_()
        self.window = {"samples": 0, "loss": 0.0, "energy": 0.0}

    def _tensors(self) -> dict[str, Tensor]:
        counters = ("buffer_counts", "buffer_maxima", "window_counts", "last_active")
        return (
            {f"parameter.{name}": value for name, value in self.parameters.tensors().items()}
            | {f"optimiser.{name}": value for name, value in self.optimiser.state().items()}
            | {name: getattr(self, name) for name in counters}
        )

    def is_finite(self) -> bool:
        """Whether every parameter is finite; a loss can stay finite while dead neurons hold NaN."""
        return all(bool(value.isfinite().all()) for value in self.parameters.tensors().values())

    def save(self, path: Path, identity: Mapping[str, Any], status: str) -> None:
        scalars = {
            "t": self.t, "seconds": self.seconds, "buffered": self.buffered, "window": self.window,
            "records": self.records, "status": status, "running_threshold": self.running_threshold,
        }  # fmt: skip
        save_tensors(path, self._tensors(), {"identity": identity, "run": scalars})

    def load(self, path: Path, identity: Mapping[str, Any]) -> str:
        tensors, header = load_tensors(path)
        if header.get("identity", {}).get("fingerprint") != identity["fingerprint"]:
            raise RequestError(
                f"{path} belongs to another configuration ({difference(header.get('identity'), identity)}); "
                "repeat its command, or name another folder"
            )
        mine = self._tensors()
        if set(mine) != set(tensors) or any(mine[k].shape != tensors[k].shape for k in mine):
            raise RequestError(f"{path} is not complete; remove it to start again")
        if header["identity"].get("versions") != identity["versions"]:
            logger.warning("%s was written with other versions: the rest of the run is not bit-equal", path)
        for name, value in tensors.items():
            mine[name].copy_(value)
        run = header["run"]
        self.t, self.seconds, self.buffered = run["t"], run["seconds"], run["buffered"]
        self.window, self.records = run["window"], run["records"]
        self.running_threshold = run["running_threshold"]
        return run["status"]

    def folded(self) -> Parameters:
        """The network as it is used after training: W, a, b, b_pre, threshold, whatever the method."""
        own, zero = self.parameters, torch.zeros_like(self.parameters.b)
        if own.log_gain is not None and own.magnitude_bias is not None:
            # a (gain z + shift) with z > -b and gain z + shift > 0 is (a gain) y with y = z + shift / gain > threshold.
            gain = own.log_gain.exp()
            b = own.magnitude_bias / gain
            return Parameters(own.W, own.a * gain, b, own.b_pre, (b - own.b).clamp(min=0))
        bar = own.threshold if own.threshold is not None else zero + self.running_threshold
        return Parameters(own.W, own.a, own.b, own.b_pre, bar)

    def fit(self, status: Literal["finished", "diverged"]) -> Fit:
        names = list(self.records[0]) if self.records else ["step", "loss", "mean_l0", "dead"]
        history = {name: np.array([row[name] for row in self.records]) for name in names}
        arrays = {name: value.cpu().numpy() for name, value in self.folded().tensors().items()}
        start = start_directions(self.seed, self.training.neurons, self.source.d, self.training.dtype)
        return Fit(
            **arrays, W_start=start, history=history, status=status, steps=self.t,
            seconds=self.seconds, training=self.training, targets=self.training.targets(),
            engine=self.engine_name, device=self.device.type, threads=self.threads,
        )  # fmt: skip


def _identity_of(checkpoint: Path | None) -> dict[str, Any]:
    """The identity in a checkpoint, or nothing."""
    if checkpoint is None or not checkpoint.exists():
        return {}
    return load_tensors(checkpoint)[1].get("identity", {})


def fit(
    source: Source | np.ndarray | Tensor,
    training: Training,
    seed: int,
    *,
    device: str = "auto",
    engine: EngineName = "auto",
    threads: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    record_every: int | None = None,
    watch: Sequence[int] = (),
    observe: Observer | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Fit:
    """Train one sparse autoencoder.

    Args:
        source: batches of activations; `World.stream(seed)`, `ActivationMatrix`, a matrix (N, d) itself, or
            your own `Source`.
        training: method, width, steps and settings.
        seed: decides the initial W (stream "initialisation"). The source has a seed of its own.
        device: "auto" (first GPU, else CPU), "cpu", "cuda", "cuda:1", ...
        engine: "auto", "sparse", "torch" or "reference"; all compute the same step.
        threads: on the CPU; None chooses by the size of a step.
        checkpoint: file to continue from if it exists and to save to every `checkpoint_seconds` and at
            the end. A checkpoint of another configuration is refused.
        checkpoint_seconds: time between two saves; any value gives the same numbers.
        record_every: steps between two lines of history; None: 200 lines per run.
        watch: neurons whose bias (`bias_m`) and activation frequency since the last line (`frequency_m`) join
            every line of history.
        observe: called with (step, W, b) at every line of history, at step 0 too; its values join the line.
        progress: called with (step, loss) after every step.

    Returns:
        `Fit`; status "diverged" if the loss stopped being finite, with the parameters as they were then.

    Raises:
        RequestError: an impossible request, or a checkpoint that cannot be continued.
    """
    if isinstance(source, np.ndarray | Tensor):
        source = ActivationMatrix(source, seed)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    # What was left open is taken as the checkpoint has it: the same command continues on another machine.
    known = _identity_of(checkpoint)
    device = known.get("device", device) if device == "auto" else device
    place = choose_device(device)
    engine = known.get("engine", engine) if engine == "auto" else engine
    if threads is None:
        threads = known.get("threads") or choose_threads(training, source.d)
    threads = whole("threads", threads, 1)
    every = record_every or known.get("record_every") or max(1, training.steps // 200)
    every = whole("record_every", every, 1)
    watch = [whole("watched neuron", m, 0, training.neurons - 1) for m in watch]
    with torch_threads(threads), torch.no_grad():
        run = _Run(source, training, seed, place, engine, threads)
        run.watch = watch
        if getattr(run.engine, "team", None) is not None:
            torch.set_num_threads(1)  # its team is the parallelism
        identity = {
            "training": to_config(training), "source": to_config(source.config()), "seed": seed,
            "engine": run.engine_name,
            "device": place.type, "threads": threads, "record_every": every,
        }  # fmt: skip
        identity["fingerprint"] = fingerprint(identity)
        identity["versions"] = {"torch": torch.__version__, "numpy": np.__version__, "numba": numba_version()}
        status: Any = "running"
        if checkpoint is not None and checkpoint.exists():
            status = run.load(checkpoint, identity)
            if status != "running":
                return run.fit(status)
        began = saved = time.perf_counter()
        before = run.seconds
        if not run.records:
            run.record(observe)
        try:
            while run.t < training.steps and status == "running":
                loss = run.advance()
                due = run.t % every == 0 or run.t == training.steps
                if not np.isfinite(loss) or (due and not run.is_finite()):
                    status = "diverged"
                if due or status == "diverged":
                    run.record(observe)
                now = time.perf_counter()
                run.seconds = before + now - began
                if checkpoint is not None and now - saved >= checkpoint_seconds:
                    run.save(checkpoint, identity, status)
                    saved = time.perf_counter()
                if progress is not None:
                    progress(run.t, loss)
        except KeyboardInterrupt:
            # Between two steps the state is whole; in the middle of one the last checkpoint stands.
            if checkpoint is not None and run.consistent:
                run.save(checkpoint, identity, status)
            raise
        status = "finished" if status == "running" else status
        if checkpoint is not None:
            run.save(checkpoint, identity, status)
        return run.fit(status)
