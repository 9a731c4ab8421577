"""One competitor of `sae-recovery bench` in a process of its own: `python bench_worker.py NAME SHAPE_JSON`.

Protocol: prints "ready"; then, for each line with a number of repetitions on standard input, one line of
JSON with `seconds` (a list) and `peak` (bytes, highest resident size so far). A process of its own, since an
allocator is tuned at the start of a process, and peers live in another environment: this file runs there too,
so what it needs is imported where it is used. SAELens, scikit-learn and SPAMS are never installed by us.
"""

import importlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Shape = dict[str, Any]
Step = Callable[[], object]


def data(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Batch (batch, d) and weights (M, d), rows of unit norm, float32; the same in every process."""
    rng = np.random.default_rng(shape["seed"])
    if shape.get("activations"):
        W = rng.standard_normal((shape["M"], shape["d"]), dtype=np.float32)
        return batches(shape)[0], W / np.linalg.norm(W, axis=1, keepdims=True)
    X, W = (rng.standard_normal((rows, shape["d"]), dtype=np.float32) for rows in (shape["batch"], shape["M"]))
    return tuple(A / np.linalg.norm(A, axis=1, keepdims=True) for A in (X, W))  # type: ignore[return-value]


def batches(shape: Shape) -> list[np.ndarray]:
    """Real activations in batches of the shape, centred, rows of unit norm, float32."""
    X = np.load(shape["activations"], mmap_mode="r")
    size = shape["batch"]
    return [np.ascontiguousarray(X[start : start + size]) for start in range(0, len(X) - size + 1, size)]


WARM = 100
"""Training steps before the first one that is timed: the activation frequencies are those of a run."""


def trained(name: str, shape: Shape) -> Step:
    """Whole steps of a run on a file of activations after `WARM` of them, batch reading included: "fit-gba",
    "fit-topk", "fit-batchtopk"."""
    import torch

    from simulator import GBA, ActivationMatrix, BatchTopK, TopK, Training
    from simulator.train import _Run

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    k = max(1, round(shape["p"] * shape["M"]))
    method = {"fit-gba": GBA(buffer=1_024), "fit-topk": TopK(k), "fit-batchtopk": BatchTopK(k)}[name]
    start = "quantile" if name == "fit-gba" else "zero"
    training = Training(method, shape["M"], 10**6, shape["batch"], learning_rate=3e-3, start_bias=start)
    source = ActivationMatrix(shape["activations"], shape["seed"])
    run = _Run(source, training, shape["seed"], torch.device("cpu"), "auto", shape["threads"])
    torch.set_num_threads(1)
    for _ in range(WARM):
        run.advance()
    return run.advance


def ours(name: str, shape: Shape) -> Step:
    """ "METHOD/ENGINE[/train]": a step, or a whole training step with optimiser and bias adaptation's counts."""
    import torch

    from simulator.engine import make_engine
    from simulator.methods import BA, L1, TopK
    from simulator.optimiser import AdamW
    from simulator.sae import Parameters
    from simulator.sparse import SparseEngine
    from simulator.training import quantile_bias

    torch.set_grad_enabled(False)
    kind, engine_name, *whole = name.split("/")
    X, W = (torch.from_numpy(A) for A in data(shape))
    M, d, p, threads = shape["M"], shape["d"], shape["p"], shape["threads"]
    method = {"ba": BA(min(p, 0.99)), "topk": TopK(max(1, round(p * M))), "l1": L1(0.01)}[kind]
    b = torch.from_numpy(quantile_bias(np.full(M, p), d, None)).float()
    relu = kind == "topk"
    parameters = Parameters(W, torch.full((M,), 0.1), torch.zeros(M) if relu else b, torch.zeros(d))
    gate = "relu" if relu else "jumprelu"
    if engine_name in ("sparse", "float32"):
        torch.set_num_threads(1)
        engine: Any = SparseEngine(method, gate, threads, bf16=None if engine_name == "sparse" else False)
    else:
        torch.set_num_threads(threads)
        engine = make_engine(engine_name, method, gate, torch.device("cpu"), threads, M, len(X))  # type: ignore[arg-type]
    if not whole:
        return lambda: engine.step(parameters, X)
    trained = ("W", "a", "b_pre", "b") if relu else ("W", "a", "b_pre")
    # A rate of nearly zero: the activation frequency stays what the row says.
    optimiser = AdamW(parameters, trained, 1e-9, 0.0, (0.9, 0.999), 1e-8, True, getattr(engine, "team", None))
    done = 0

    def train() -> None:
        nonlocal done
        done += 1
        optimiser.update(parameters, engine.step(parameters, X), done)

    return train


def encoder(shape: Shape) -> Step:
    """The encoder product alone: the best of several blocked float32 products, output kept in cache."""
    import torch

    from simulator.team import Team

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    X, W = (torch.from_numpy(A) for A in data(shape))
    team, N, M = Team(shape["threads"]), shape["batch"], shape["M"]

    def product(rows: int) -> Step:
        blocks = torch.empty(team.size, rows, N)

        def part(index: int) -> None:
            low, high = team.share(index, M)
            for first in range(low, high, rows):
                past = min(first + rows, high)
                torch.mm(W[first:past], X.T, out=blocks[index, : past - first])

        return lambda: team.run(part)

    choices = [product(min(rows, M)) for rows in (128, 256, 512)]

    def seconds(step: Step) -> float:
        step()
        return min(timed(step) for _ in range(3))

    return min(choices, key=seconds)


def saelens(kind: str, shape: Shape) -> Step:
    """A step of SAELens' own trainer (forward, backward, clipping, Adam, its counts), float32."""
    import torch

    sae_lens: Any = importlib.import_module("sae_lens")
    config: Any = importlib.import_module("sae_lens.config")
    trainer_module: Any = importlib.import_module("sae_lens.training.sae_trainer")
    torch.set_num_threads(shape["threads"])
    X, W = (torch.from_numpy(A) for A in data(shape))
    real = bool(shape.get("activations"))
    names = {"topk": "TopKTrainingSAE", "batchtopk": "BatchTopKTrainingSAE"}
    k = max(1, round(shape["p"] * shape["M"]))
    setting = getattr(sae_lens, f"{names[kind]}Config")(d_in=shape["d"], d_sae=shape["M"], k=k, device="cpu")
    sae = getattr(sae_lens, names[kind])(setting)
    with torch.no_grad():
        sae.W_enc.copy_(W.T)
        sae.W_dec.copy_(W)
    training = config.SAETrainerConfig(
        total_training_samples=1 << 40, train_batch_size_samples=len(X), lr=3e-4 if real else 1e-9,
        lr_end=3e-4 if real else 1e-9,
    )  # fmt: skip
    trainer = trainer_module.SAETrainer(cfg=training, sae=sae, data_provider=iter(()))
    if not real:
        return lambda: trainer._train_step(sae=sae, sae_in=X)
    endless = itertools.cycle([torch.from_numpy(batch) for batch in batches(shape)])
    for _ in range(WARM):
        trainer._train_step(sae=sae, sae_in=next(endless))
    return lambda: trainer._train_step(sae=sae, sae_in=next(endless))


def sklearn(shape: Shape) -> Step:
    """One partial_fit of MiniBatchDictionaryLearning with orthogonal matching pursuit, k = p M."""
    decomposition: Any = importlib.import_module("sklearn.decomposition")
    X, W = data(shape)
    k = max(1, round(shape["p"] * shape["M"]))
    model = decomposition.MiniBatchDictionaryLearning(
        shape["M"], batch_size=len(X), dict_init=W, fit_algorithm="lars", transform_n_nonzero_coefs=k, alpha=0.3,
        random_state=0,
    )  # fmt: skip
    return lambda: model.partial_fit(X)


def spams(shape: Shape) -> Step:
    """One iteration of online dictionary learning (trainDL) on the batch, from the same start."""
    module: Any = importlib.import_module("spams")
    X, W = (np.asfortranarray(A.T) for A in data(shape))
    return lambda: module.trainDL(
        X, D=W, K=shape["M"], lambda1=0.3, iter=1, batchsize=shape["batch"], numThreads=shape["threads"], verbose=False
    )


def make(name: str, shape: Shape) -> Step:
    """The competitor of that name."""
    peers: dict[str, Callable[[Shape], Step]] = {
        "encoder": encoder,
        "fit-gba": lambda s: trained("fit-gba", s),
        "fit-topk": lambda s: trained("fit-topk", s),
        "fit-batchtopk": lambda s: trained("fit-batchtopk", s),
        "saelens-topk": lambda s: saelens("topk", s),
        "saelens-batchtopk": lambda s: saelens("batchtopk", s),
        "sklearn": sklearn,
        "spams": spams,
    }
    return peers[name](shape) if name in peers else ours(name, shape)


def timed(step: Step) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak() -> int:
    """Highest resident size of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(name: str, shape: Shape) -> None:
    """Serve repetitions until standard input ends."""
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no reply
    step = make(name, shape)
    step()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        answer = {"seconds": [timed(step) for _ in range(int(line))], "peak": peak()}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
