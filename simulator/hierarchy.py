"""Hierarchies of features: children occur with their parents only, siblings may exclude each other."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from simulator.checks import finite_array, whole
from simulator.errors import RequestError

# Nodes of the Gauss-Legendre rule: k of them are exact for groups of 2 k features, and more are never needed.
_MOST_NODES = 64


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """A forest over the n features, which decides what of a drawn support stays.

    Feature i stays active if it was drawn active with a positive coefficient, its parent is active after all, and it
    wins in its group: of the members of a group that were drawn active one stays, each equally likely. So it is in
    sae_lens.synthetic, where levels are processed from the roots. Where `scaled`, the coefficient of a feature is
    then multiplied by (coefficient of its parent, itself scaled) / means[parent].

    Attributes:
        parents: (n,), the parent of each feature, -1 for none.
        groups: (n,), number of the group of mutually exclusive siblings, -1 for none.
        scaled: (n,), whether the feature's coefficient is scaled by its parent's.
        means: (n,), the coefficient of a parent for which its children keep theirs.

    Raises:
        RequestError: arrays that do not fit each other, a parent that is no feature, a cycle, a group whose
            members have different parents, or a mean <= 0 of a parent that scales.
    """

    parents: Integer[np.ndarray, " n"]
    groups: Integer[np.ndarray, " n"]
    scaled: Bool[np.ndarray, " n"]
    means: Float[np.ndarray, " n"]

    def __post_init__(self) -> None:
        parents, groups = (_indices(name, getattr(self, name)) for name in ("parents", "groups"))
        means = finite_array("means of a hierarchy", self.means, 1)
        scaled = finite_array("scaled of a hierarchy", self.scaled, 1) != 0
        n = parents.size
        for name, array in (("groups", groups), ("scaled", scaled), ("means", means)):
            if array.size != n:
                raise RequestError(f"a hierarchy of {n} parents needs as many {name}, not {array.size}")
        if parents.max() >= n:
            raise RequestError(f"a hierarchy of {n} features names feature {parents.max()} as a parent")
        needed = parents[scaled & (parents >= 0)]
        if needed.size and means[needed].min() <= 0:
            raise RequestError(f"a parent that scales its children has mean {means[needed].min():g}; it must be > 0")
        scaled.flags.writeable = False
        for name, array in (("parents", parents), ("groups", groups), ("scaled", scaled), ("means", means)):
            object.__setattr__(self, name, array)
        if not sum(level.size for level in self.levels) == n:
            raise RequestError("a hierarchy has a cycle: every feature must come from a root by its parents")
        order = np.argsort(groups, kind="stable")
        same = (groups[order][1:] == groups[order][:-1]) & (groups[order][1:] >= 0)
        if (same & (parents[order][1:] != parents[order][:-1])).any():
            raise RequestError("a group of exclusive features has several parents; its members must be siblings")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hierarchy) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("parents", "groups", "scaled", "means")
        )

    def __hash__(self) -> int:
        return hash((self.parents.tobytes(), self.groups.tobytes()))

    @property
    def n(self) -> int:
        """Number of features."""
        return self.parents.size

    @functools.cached_property
    def levels(self) -> tuple[Integer[np.ndarray, " features"], ...]:
        """The features by their distance from the roots, each level ascending; first those without a parent."""
        first_child, children = self.children
        level, found = np.flatnonzero(self.parents < 0), []
        while level.size:
            found.append(level)
            level = np.sort(np.concatenate([children[first_child[i] : first_child[i + 1]] for i in level]))
        return tuple(found)

    @functools.cached_property
    def children(self) -> tuple[Integer[np.ndarray, " n_plus_one"], Integer[np.ndarray, " children"]]:
        """(first_child, children): those of feature i are children[first_child[i]:first_child[i + 1]].

        Members of one group stand together.
        """
        order = np.lexsort((np.arange(self.n), self.groups, self.parents))
        order = order[self.parents[order] >= 0]
        counts = np.bincount(self.parents[order], minlength=self.n)
        return np.concatenate([[0], np.cumsum(counts)]), order

    def frequencies(self, drawn: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows n"]:
        """P(feature i stays active) where feature i is drawn active, independently, with probability `drawn`_i.

        f_i = q_i f_parent E[1 / (1 + K)], with K the number of other members of its group that were drawn active. With
        q_j = drawn_j the mean is the integral over t in [0, 1] of prod_{j != i} (1 - q_j + q_j t): a polynomial, so
        the Gauss-Legendre rule is exact (for groups of more than 128 features to rounding errors).

        Args:
            drawn: q, (n,) or rows of such.
        """
        given_parent = np.array(drawn, dtype=np.float64)
        members = np.flatnonzero(self.groups >= 0)
        if members.size:
            members = members[np.argsort(self.groups[members], kind="stable")]
            groups = self.groups[members]
            starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
            sizes = np.diff(np.append(starts, members.size))
            q, won = given_parent[..., members], 0.0
            for node, weight in zip(*_rule(min(-(-int(sizes.max()) // 2), _MOST_NODES)), strict=True):
                absent = np.log1p(-q * (1 - node))
                together = np.repeat(np.add.reduceat(absent, starts, axis=-1), sizes, axis=-1)
                won = won + weight * np.exp(together - absent)
            given_parent[..., members] = q * won
        for level in self.levels[1:]:
            given_parent[..., level] *= given_parent[..., self.parents[level]]
        return given_parent

    def compensated(self, frequencies: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Frequencies to draw with, so that about `frequencies` remain; as sae_lens.synthetic compensates.

        f_i / f_parent (1 + sum of f_j over the others of its group / f_parent), at most 1; f_parent = 1
        without a parent. The second factor is an approximation: `frequencies` says what really remains.
        """
        f = np.asarray(frequencies, dtype=np.float64)
        above = np.where(self.parents >= 0, f[self.parents], 1.0)
        above[above <= 0] = 1.0
        in_group = np.where(self.groups >= 0, f, 0.0)
        _, number = np.unique(self.groups, return_inverse=True)
        others = np.bincount(number, in_group)[number] - in_group
        others[self.groups < 0] = 0.0
        return np.minimum(f / above * (1 + np.maximum(others, 0.0) / above), 1.0)


def trees(
    n: int,
    roots: int,
    branching: int,
    depth: int,
    *,
    exclusive: bool = True,
    scaled: bool = False,
    means: float | Float[np.ndarray, " n"] = 1.0,
) -> Hierarchy:
    """`roots` equal trees over the first features, numbered level by level; the numbers end at n.

    Features 0..roots-1 are the roots, then come the children of root 0, of root 1 and so on, then the next
    level, as in sae_lens.synthetic. A tree of depth 3 and branching 4 has 1 + 4 + 16 + 64 = 85 features. What is
    left over has no parent.

    Args:
        n: number of features.
        roots: number of trees, >= 1.
        branching: children of each parent, >= 1.
        depth: levels below the roots, >= 0.
        exclusive: whether siblings exclude each other (not the roots).
        scaled: whether children are scaled by their parents.
        means: mean coefficients for the scaling, one number or (n,).

    Raises:
        RequestError: a number out of range, or means that are not n numbers > 0 where they are needed.
    """
    n, level = whole("number of features n", n, 1, 2**31 - 1), whole("number of trees", roots, 1)
    branching, depth = whole("branching of the trees", branching, 1), whole("depth of the trees", depth, 0)
    parents = np.full(n, -1, dtype=np.int64)
    first, past = 0, min(level, n)
    for _ in range(depth):
        size = min((past - first) * branching, n - past)
        parents[past : past + size] = first + np.arange(size) // branching
        first, past = past, past + size
    siblings = np.bincount(parents[parents >= 0], minlength=n)
    groups = np.where((parents >= 0) & exclusive & (siblings[parents] > 1), parents, -1)
    given = finite_array("means of a hierarchy", means, np.ndim(means))
    if given.ndim and given.shape != (n,):
        raise RequestError(f"means of a hierarchy have shape {given.shape}; give one number or n = {n}")
    return Hierarchy(parents, groups, (parents >= 0) & bool(scaled), np.broadcast_to(given, n))


@functools.lru_cache(maxsize=8)
def _rule(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _indices(name: str, values: Any) -> np.ndarray:
    """Whole numbers >= -1 as a read-only int64 array."""
    array = finite_array(f"{name} of a hierarchy", values, 1)
    whole_numbers = array.astype(np.int64)
    if (whole_numbers != array).any() or array.min() < -1:
        raise RequestError(f"{name} of a hierarchy must be whole numbers >= -1")
    whole_numbers.flags.writeable = False
    return whole_numbers
