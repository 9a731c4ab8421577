"""The support law with a dial for the co-occurrence of features."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulator.checks import at_most_all, real, whole
from simulator.draws import Draw, Rows, distinct_rows, even_rows
from simulator.errors import RequestError


@dataclass(frozen=True)
class Paired:
    """Co-occurring features: i = 2k and 2k + 1 are partners, P(partner active | i active) = rho exactly.

    The dial rho moves the co-occurrence and nothing else: every sample has exactly s active features, every
    f_i = s / n, and the coefficients are drawn as ever. A sample takes c couples and s - 2c single features,
    all from different pairs, uniformly at random; c is one of the two whole numbers next to rho s / 2 with
    E[c] = rho s / 2, so that P(partner | i) = (2 E[c] / n) / (s / n) = rho. Given i, each of the n - 2
    features that are no partner is active with probability (s - 1 - rho) / (n - 2), since s - 1 - rho of
    them are expected; so rho_2 = max(rho, (s - 1 - rho) / (n - 2)). The two are equal at
    rho = (s - 1) / (n - 1), the value of uniform supports.

    Raises:
        RequestError: s < 1, rho outside [0, 2 floor(s / 2) / s], or (later) n odd or too few pairs.
    """

    s: int = 3
    rho: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole("s", self.s, 1))
        rho = real("co-occurrence rho", self.rho, 0, 1)
        reach = 2 * (self.s // 2) / self.s
        if rho > reach + 1e-12:
            raise RequestError(
                f"co-occurrence rho = {rho:g} is out of reach with s = {self.s} active features; "
                f"choose rho <= {reach:.6g}"
            )
        object.__setattr__(self, "rho", rho)

    @property
    def mean_active(self) -> float:
        """s."""
        return float(self.s)

    def check(self, n: int) -> None:
        """RequestError if n is odd, s > n, or the pairs do not suffice."""
        at_most_all("s", self.s, n)
        if n % 2:
            raise RequestError(f"paired features need an even n, not n = {n}")
        couples, _ = self._couples()
        if self.s - couples > n // 2:
            raise RequestError(
                f"s = {self.s} features with {couples} couples need {self.s - couples} pairs, "
                f"but n = {n} has {n // 2}; choose a larger rho or n"
            )

    def feature_frequencies(self, n: int) -> Float[np.ndarray, " n"]:
        """s / n for every feature."""
        return np.full(n, self.s / n)

    def rho_2(self, n: int) -> float | None:
        """max(rho, (s - 1 - rho) / (n - 2)); rho alone for n = 2."""
        return max(self.rho, (self.s - 1 - self.rho) / (n - 2)) if n > 2 else self.rho

    def sampler(self, n: int) -> Draw:
        """Rows with the smaller and with the larger number of couples, drawn apart and then put in place."""
        fewest, extra = self._couples()

        def draw(N: int, rng: np.random.Generator) -> Rows:
            more = rng.random(N) < extra
            features = np.empty((N, self.s), dtype=np.int32)
            for couples, rows in ((fewest, ~more), (fewest + 1, more)):
                if count := int(np.count_nonzero(rows)):
                    features[rows] = self._rows(count, n, couples, rng)
            return even_rows(features)

        return draw

    def _couples(self) -> tuple[int, float]:
        """The smaller number of couples, and the probability of one more."""
        mean = self.rho * self.s / 2
        fewest = math.floor(mean + 1e-12)
        return fewest, max(mean - fewest, 0.0) if mean - fewest > 1e-12 else 0.0

    def _rows(self, N: int, n: int, couples: int, rng: np.random.Generator) -> np.ndarray:
        used = self.s - couples
        first = 2 * distinct_rows(N, n // 2, used, rng)
        coupled = np.zeros((N, used), dtype=bool)
        np.put_along_axis(coupled, distinct_rows(N, used, couples, rng).astype(np.intp), True, axis=1)
        # Of a couple both features are active, of another used pair one of the two.
        second = rng.integers(0, 2, (N, used), dtype=np.int32)
        members = np.stack([np.where(coupled, first, first + second), first + 1], axis=2)
        return members[np.stack([np.ones_like(coupled), coupled], axis=2)].reshape(N, self.s)
