"""The methods of `sae-recovery compare`, each with its one main knob, and the worlds they meet.

What is not tuned is the same for all (learning rate, batch, samples, unit-norm inputs), or a method's own sensible
constant: networks that select the largest pre-activations start at output scale 1 as their authors' do, the others
at the small scale at which each did better in a first look (`Contender.start_scale`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator import (
    BA,
    GBA,
    L1,
    BatchTopK,
    Bernoulli,
    Gated,
    Given,
    JumpReLU,
    Matryoshka,
    Mixture,
    RequestError,
    TopK,
    Training,
    TwoSided,
    World,
    Zipf,
    synth_sae_bench,
)
from simulator.methods import Method

VALIDATION_SEED = 100
"""Of the trials. Competing seeds are others."""


@dataclass(frozen=True)
class Budget:
    """What every method gets, and the sizes of the world.

    Attributes:
        n, d: features and dimension of every world.
        batch, steps: samples per step and steps; batch * steps samples in all, a pilot run's included.
        learning_rate, decay: as in `Training`.
        samples: fresh samples on which codes are judged.
        trials: knob values that every method tries at first on the validation seed; two more follow around the best.
    """

    n: int
    d: int
    batch: int
    steps: int
    learning_rate: float
    decay: float = 0.2
    samples: int = 10_000
    trials: int = 3

    @property
    def all_trials(self) -> int:
        """What every method and learner tries in both rounds."""
        return self.trials + 2


def _worlds() -> dict[str, tuple[str, Callable[[int, int], World]]]:
    def noisy(n: int, d: int) -> World:
        # Noise of half the length of the signal, whose rows have unit norm.
        return World(n, d, Mixture((2, 3, 4), (1 / 3,) * 3), noise=0.5 / d**0.5)

    return {
        "mixture": ("the paper's: 2, 3 or 4 of n features, all as frequent", lambda n, d: World(
            n, d, Mixture((2, 3, 4), (1 / 3,) * 3))),
        "zipf": ("independent features, 4 on average, Zipf frequencies", lambda n, d: World(
            n, d, Bernoulli(4, Zipf(0.75)))),
        "synth-sae-bench": ("the field's benchmark: trees, exclusive siblings, copula; children scaled",
                            lambda n, d: synth_sae_bench(n, d)),
        "synth-sae-bench-unscaled": ("the same, children not scaled by their parents",
                                     lambda n, d: synth_sae_bench(n, d, scale_children=False)),
        "noise": ("the mixture with noise of half the signal's length", noisy),
        "dense": ("4 of 100 features occur in a fifth of all samples, the others as in the mixture", dense),
    }  # fmt: skip


def dense(n: int, d: int) -> World:
    """Independent features: a share of 4 / 100 with frequency 0.2, all others with 3 / n."""
    shares = np.full(n, 3 / n)
    shares[: max(1, round(0.04 * n))] = 0.2
    return World(n, d, Bernoulli(float(shares.sum()), Given(shares / shares.sum())))


WORLDS = _worlds()
"""Name -> what it is, and the world for n and d."""


def perfect_l0(world: World, M: int) -> float:
    """Mean number of active features among the min(M, n) most frequent: the L0 of a perfect dictionary of M rows."""
    return float(np.sort(world.frequencies())[::-1][:M].sum())


@dataclass(frozen=True)
class Contender:
    """A method with its knob.

    Attributes:
        knob: what is tuned, in words; empty: nothing.
        values: (world, M, trials) -> values to try, in ascending order of the knob.
        method: (value, world, M) -> the method.
        start_scale: output scale of the neurons before training.
        pilot: whether the targets come from a pilot run on the same seed's data.
    """

    knob: str
    values: Callable[[World, int, int], list[float]]
    method: Callable[[float, World, int], Method]
    start_scale: float = 0.1
    pilot: bool = False
    whole: bool = False
    """Whether the knob is a whole number."""
    ends: Callable[[int], tuple[float, float]] = lambda M: (0.0, np.inf)
    """M -> least and largest value that the method can take."""

    def refined(self, tried: Sequence[float], best: float, M: int) -> list[float]:
        """Two more values: half way (in logarithm) to both neighbours of the best one; where it is the first or last
        of those tried, a whole step further out on that side. Fewer where the method has no others."""
        known = sorted(set(tried))
        at = known.index(best)
        # Ratios to the neighbours; None where there is none.
        down = best / known[at - 1] if at else None
        up = known[at + 1] / best if at + 1 < len(known) else None
        step = down or up or 2.0
        wanted = [best / (down**0.5 if down else step), best * (up**0.5 if up else step)]
        # What takes the place of one that was tried already, or that the method cannot take.
        spare = [best * step**power for power in (-0.25, 0.25, -0.75, 0.75, -1, 1, -2, 2, -3, 3)]
        low, high = self.ends(M)
        found: list[float] = []
        for value in (*wanted, *spare):
            value = float(round(value)) if self.whole else float(f"{value:.4g}")
            if low <= value <= high and value > 0 and value not in known and value not in found:
                found.append(value)
        return found[:2]

    def training(self, value: float, world: World, M: int, budget: Budget) -> Training:
        """The training at a value of the knob."""
        method = self.method(value, world, M)
        return Training(
            method, M, budget.steps, budget.batch, learning_rate=budget.learning_rate, decay=budget.decay,
            start_scale=self.start_scale, start_bias="quantile" if isinstance(method, BA | GBA) else "zero",
        )  # fmt: skip


def _ladder(low: float, high: float) -> Callable[[World, int, int], list[float]]:
    """Geometric values between two ends, whatever the world."""
    return lambda world, M, trials: [float(value) for value in np.geomspace(low, high, trials)]


def _around_l0(world: World, M: int, trials: int) -> list[float]:
    """From half to twice the L0 of a perfect dictionary."""
    return [float(value) for value in perfect_l0(world, M) * np.geomspace(0.5, 2, trials)]


def _whole_around_l0(world: World, M: int, trials: int) -> list[float]:
    """The same as whole numbers, no two of them equal."""
    values: list[float] = []
    for value in _around_l0(world, M, trials):
        values.append(float(max(1, round(value), *(int(v) + 1 for v in values))))
    return sorted({min(value, float(M)) for value in values})


def _targets_of_ba(world: World, M: int, trials: int) -> list[float]:
    """From half to eight times the frequency at which M neurons give the L0 of a perfect dictionary."""
    values = perfect_l0(world, M) / M * np.geomspace(0.5, 8, trials)
    return [float(value) for value in np.minimum(values, 0.5)]


GROUPS, LOWEST = 10, 1e-3
"""Of GBA: the paper's number of groups and lowest target of its language-model runs."""


def _range(M: int) -> tuple[float, float]:
    return 2 * LOWEST, 0.9


DEAD_AFTER = 25_000
"""Samples without activation after which the auxiliary loss of the TopK family takes a neuron up."""


CONTENDERS: dict[str, Contender] = {
    "BA": Contender("target p", _targets_of_ba, lambda p, world, M: BA(p), ends=lambda M: (1e-5, 0.9)),
    "GBA": Contender(
        "highest target", _ladder(0.02, 0.5), lambda htf, world, M: GBA(htf, LOWEST, GROUPS), ends=_range
    ),
    "GBA two-sided": Contender(
        "highest target", _ladder(0.02, 0.5), lambda htf, world, M: GBA(htf, LOWEST, GROUPS, TwoSided()), ends=_range
    ),
    "GBA data-driven": Contender(
        "", lambda world, M, trials: [0.0], lambda value, world, M: GBA(0.1, LOWEST, GROUPS), pilot=True
    ),
    "TopK": Contender(
        "k", _whole_around_l0, lambda k, world, M: TopK(int(k), world.d // 2, dead_after=DEAD_AFTER),
        start_scale=1.0, whole=True, ends=lambda M: (1.0, M),
    ),
    "BatchTopK": Contender(
        "k", _around_l0, lambda k, world, M: BatchTopK(k, world.d // 2, dead_after=DEAD_AFTER), start_scale=1.0,
        ends=lambda M: (0.05, M),
    ),
    "Matryoshka": Contender(
        "k", _around_l0, lambda k, world, M: Matryoshka(k, world.d // 2, dead_after=DEAD_AFTER), start_scale=1.0,
        ends=lambda M: (0.05, M),
    ),
    # Window and start of the thresholds as in the source, on the scale of unit-norm inputs: one coordinate's size.
    "JumpReLU": Contender(
        "price of a neuron", _ladder(1e-3, 4e-2), lambda l0, world, M: JumpReLU(l0, world.d**-0.5, world.d**-0.5)
    ),
    "Gated": Contender("L1 weight", _ladder(0.05, 0.5), lambda l1, world, M: Gated(l1)),
    "L1": Contender("L1 weight", _ladder(0.008, 0.06), lambda l1, world, M: L1(l1)),
}  # fmt: skip
"""Name -> contender, in the order of the table."""


def chosen(names: tuple[str, ...], known: dict, what: str) -> tuple[str, ...]:
    """Names from the command line, checked; all where none is given.

    Raises:
        RequestError: an unknown name, or one named twice.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RequestError(f"unknown {what} {unknown[0]!r}; there are {', '.join(map(repr, known))}")
    if len(set(names)) != len(names):
        raise RequestError(f"--{what}s names one twice: {', '.join(names)}")
    return names
