"""Absorption, hedging and splitting of features, measured against a planted hierarchy.

Where a child feature occurs with its parent only, a sparse network saves a neuron per sample by writing the parent's
direction into the child's decoder row and leaving the parent's neuron silent: the child absorbs the parent (Chanin et
al. 2024, arXiv:2409.14507). A network too narrow for both mixes the child into the parent's neuron instead: hedging
(Chanin et al. 2025, arXiv:2505.11756). A feature with several neurons is split.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse

from simulator.errors import RequestError
from theory.cosines import pair_cosines
from theory.geometry import Recovery
from theory.validation import dictionary, matrix, share, size, sparse_matrix, unit_rows, vector


@dataclass(frozen=True)
class Absorption:
    """Measured on N samples; arrays have one entry per feature, NaN where it is not defined.

    A feature HAS A NEURON if its neuron of largest signed cosine is above tau and active on some sample. Feature and
    neuron are active where coefficient and code are not 0. Let i be a parent with a neuron:

        silence_with_child    = share of the samples with i and some child of it in which i's neuron is silent,
        silence_without_child = the same among the samples with i and without any child,
        rate                  = share of the samples with i and some child in which i's neuron is silent while the
                                neuron of a child that is present fires,
        excess_silence        = silence_with_child - silence_without_child.

    A neuron that is bad in general is silent in both cases; one whose feature is absorbed only with a child.
    """

    tau: float
    parents: Int[np.ndarray, " parents"]
    """The features that have a child."""
    has_neuron: Shaped[np.ndarray, " n"]
    rate: Float[np.ndarray, " n"]
    silence_with_child: Float[np.ndarray, " n"]
    silence_without_child: Float[np.ndarray, " n"]
    leak: Float[np.ndarray, " n"]
    """Per child j of i: cos(w of j's neuron, v_i) - cos(v_j, v_i), what absorption writes into the child's row. For
    children that have a neuron, another one than their parent's."""
    hedging: Float[np.ndarray, " n"]
    """Per child j of i: cos(w of i's neuron, v_j) - cos(v_i, v_j), for parents that have a neuron, whether or not the
    child has one."""
    shared: Float[np.ndarray, " n"]
    """Per child that has a neuron, as its parent has: 1 if it is the same one, else 0."""
    neurons: Int[np.ndarray, " n"]
    """Alive neurons (active on some sample) whose best feature it is, at a signed cosine above tau."""
    alive: int

    @property
    def excess_silence(self) -> Float[np.ndarray, " n"]:
        """silence_with_child - silence_without_child."""
        return self.silence_with_child - self.silence_without_child

    def summary(self) -> dict[str, float | int | None]:
        """One table row of plain numbers: means over the parents or children for which the value is defined.

        `splitting` is the mean number of neurons over the features that have some, `duplicates` the share of the
        alive neurons that are further neurons of a feature that has one. None where nothing is defined, for example
        where no parent has a neuron.
        """
        split = self.neurons[self.neurons > 0]
        return {
            "absorption_rate": _mean(self.rate),
            "absorption_silence_with_child": _mean(self.silence_with_child),
            "absorption_silence_without_child": _mean(self.silence_without_child),
            "absorption_excess_silence": _mean(self.excess_silence),
            "absorption_leak": _mean(self.leak),
            "absorption_hedging": _mean(self.hedging),
            "absorption_shared": _mean(self.shared),
            "absorption_parents": len(self.parents),
            "absorption_parents_with_neuron": int(self.has_neuron[self.parents].sum()),
            "splitting": _mean(split),
            "duplicates": float((split - 1).sum() / self.alive) if self.alive else None,
        }


def absorption(
    codes: sparse.csr_array | sparse.csr_matrix,
    W: Shaped[np.ndarray, "..."],
    H: sparse.csr_array | sparse.csr_matrix,
    V: Shaped[np.ndarray, "..."],
    parents: Shaped[np.ndarray, "..."],
    recovery: Recovery,
    tau: float = 0.5,
) -> Absorption:
    """Measure what a hierarchy does to a network; sparse throughout.

    Args:
        codes: (N, M), phi_m(x). W: (M, d). H: (N, n), true coefficients. V: (n, d).
        parents: (n,), the parent of each feature, -1 for none (`Hierarchy.parents`).
        recovery: `check(V, W)`.
        tau: signed cosine above which a neuron belongs to a feature. The default is low on purpose: a child's row
            that has absorbed its parent in full is at cosine 0.71 with an orthogonal child.

    Raises:
        RequestError: shapes that do not fit together, NaN or infinite entries, parents that are no features, a tau
            outside [-1, 1].
    """
    tau, n = share("tau", tau), recovery.n
    V = dictionary("V", V, columns=recovery.d)
    if len(V) != n:
        raise RequestError(f"V has {len(V)} rows, the recovery {n} features; give the V of the check")
    W = matrix("W", W, rows=recovery.M, columns=recovery.d)
    above = _parents(parents, n)
    codes = sparse_matrix("codes", codes, (None, recovery.M))
    fires = _present(codes)
    occurs = _present(sparse_matrix("H", H, (size(codes)[0], n)))
    active = np.bincount(fires.indices, minlength=recovery.M) > 0
    neuron = recovery.feature_neuron
    has_neuron = (recovery.feature_cosine > tau) & (neuron >= 0) & active[neuron]
    children = np.flatnonzero(above >= 0)
    mothers = np.unique(above[children])
    rate, with_child, without_child = _silences(fires, occurs, above, neuron, has_neuron)

    features, rows = unit_rows(V), unit_rows(W)
    leak, hedging, shared = (np.full(n, np.nan) for _ in range(3))
    both = children[has_neuron[children] & has_neuron[above[children]]]
    shared[both] = neuron[both] == neuron[above[both]]
    own = children[has_neuron[children]]
    own = own[shared[own] != 1]
    leak[own] = pair_cosines(rows, features, neuron[own], above[own])
    leak[own] -= pair_cosines(features, features, own, above[own])
    led = children[has_neuron[above[children]]]
    hedging[led] = pair_cosines(rows, features, neuron[above[led]], led)
    hedging[led] -= pair_cosines(features, features, above[led], led)

    theirs = active & (recovery.neuron_cosine > tau) & (recovery.neuron_feature >= 0)
    return Absorption(
        tau=tau,
        parents=mothers,
        has_neuron=has_neuron,
        rate=rate,
        silence_with_child=with_child,
        silence_without_child=without_child,
        leak=leak,
        hedging=hedging,
        shared=shared,
        neurons=np.bincount(recovery.neuron_feature[theirs], minlength=n),
        alive=int(active.sum()),
    )


def _silences(fires, occurs, above, neuron, has_neuron) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per feature: rate, silence with and without a child; NaN where it is no parent with a neuron, or never so."""
    n = len(above)
    children = np.flatnonzero(above >= 0)
    children = children[has_neuron[above[children]]]
    chosen, place = np.unique(above[children], return_inverse=True)
    rate, with_child, without_child = (np.full(n, np.nan) for _ in range(3))
    if not chosen.size:
        return rate, with_child, without_child
    parent, heard = occurs[:, chosen], fires[:, neuron[chosen]]
    child = occurs[:, children]
    joined = parent.multiply(_any(child, place, chosen.size))
    samples, samples_with = _counts(parent), _counts(joined)
    heard_at_all, heard_with = _counts(parent.multiply(heard)), _counts(joined.multiply(heard))
    # A child's neuron that is also the parent's never fires where the parent's is silent: no need to leave it out.
    able = np.flatnonzero(has_neuron[children])
    answered = _any(child[:, able].multiply(fires[:, neuron[children[able]]]), place[able], chosen.size)
    answered = joined.multiply(answered)
    absorbed = _counts(answered) - _counts(answered.multiply(heard))
    rate[chosen] = _ratio(absorbed, samples_with)
    with_child[chosen] = _ratio(samples_with - heard_with, samples_with)
    alone = samples - samples_with
    without_child[chosen] = _ratio(alone - (heard_at_all - heard_with), alone)
    return rate, with_child, without_child


def _parents(value, n: int) -> np.ndarray:
    given = vector("parents", value, n)
    above = given.astype(np.int64)
    wrong = np.flatnonzero((above != given) | (above < -1) | (above >= n) | (above == np.arange(n)))
    if wrong.size:
        raise RequestError(
            f"parents[{wrong[0]}] = {given[wrong[0]]:g}; another feature 0 to {n - 1} is needed, or -1 for no parent"
        )
    return above


def _present(csr: sparse.csr_array) -> sparse.csr_array:
    """1 for every stored entry."""
    return sparse.csr_array((np.ones(csr.nnz, dtype=np.int32), csr.indices, csr.indptr), shape=csr.shape)


def _any(table, group: np.ndarray, groups: int) -> sparse.csr_array:
    """(N, groups): 1 where some column of the group holds an entry."""
    members = sparse.csr_array(
        (np.ones(len(group), dtype=np.int32), (np.arange(len(group)), group)), shape=(len(group), groups)
    )
    return _present(sparse.csr_array(table @ members))


def _counts(table) -> np.ndarray:
    csr = sparse.csr_array(table)
    return np.bincount(csr.indices, minlength=size(csr)[1])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
