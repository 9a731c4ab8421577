"""The typed options of the command line, and the worlds and trainings that they describe.

Light on purpose: `--help` and bad options are answered without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from figures.learner import Learner

if TYPE_CHECKING:
    from figures.cells import Cell
    from simulator import World


RECIPES = ("synth-sae-bench", "synth-sae-bench-unscaled")
"""Worlds with names."""


@dataclass(frozen=True)
class Verify(Learner):
    """Sample a world with planted features, train a sparse autoencoder on it, say which features were recovered."""

    preset: str | None = None
    """Run a whole table instead of one cell: first-recovery, thousand-features, imbalanced-toy,
    imbalanced-toy-trials, resonance, resonance-buffer, robustness-cooccurrence, -coherence, -dictionary,
    -frequencies, -coefficients, -noise. Only --out, --seeds, --jobs, --size, --json and --quiet apply then."""

    # The world.
    recipe: str | None = None
    """synth-sae-bench or synth-sae-bench-unscaled, the field's benchmark at --n and --d (--n of at least 128), or a
    folder with a saved SAELens SyntheticModel, instead of the options of a world."""
    n: int = 128
    """Number of planted features."""
    d: int = 42
    """Dimension of the activations; n > d is superposition."""
    s: tuple[int, ...] = (3,)
    """Active features per sample. Several numbers: a mixture, each for an equal share of the samples."""
    support: Literal["exactly", "bernoulli", "paired"] = "exactly"
    """Law of the supports: exactly s of n; independent with mean s; exactly s with co-occurring pairs."""
    rho: float = 0.5
    """With --support paired: P(partner active | feature active)."""
    zipf: float = 0.0
    """Exponent of Zipf feature frequencies; 0: all equal."""
    dictionary: Literal["gaussian", "sphere", "orthonormal", "coherent"] = "gaussian"
    """Law of the features V."""
    mean_cosine: float = 0.3
    """With --dictionary coherent: mean cosine between two features."""
    features: Path | None = None
    """A .npy or .safetensors file with V itself, n x d, instead of a law."""
    coefficients: Literal["constant", "uniform", "exponential", "half-normal"] = "constant"
    """Law of the non-zero coefficients."""
    unit_rows: bool = True
    """Scale each row of H to unit norm."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on each coordinate."""
    activations: Path | None = None
    """A .npy or .safetensors matrix of activations, or a store of sae-recovery capture, instead of a world; recovery is
    then unknown."""
    layer: str | None = None
    """Layer of a store that holds several."""

    config: Path | None = None
    """Repeat the run of this result.json, or of a configuration that the explorer gave, instead of the options of a
    world and a training."""

    # The run.
    seed: int = 0
    """Decides everything random: V, H, initialisation, batches, each from a stream of its own."""
    samples: int = 20_000
    """Fresh samples on which codes are judged."""
    references: bool = True
    """Also judge the true dictionary, random ones and k-means on the same samples."""
    out: Path | None = None
    """Report folder. The same command continues an unfinished one and prints a finished one again.
    Default: runs/ and a hash of the options."""
    explain: int | None = None
    """Say why this feature was or was not learned."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""
    quiet: bool = False
    """No progress bar."""
    device: str = "auto"
    """auto (first GPU, else CPU), cpu, cuda, ..."""
    engine: Literal["auto", "sparse", "torch", "reference"] = "auto"
    """How the step is computed; all give the same step."""
    threads: int | None = None
    """Threads on the CPU; default: one for small steps, else all."""
    checkpoint_seconds: float = 20.0
    """Time between two checkpoints; any value gives the same numbers."""

    # Presets.
    seeds: tuple[int, ...] | None = None
    """Seeds of a preset instead of its own."""
    jobs: int = 0
    """Cells of a preset side by side, one thread each; 0: as many as cores."""
    size: Literal["tiny", "full"] = "full"
    """Size of a preset: tiny takes seconds and shows only that it runs."""

    def refuse_idle(self) -> None:
        """Refuse options that were given and would change nothing, as in `refuse`."""
        data, law = self.activations is not None, self.features is None
        folder = self.recipe is not None and self.recipe not in RECIPES
        world = ("n", "d", "s", "support", "rho", "zipf", "dictionary", "mean_cosine", "features", "coefficients",
                 "unit_rows", "noise")  # fmt: skip
        belongs = {
            **dict.fromkeys(world, (not data, "a world, not to --activations")),
            "rho": (not data and self.support == "paired", "--support paired"),
            "mean_cosine": (not data and law and self.dictionary == "coherent", "--dictionary coherent"),
            "dictionary": (not data and law, "a law of V, not to --features"),
            **self.belongs(),
            **dict.fromkeys(("seeds", "jobs", "size"), (False, "--preset")),
        }  # fmt: skip
        if not law:
            belongs |= dict.fromkeys(("n", "d"), (False, "a law of V; --features brings its own n and d"))
        if self.recipe is not None:
            belongs |= dict.fromkeys(world[2:], (False, "a world of your own, not to --recipe"))
            belongs["recipe"] = (not data, "a world, not to --activations")
        if self.config is not None:
            chosen = {"seed", "samples", "references", "recipe", "features", "activations", "layer"}
            learner = {field.name for field in fields(Learner)}
            belongs |= dict.fromkeys(chosen | set(world) | learner, (False, "a run of your own, not to --config"))
        if folder:
            belongs |= dict.fromkeys(("n", "d"), (False, "a named recipe; a folder brings its own n and d"))
        self.refuse(belongs)

    def cell(self) -> Cell:
        """What is computed.

        Raises:
            RequestError: an impossible combination, or a stored configuration that cannot be repeated.
        """
        from figures.cells import Cell
        from figures.run_options import chosen_activations

        if self.config is not None:
            from figures.stored_config import stored_cell

            return stored_cell(self.config)
        activations = chosen_activations(self.activations, self.layer)
        return Cell(
            self.world(), self.training(), self.seed, activations, self.samples, self.references,
            pilot=self.targets == "pilot",
        )  # fmt: skip

    def world(self) -> World | None:
        """The world that the options describe; None with --activations."""
        if self.activations is not None:
            return None
        from simulator import (
            Bernoulli,
            Coherent,
            Constant,
            ConstantCoefficients,
            Exactly,
            Exponential,
            Gaussian,
            GivenDictionary,
            HalfNormal,
            Mixture,
            Orthonormal,
            Paired,
            RequestError,
            Uniform,
            UnitSphere,
            World,
            Zipf,
            read_synthetic_model,
            synth_sae_bench,
        )  # fmt: skip
        from simulator.storage import read_matrix

        if self.recipe in RECIPES:
            return synth_sae_bench(self.n, self.d, scale_children=self.recipe == RECIPES[0])
        if self.recipe is not None:
            if not Path(self.recipe).is_dir():
                raise RequestError(f"--recipe {self.recipe}: no such folder; named recipes are {', '.join(RECIPES)}")
            return read_synthetic_model(self.recipe)
        frequencies = Zipf(self.zipf) if self.zipf else Constant()
        sizes = tuple(self.s)
        if not sizes:
            raise RequestError("s needs at least one number of active features, e.g. --s 3")
        if len(sizes) > 1:
            if self.support != "exactly" or self.zipf:
                raise RequestError(f"several s ({self.s}) go with --support exactly and equal frequencies only")
            support = Mixture(sizes, (1 / len(sizes),) * len(sizes))
        elif self.support == "paired":
            if self.zipf:
                raise RequestError("--support paired keeps all frequencies equal; leave --zipf out")
            support = Paired(sizes[0], self.rho)
        elif self.support == "bernoulli":
            support = Bernoulli(sizes[0], frequencies)
        else:
            support = Exactly(sizes[0], frequencies)
        n, d = self.n, self.d
        if self.features is not None:
            matrix = read_matrix(self.features, mapped=False)
            n, d = matrix.shape
            dictionary = GivenDictionary(matrix)
        else:
            dictionary = {
                "gaussian": Gaussian, "sphere": UnitSphere, "orthonormal": Orthonormal,
                "coherent": lambda: Coherent(self.mean_cosine),
            }[self.dictionary]()  # fmt: skip
        coefficients = {
            "constant": ConstantCoefficients, "uniform": Uniform, "exponential": Exponential,
            "half-normal": HalfNormal,
        }[self.coefficients]()  # fmt: skip
        return World(n, d, support, dictionary, coefficients, self.unit_rows, self.noise)


@dataclass(frozen=True)
class Check:
    """Compare any dictionary with any other: which rows of V does W recover? No training needed."""

    V: Annotated[Path, tyro.conf.Positional]
    """The true features, n x d: a .npy or .safetensors file."""
    W: Annotated[Path, tyro.conf.Positional]
    """The learned directions, M x d: a .npy or .safetensors file (a fit.safetensors works)."""
    untrained: Path | None = None
    """The network before training, M x d, for the recovery rate that it already had. Default: random
    directions, as many as W has."""
    frequencies: Path | None = None
    """Occurrence frequency of each feature, n numbers in a .npy file, for recovery by frequency."""
    tau: tuple[float, ...] = (0.8, 0.9)
    """Cosine thresholds."""
    seed: int = 0
    """Seed of the random dictionaries behind the chance levels."""
    explain: int | None = None
    """Say what is known about this feature."""
    out: Path | None = None
    """Folder for result.json and features.csv."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class Bench:
    """Time a training step: beside a dense autograd step, the encoder product alone, and other libraries."""

    size: Literal["table", "corners", "growth", "all", "tiny", "peers", "bridge"] = "table"
    """What is timed: five shapes with all competitors; corners where a dense step could be faster; growth with every
    size; all three; or one small shape. peers: training steps of TopK and BatchTopK on synth-sae-bench at 1,024 x 128,
    ours beside SAELens'. bridge: capture with the packaged model, training on --store."""
    store: Path | None = None
    """Activations for --size bridge."""
    layer: str | None = None
    """Layer of a store that holds several."""
    rounds: int = 7
    """Interleaved rounds behind every median."""
    peer_python: Path | None = None
    """Python of an environment with sae-lens, scikit-learn or spams: they are timed too, at widths up to 2,048."""
    out: Path = Path("runs/bench")
    """Folder for the CSV files and the pictures."""
    json: bool = False
    """Print one JSON object on standard output instead of the tables."""


@dataclass(frozen=True)
class HeatMap:
    """Recovery over the plane of d and p at the paper's full size (n = 65,536, M = 262,144), cell by cell."""

    d: tuple[float, ...] = ()
    """Dimensions, of 48.5, 58.4, 70.2, 84.4, 101.6, 122.2, 147, 176.9, 212.8. Default: all."""
    p: tuple[float, ...] = ()
    """Target frequencies, of 3.2e-5, 4.4e-5, 6e-5, 8.2e-5, 1.11e-4, 1.51e-4, 2.06e-4, 2.8e-4, 3.81e-4. Default: all."""
    size: Literal["full", "eighth", "tiny"] = "full"
    """The paper's size; an eighth of n, M and the batch at the same p / f; or a few seconds to try the command."""
    seed: int = 0
    """Seed of world and training."""
    threads: int | None = None
    """Threads of a cell. Default: as many as torch uses."""
    out: Path | None = None
    """Folder with the finished cells; the same command continues there."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class TheoremOptions:
    """Does a theorem speak about finite worlds, and does it hold there? Hypotheses, real runs, verdict."""

    name: Annotated[Literal["identifiability", "recovery", "finite-recovery", "resonance"], tyro.conf.Positional]
    """Which statement."""
    n: int | None = None
    """Number of features of a world of your own, instead of the default grid (with --d, and --p but for
    identifiability)."""
    d: int | None = None
    """Its dimension."""
    s: int = 3
    """Its active features per sample."""
    neurons: int | None = None
    """Width M. Default: 4 n for resonance, else 65,536."""
    p: float | None = None
    """Target frequency."""
    tau: float = 0.9
    """Cosine that stands for 1 - o(1)."""
    sigma: float = 0.5
    """1 / sigma steps (recovery)."""
    seeds: int | None = None
    """Runs per case. Default: 12 for recovery, 60 for finite-recovery, 8 for resonance."""
    size: Literal["full", "tiny"] = "full"
    """The default grid (minutes), or a few seconds to try the command."""
    centred: bool = True
    """Take the mean off the inputs of Modified BA; it attracts all neurons."""
    control: Literal["none", "oracle", "permuted", "independent", "untrained", "frozen"] = "none"
    """Judge another dictionary in place of the learned one: V itself, V permuted, n independent directions, the
    network before training, or M independent directions."""
    jobs: int = 0
    """Processes; 0: one per core."""
    out: Path | None = None
    """Report folder. The same command continues there."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


@dataclass(frozen=True)
class Identify:
    """Can the rows of V' be turned into V by splitting into groups, convex combination, scaling, permutation?"""

    V: Annotated[Path, tyro.conf.Positional]
    """The features, n x d: a .npy or .safetensors file."""
    V_prime: Annotated[Path, tyro.conf.Positional]
    """The alternative, n' x d."""
    H: Path | None = None
    """Coefficients of V, N x n (.npy): the conditions of its factorisation are checked too."""
    H_prime: Path | None = None
    """Coefficients of V', N x n'."""
    tolerance: float = 0.05
    """epsilon up to which two dictionaries count as equivalent."""
    draws: int | None = None
    """Independent dictionaries behind the chance level. Default: 99, fewer where they are dear."""
    seed: int = 0
    """Of those dictionaries."""
    out: Path | None = None
    """Folder for result.json and the grouping."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""


COMMANDS = {
    "verify": Verify, "check": Check, "bench": Bench, "heat-map": HeatMap, "theorem": TheoremOptions,
    "identify": Identify,
}  # fmt: skip
