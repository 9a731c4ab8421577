"""Search for a grouping of V' that turns it into V, and bounds that no grouping can pass.

Upper end: rows go to their nearest feature, each feature takes its non-negative least squares over its group, then the
worst feature is helped: it may take rows that nobody uses, and rows whose owners stay below its error without them.
Lower end, each certified: (count) fewer rows than features; (cone) a feature's error with all rows at its disposal;
(conflict) if two features both need a row, one of them goes without: epsilon >= the second largest error without it;
(owned) below t every row that some feature cannot do without at t belongs to that feature: if another feature has an
error of at least t without all those rows, epsilon >= t.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.cones import MARGIN, cone_cosine, cosine_of, weights

ROUNDS = 2_000
"""Attempts to help the worst feature."""
OFFERED = 32
"""Rows that a feature in need looks at beyond its own."""
MOST_OWNED, OWNED_LOOKED = 2_000, 8
"""Rows up to which the bound "owned" is looked for, and for how many of the worst features."""
EXCHANGES, EXCHANGED = 4, 8
"""Neighbours with which a stuck feature shares out all rows anew, and rows that are enumerated for it."""


@dataclass(frozen=True)
class Grouping:
    """A grouping of the rows and what it attains.

    Attributes:
        group: feature that each row belongs to, -1 for none, (n',).
        weights: of each row in its group's combination, (n',).
        errors: 1 - cos of each feature with its combination, 1 for an empty group, (n,).
    """

    group: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]
    errors: Float[np.ndarray, " n"]

    @property
    def epsilon(self) -> float:
        """The largest error."""
        return float(self.errors.max())


def search(features: Float[np.ndarray, "n d"], rows: Float[np.ndarray, "k d"]) -> Grouping:
    """A grouping of unit `rows` for unit `features` with a small largest error; deterministic."""
    rounds = int(np.clip(600_000_000 // rows.size, 50, ROUNDS))
    group, omega = _nearest(features, rows), np.zeros(len(rows))
    state = _State(features, rows, group, omega, np.ones(len(features)))
    for i in range(len(features)):
        state.solve(i, np.flatnonzero(group == i))
    stuck = np.zeros(len(features), dtype=bool)
    for _ in range(rounds):
        i = int(np.argmax(np.where(stuck, -1.0, state.errors)))
        # Helping any other feature cannot lower the largest error once the worst is stuck.
        if stuck[i] or state.errors[i] < state.errors.max() - 1e-12 or state.errors[i] < 1e-12:
            break
        if state.help(i):
            stuck[:] = False
        else:
            stuck[i] = True
    return Grouping(state.group, state.omega, state.errors)


def _nearest(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    group = np.full(len(rows), -1)
    for first in range(0, len(rows), 2048):
        cosine = rows[first : first + 2048] @ features.T
        nearest = cosine.argmax(axis=1)
        group[first : first + 2048] = np.where(cosine.max(axis=1) > 0, nearest, -1)
    return group


@dataclass
class _State:
    features: np.ndarray
    rows: np.ndarray
    group: np.ndarray
    omega: np.ndarray
    errors: np.ndarray

    def solve(self, i: int, members: np.ndarray) -> None:
        """Give feature i these rows; those without weight stay its own but count as free."""
        members = np.asarray(members, dtype=int)
        part = weights(self.rows[members], self.features[i])
        self.group[members] = i
        self.omega[members] = part
        self.errors[i] = 1 - cosine_of(self.rows[members], part, self.features[i])

    def help(self, i: int) -> bool:
        """Lower the error of feature i without raising another one to it; False if no way was found."""
        before = self.errors[i]
        mine = np.flatnonzero((self.group == i) & (self.omega > 0))
        residual = self.features[i] - self.omega[mine] @ self.rows[mine]
        gain = self.rows @ residual
        gain[mine] = -np.inf
        offered = np.argsort(-gain)[:OFFERED]
        offered = offered[gain[offered] > 1e-12]
        used = self.omega[offered] > 0
        free, contested = offered[~used], offered[used]
        costs = np.array([self._cost_of_losing(int(j)) for j in contested])
        options = [free] + [
            np.concatenate([free, contested[costs < share * before]]) for share in (0.02, 0.1, 0.3, 0.6, 1 - 1e-9)
        ]
        sizes, best, chosen = set(), before - 1e-9, None
        for option in options:
            if not len(option) or len(option) in sizes:
                continue
            sizes.add(len(option))
            saved = self._saved()
            reached = self._take(i, mine, option)
            if reached < best:
                best, chosen = reached, self._saved()
            self._restore(saved)
        if chosen is None:
            return self._exchange(i, contested)
        self._restore(chosen)
        return True

    def _saved(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.group.copy(), self.omega.copy(), self.errors.copy()

    def _restore(self, saved: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self.group, self.omega, self.errors = (array.copy() for array in saved)

    def _cost_of_losing(self, j: int) -> float:
        """Error that the owner of row j would have without it."""
        owner = int(self.group[j])
        rest = np.flatnonzero((self.group == owner) & (self.omega > 0))
        return self._error(owner, self._with_free(owner, rest[rest != j]))

    def _take(self, i: int, mine: np.ndarray, candidates: np.ndarray) -> float:
        """Give feature i what it wants of these rows; the largest error among it and the losers."""
        allowed = np.concatenate([mine, candidates])
        part = weights(self.rows[allowed], self.features[i])
        taken = allowed[part > 0]
        losers = {int(self.group[j]) for j in taken if self.omega[j] > 0} - {i, -1}
        self.omega[self.group == i] = 0
        self.omega[taken] = 0
        self.solve(i, taken)
        for owner in losers:
            rest = np.flatnonzero((self.group == owner) & (self.omega > 0))
            self.solve(owner, self._with_free(owner, rest))
        return max(float(self.errors[k]) for k in {i, *losers})

    def _exchange(self, i: int, contested: np.ndarray) -> bool:
        """All ways to share the rows of feature i and of one other: enumerated where they are few."""
        before = self.errors[i]
        for owner in list(dict.fromkeys(int(self.group[j]) for j in contested))[:EXCHANGES]:
            used = np.flatnonzero(((self.group == i) | (self.group == owner)) & (self.omega > 0))
            near = self._with_free(i, np.empty(0, dtype=int))[:3]
            rows = np.unique(np.concatenate([used, near]))[:EXCHANGED]
            if not np.isin(used, rows).all():
                continue
            best, split = before - 1e-9, None
            for subset in range(1 << len(rows)):
                mine = (subset >> np.arange(len(rows))) & 1 == 1
                error = self._error(i, rows[mine])
                if error < best:
                    error = max(error, self._error(owner, rows[~mine]))
                    if error < best:
                        best, split = error, mine
            if split is not None:
                self.omega[used] = 0
                self.solve(i, rows[split])
                self.solve(owner, rows[~split])
                return True
        return False

    def _with_free(self, owner: int, rest: np.ndarray) -> np.ndarray:
        """The rows of a feature and the unused ones nearest to it."""
        cosine = self.rows @ self.features[owner]
        cosine[self.omega > 0] = -np.inf
        near = np.argsort(-cosine)[:16]
        near = near[cosine[near] > 0]
        return np.unique(np.concatenate([rest, near]))

    def _error(self, i: int, members: np.ndarray) -> float:
        part = weights(self.rows[members], self.features[i])
        return 1 - cosine_of(self.rows[members], part, self.features[i])


@dataclass(frozen=True)
class Bound:
    """A lower end of epsilon and why no grouping can be below it."""

    epsilon: float
    reason: str


def lower_bound(
    features: Float[np.ndarray, "n d"], rows: Float[np.ndarray, "k d"], errors: Float[np.ndarray, " n"]
) -> Bound:
    """The largest certified bound among those looked for; features with large `errors` are looked at first."""
    n, k = len(features), len(rows)
    if k < n:
        return Bound(1.0, f"{k} rows cannot form {n} groups: one is empty")
    looked = np.argsort(-errors, kind="stable")[: max(6, min(n, 20_000_000 // (k * rows.shape[1])))]
    best = Bound(0.0, "none")
    found: dict[int, np.ndarray] = {}
    for i in looked:
        cosine, omega = cone_cosine(rows, features[i])
        found[int(i)] = omega
        best = _larger(best, Bound(1 - cosine - MARGIN, f"feature {i} is that far from the cone of all rows"))
    rivals = 4 if k * n < 1 << 22 else 2
    tried: dict[tuple[int, int], float] = {}

    def need(i: int, j: int) -> float:
        if (i, j) not in tried:
            without = np.zeros(k, dtype=bool)
            without[j] = True
            tried[i, j] = 1 - cone_cosine(rows, features[i], without)[0]
        return tried[i, j]

    for i, omega in found.items():
        for j in np.argsort(-omega)[:6]:
            if omega[j] <= 0 or need(i, int(j)) <= best.epsilon:
                continue
            others = np.argsort(-(features @ rows[j]))[: rivals + 1]
            for other in others:
                if other != i:
                    both = min(need(i, int(j)), need(int(other), int(j))) - MARGIN
                    best = _larger(best, Bound(both, f"features {i} and {other} both need row {j}"))
    if k <= MOST_OWNED:
        cosine = features @ rows.T
        for i in looked[:OWNED_LOOKED]:
            best = _larger(best, _owned(int(i), features, rows, cosine, need, best.epsilon))
    return Bound(max(best.epsilon, 0.0), best.reason)


def _owned(i: int, features: np.ndarray, rows: np.ndarray, cosine: np.ndarray, need, known: float) -> Bound:
    """The bound "owned" for feature i: min(t, its error without the rows that others own at t), over a few t."""
    best = Bound(known, "none")
    for t in (0.95, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15, 0.08):
        if t <= best.epsilon:
            break
        owned, error = np.zeros(len(rows), dtype=bool), 0.0
        while True:
            reached, omega = cone_cosine(rows, features[i], owned)
            error = 1 - reached - MARGIN
            wanted = np.flatnonzero(omega > 0)
            taken = [j for j in wanted if _owner_needs(int(j), i, cosine, need) > t]
            if not taken or error >= t:
                break
            owned[taken] = True
        best = _larger(best, Bound(min(t, error), f"feature {i} without {int(owned.sum())} rows that others need"))
    return best


def _owner_needs(j: int, other_than: int, cosine: np.ndarray, need) -> float:
    """The largest need for row j among the two features nearest to it."""
    near = [int(i) for i in np.argsort(-cosine[:, j])[:3] if i != other_than][:2]
    return max((need(i, j) for i in near), default=0.0) - MARGIN


def _larger(one: Bound, other: Bound) -> Bound:
    return other if other.epsilon > one.epsilon else one
