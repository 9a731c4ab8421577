"""Target activation frequencies for GBA from the data, without knowing how often features occur.

What decides is the typical frequency of the features that can be learned: targets far above it make neurons that add
up several features, and the network far more active than the data. So a short pilot run of GBA over the paper's broad
range comes first, and the pre-activations z = w . x of its neurons are looked at. A neuron that has turned towards a
feature has a few large z (the feature is there) far outside the bulk (it is not), whatever its own target made of its
bias. Of z = h B + rest, B ~ Bernoulli(f), the third and fourth cumulants k_3, k_4 are f h^3 and f h^4 up to factors
1 + O(f) as long as those of the rest are small, and they are: cumulants of independent parts add up, and those of
a Gaussian are zero. Hence, without fitting anything,

    height        h = k_4 / k_3
    frequency     f_hat = k_3^4 / k_4^3       (f (1 - f) (1 - 2 f)^4 / (1 - 6 f (1 - f))^3 for the rest Gaussian)
    on            h > 3 standard deviations of z: the neuron has turned towards something rare

What occurs in more than about 6 % of the samples is never "on"; it does no harm to learn it with a lower target. The
range is f_hat / 6 to 3 f_hat for the median of f_hat over the neurons that are on: with the true median in its place
nearly all worlds that were tried did best there (docs/compare.md).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from simulator import GBA, Training, fit
from simulator.adaptation import OneSided, Rule
from simulator.checks import real, whole
from simulator.errors import RequestError

PILOT_HTF, PILOT_LTF, PILOT_GROUPS = 0.1, 1e-3, 10
"""Range of the pilot: the paper's."""
SHARE, HASTE = 0.1, 2.0
"""Of the pilot: its share of the steps, and its learning rate over the run's (it need not converge)."""
NEURONS_PER_DIMENSION = 4
"""Width of the pilot over d, at most that of the run: in wider ones more neurons turn to rare combinations."""
HIGHEST, LOWEST, GROUPS = 3.0, 1 / 6, 6
"""htf and ltf over the median of f_hat, and number of groups."""
OUTSIDE = 3.0
"""Standard deviations by which the height of a neuron that is on lies above its mean."""
LEAST_NEURONS, LEAST_SHARE = 5, 0.02
"""Neurons that must be on for the pilot to say anything."""
MEASURED = 8_192
"""Samples on which the pre-activations are measured."""
_BLOCK = 1 << 22
VERSION = 1
"""Raised whenever the choice changes."""


@dataclass(frozen=True)
class ChosenTargets:
    """A range for GBA and what it is based on."""

    htf: float
    ltf: float
    groups: int
    frequency: float | None
    """Median of f_hat over the neurons that are on; None where too few are, and the range is the pilot's own."""
    on: float
    """Share of the pilot's neurons that are on."""
    samples: int
    """Samples that pilot and measurement took."""

    def method(self, rule: Rule | None = None, buffer: int = 5_120) -> GBA:
        """GBA with these targets."""
        return GBA(self.htf, self.ltf, self.groups, OneSided() if rule is None else rule, buffer)

    def training(self, training: Training) -> Training:
        """The run that is left after the pilot: these targets, and fewer steps by the samples that the pilot took."""
        known = training.method
        rule, buffer = (known.rule, known.buffer) if isinstance(known, GBA) else (None, 5_120)
        steps = max(1, training.steps - -(-self.samples // training.batch))
        return replace(training, method=self.method(rule, buffer), steps=steps)


def choose_targets(source: Any, training: Training, seed: int, *, threads: int | None = 1) -> ChosenTargets:
    """Run the pilot on the first batches of a source, measure on the batches after them, choose a range.

    Args:
        source: batches as `simulator.fit` takes them: a world's stream, a matrix, a store of activations.
        training: of the run that is to follow; its method must be GBA. The pilot takes a tenth of its steps, with the
            same batch, and learns twice as fast.
        seed: of the run.
        threads: of the pilot.

    Raises:
        RequestError: another method than GBA, or fewer than 10 steps.
    """
    if not isinstance(training.method, GBA):
        raise RequestError(f"targets are chosen for GBA, not for {type(training.method).__name__}")
    if training.steps < 10:
        raise RequestError(f"steps = {training.steps} leave no room for a pilot; take at least 10")
    steps = max(1, round(SHARE * training.steps))
    # The measurement must not eat up a short run either.
    batches = max(1, min(-(-MEASURED // training.batch), steps))
    method = GBA(PILOT_HTF, PILOT_LTF, PILOT_GROUPS, training.method.rule, training.method.buffer)
    pilot = replace(
        training,
        method=method,
        neurons=min(training.neurons, NEURONS_PER_DIMENSION * int(source.d)),
        steps=steps,
        decay=0.0,
        start_bias="quantile",
        learning_rate=HASTE * training.learning_rate,
    )
    outcome = fit(source, pilot, seed, device="cpu", threads=threads)
    samples = (steps + batches) * training.batch
    if outcome.status != "finished":
        return ChosenTargets(PILOT_HTF, PILOT_LTF, PILOT_GROUPS, None, 0.0, samples)
    raw = [np.asarray(torch.as_tensor(source.batch(steps + t, training.batch)).cpu()) for t in range(batches)]
    X = outcome.prepare(np.concatenate(raw))
    frequency, on = feature_frequencies(X - outcome.b_pre, outcome.W)
    return _range(frequency[on], float(on.mean()), samples)


def _range(frequency: Float[np.ndarray, " neurons"], on: float, samples: int) -> ChosenTargets:
    if len(frequency) < LEAST_NEURONS or on < LEAST_SHARE:
        return ChosenTargets(PILOT_HTF, PILOT_LTF, PILOT_GROUPS, None, on, samples)
    middle = float(np.median(frequency))
    return ChosenTargets(min(0.5, HIGHEST * middle), LOWEST * middle, GROUPS, middle, on, samples)


def feature_frequencies(
    X: Float[np.ndarray, "N d"], W: Float[np.ndarray, "M d"], *, outside: float = OUTSIDE
) -> tuple[Float[np.ndarray, " M"], np.ndarray]:
    """(f_hat, on) of the module's docstring for every row of W.

    Args:
        X: (N, d), centred inputs. W: (M, d). outside: standard deviations that the height must exceed.

    Returns:
        Estimated frequency of what each neuron has turned towards (NaN where it is not on), and the mask of those
        that are on, (M,).
    """
    real("outside", outside, 0)
    whole("number of samples", len(X), 2)
    X, W = np.asarray(X, dtype=np.float32), np.asarray(W, dtype=np.float32)
    found, on = np.full(len(W), np.nan), np.zeros(len(W), dtype=bool)
    step = max(1, _BLOCK // len(X))
    for first in range(0, len(W), step):
        z = (X @ W[first : first + step].T).astype(np.float64)
        z -= z.mean(axis=0)
        square = z * z
        m2, m3, m4 = square.mean(axis=0), (square * z).mean(axis=0), (square * square).mean(axis=0)
        k4 = m4 - 3 * m2**2
        usable = (m3 > 0) & (k4 > 0) & (m2 > 0)
        height = np.divide(k4, m3, out=np.zeros_like(m3), where=usable)
        mine = usable & (height > outside * np.sqrt(m2))
        on[first : first + step] = mine
        found[first : first + step] = np.divide(m3, height**3, out=np.full_like(m3, np.nan), where=mine)
    return found, on
