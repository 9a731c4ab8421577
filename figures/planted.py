"""The planted world and the trainings that the figures on language models share.

Figures loss-sparsity, consistency, group-ablation and zscore ask of a planted world what the paper asks of a
language model's activations: features of very different frequency, more of them than dimensions, and a dictionary
that is wider still. All seeds of a size see one and the same V (as they would see one and the same model) and
differ in initialisation and batches; cells are shared between the figures. With --activations the same trainings
run on a matrix of real activations.
"""

from dataclasses import dataclass, replace

from figures.cells import Cell
from simulator import BA, GBA, L1, Bernoulli, HalfNormal, TopK, Training, World, Zipf
from simulator.methods import Method


@dataclass(frozen=True)
class Planted:
    """One size: world, width and budget; the settings of every method, and the one that others are compared at."""

    world: World
    neurons: int
    steps: int
    batch: int
    topk: tuple[int, ...]
    p: tuple[float, ...]
    chosen_k: int
    l1: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
    gba: tuple[tuple[float, float], ...] = ((0.03, 1e-3), (0.1, 1e-4), (0.1, 1e-3), (0.1, 1e-2), (0.3, 1e-3))
    chosen_l1: float = 0.01
    samples: int = 10_000
    buffer: int = 5_120
    """Of BA and GBA."""

    def settings(self) -> list[tuple[str, str, Method]]:
        """Method, knob in words, method object; five or more knob settings each."""
        return [
            *(("TopK", f"K={k}", TopK(k)) for k in self.topk),
            *(("L1", f"λ={weight:g}", L1(weight)) for weight in self.l1),
            *(("BA", f"p={p:g}", BA(p, buffer=self.buffer)) for p in self.p),
            *(("GBA", f"{high:g}..{low:g}", GBA(high, low, buffer=self.buffer)) for high, low in self.gba),
        ]

    def chosen(self) -> list[tuple[str, str, Method]]:
        """The setting of each method whose neurons are looked at one by one; GBA's is the paper's."""
        return [
            ("GBA", "0.1..0.001", GBA(buffer=self.buffer)), ("TopK", f"K={self.chosen_k}", TopK(self.chosen_k)),
            ("L1", f"λ={self.chosen_l1:g}", L1(self.chosen_l1)),
        ]  # fmt: skip

    def cell(self, method: Method, seed: int, neurons: int | None = None) -> Cell:
        """The cell of a method and a seed: the same V, budget and learning rate for all."""
        start = "quantile" if isinstance(method, BA | GBA) else "zero"
        training = Training(
            method, neurons or self.neurons, self.steps, self.batch, learning_rate=3e-3, decay=0.7, start_bias=start
        )
        return Cell(self.world, training, seed, samples=self.samples, references=False, dictionary_seed=0)


def _world(n: int, d: int, active: float, exponent: float) -> World:
    return World(n, d, Bernoulli(active, Zipf(exponent)), coefficients=HalfNormal())


SIZES = {
    "tiny": Planted(
        _world(48, 24, 3, 0.75), 96, 40, 64, (1, 2, 4, 6, 8), (0.01, 0.02, 0.05, 0.1, 0.2), 4, samples=500
    ),
    "small": Planted(
        _world(1_024, 128, 10, 0.75), 4_096, 1_500, 512, (4, 8, 16, 32, 64, 96), (0.002, 0.005, 0.01, 0.02, 0.05), 16
    ),
    "paper": Planted(
        _world(16_384, 1_536, 30, 0.5), 65_536, 20_000, 4_096, (50, 100, 200, 300, 400, 500, 600),
        (0.001, 0.003, 0.01, 0.02, 0.05), 50, samples=50_000,
    ),
}  # fmt: skip
"""small: frequencies from 0.52 down to 0.003. paper: width, dimension, K and lambda of the paper's runs."""


REAL = {
    "tiny": replace(SIZES["tiny"], topk=(2, 4, 8), p=(0.02, 0.05, 0.1), l1=(0.01, 0.003, 0.001), chosen_l1=0.003),
    "small": replace(
        SIZES["small"], steps=1_000, topk=(16, 32, 64), p=(0.005, 0.01, 0.02),
        l1=(0.01, 0.003, 0.001), gba=((0.03, 1e-3), (0.1, 1e-4), (0.1, 1e-3), (0.5, 1e-2)),
        chosen_k=32, chosen_l1=0.003, buffer=1_024,
    ),
    "paper": SIZES["paper"],
}  # fmt: skip
"""For real activations: fewer settings, in the range that they need; `world` plays no part."""


def real(size: str) -> Planted:
    """The trainings on real activations at that size."""
    return REAL["paper" if size == "full" else size]


def planted(size: str) -> Planted:
    """The world of that size; "full" is "paper"."""
    return SIZES["paper" if size == "full" else size]
