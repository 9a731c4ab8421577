"""Why one feature was or was not learned, from the facts at hand."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from scipy import sparse

from simulator.errors import RequestError
from theory.codes import _hits
from theory.cosines import block_cosines
from theory.geometry import Recovery, check
from theory.validation import dictionary, matrix, share, size, sparse_matrix, unit_rows, vector

MIXTURE = 0.3  # a neuron with two or more cosines above this points between features


@dataclass(frozen=True)
class Explanation:
    """Facts about feature `feature`; None where the inputs did not allow a measurement.

    Pairs are (index, number), largest first.
    """

    feature: int
    threshold: float
    frequency: float | None
    near_targets: int | None
    """Neurons whose target frequency is within a factor 2 of the feature's."""
    targets_above: int | None
    """Neurons whose target is more than twice the feature's frequency."""
    targets_below: int | None
    neuron: int
    """Neuron of best signed cosine; -1 if every neuron is a zero row."""
    cosine: float
    neuron_target: float | None
    neuron_frequency: float | None
    precision: float | None
    """Share of the neuron's firings with the feature present."""
    recall: float | None
    """Share of the feature's occurrences on which the neuron fires."""
    on_neuron: tuple[tuple[int, float], ...]
    """The other features of largest cosine with the neuron."""
    mixture: bool
    """Two or more features above cosine 0.3 on the neuron and none above the threshold."""
    partners: tuple[tuple[int, float], ...]
    """Features j with the largest |D_i & D_j| / |D_i|."""
    neighbours: tuple[tuple[int, float], ...]
    """Features of largest |cosine| with feature i in V (the signed cosine is given)."""
    learned: bool
    conclusion: str

    def text(self) -> str:
        """A few plain lines, the conclusion last."""
        state = "learned" if self.learned else "not learned"
        lines = [f"feature {self.feature}: {state} at cosine > {self.threshold:g}"]
        if self.frequency is not None:
            line = f"frequency {self.frequency:.3g}"
            if self.near_targets is not None:
                line += (
                    f"; neurons with a target within a factor 2 of it: {self.near_targets},"
                    f" above: {self.targets_above}, below: {self.targets_below}"
                )
            lines.append(line)
        if self.neuron >= 0:
            line = f"best neuron {self.neuron}: cosine {self.cosine:.3f}"
            if self.neuron_target is not None:
                line += f", target {self.neuron_target:.3g}"
            if self.neuron_frequency is not None:
                line += f", active on {self.neuron_frequency:.3g} of the samples"
            if self.precision is not None and self.recall is not None:
                line += f", precision {self.precision:.3f}, recall {self.recall:.3f} on the feature"
            lines.append(line)
            if self.on_neuron:
                lines.append(f"also on that neuron (feature: cosine): {_listing(self.on_neuron)}")
        if self.partners:
            lines.append(f"occurs most with (feature: share of its samples): {_listing(self.partners)}")
        if self.neighbours:
            lines.append(f"nearest in the dictionary (feature: cosine): {_listing(self.neighbours)}")
        lines.append(self.conclusion)
        return "\n".join(lines)


def explain(
    i: int,
    V: Shaped[np.ndarray, "..."],
    W: Shaped[np.ndarray, "..."],
    *,
    frequencies: Shaped[np.ndarray, "..."] | None = None,
    H: sparse.csr_array | sparse.csr_matrix | None = None,
    codes: sparse.csr_array | sparse.csr_matrix | None = None,
    targets: Shaped[np.ndarray, "..."] | None = None,
    threshold: float = 0.9,
    recovery: Recovery | None = None,
    top: int = 3,
) -> Explanation:
    """Facts on feature i and one sentence of conclusion.

    Args:
        i: feature, 0 <= i < n. V: (n, d). W: (M, d).
        frequencies: (n,); default: measured on H where H is given.
        H: (N, n), true coefficients. codes: (N, M), codes on the same samples.
        targets: (M,), the neurons' target activation frequencies.
        recovery: `check(V, W)` where it is at hand already.
        top: how many partners and neighbours to name.

    Raises:
        RequestError: i out of range, shapes that do not fit, NaN or infinite entries.
    """
    V = dictionary("V", V)
    n, d = V.shape
    W = matrix("W", W, columns=d)
    if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < n:
        raise RequestError(f"feature {i!r} does not exist; V has {n} features, 0 <= i < {n}")
    i = int(i)
    threshold = share("threshold", threshold)
    if recovery is None:
        recovery = check(V, W, assignment=False)
    if (recovery.n, recovery.M, recovery.d) != (n, len(W), d):
        shapes = f"{recovery.n} x {recovery.d} and {recovery.M} x {recovery.d}"
        raise RequestError(f"recovery belongs to dictionaries of {shapes}, not of {V.shape} and {W.shape}")
    H = None if H is None else sparse_matrix("H", H, (None, n))
    codes = None if codes is None else sparse_matrix("codes", codes, (None if H is None else size(H)[0], len(W)))
    targets = None if targets is None else vector("targets", targets, len(W))
    own, partners = None, ()
    if H is not None:
        column = sparse.csc_array(H[:, [i]])
        own = np.sort(column.indices)
        counts = np.bincount(H[own].indices, minlength=n) if own.size else np.zeros(n, dtype=np.int64)
        partners = _largest(counts / max(own.size, 1), i, top, positive=True)
    frequency = None
    if frequencies is not None:
        frequency = float(vector("frequencies", frequencies, n)[i])
    elif H is not None and own is not None:
        frequency = own.size / size(H)[0]
    near = above = below = None
    if targets is not None and frequency is not None:
        above, below = int((targets > 2 * frequency).sum()), int((targets < frequency / 2).sum())
        near = len(targets) - above - below
    neuron, cosine = int(recovery.feature_neuron[i]), float(recovery.feature_cosine[i])
    on_neuron, strong = (), 0
    if neuron >= 0:
        row = block_cosines(unit_rows(W[neuron : neuron + 1]), unit_rows(V))[0]
        on_neuron = _largest(row, i, top, positive=True)
        strong = int((row > MIXTURE).sum())
        mixture = strong >= 2 and row.max() <= threshold
    else:
        mixture = False
    active, precision, recall = _detector(codes, H, i, neuron)
    direction = unit_rows(V[i : i + 1])
    similar = block_cosines(direction, unit_rows(V))[0]
    neighbours = tuple((j, float(similar[j])) for j, _ in _largest(np.abs(similar), i, top, positive=True))
    learned = cosine > threshold
    facts = {"frequency": frequency, "near_targets": near, "targets_above": above, "targets_below": below}
    return Explanation(
        feature=i,
        threshold=threshold,
        neuron=neuron,
        cosine=cosine,
        neuron_target=None if targets is None or neuron < 0 else float(targets[neuron]),
        neuron_frequency=active,
        precision=precision,
        recall=recall,
        on_neuron=on_neuron,
        mixture=bool(mixture),
        partners=partners,
        neighbours=neighbours,
        learned=learned,
        conclusion=_conclude(learned, neuron, cosine, threshold, facts, on_neuron, mixture, partners, neighbours),
        **facts,
    )


def _detector(codes, H, i: int, neuron: int) -> tuple[float | None, float | None, float | None]:
    """How often the neuron fires, and its precision and recall on feature i."""
    if codes is None or neuron < 0:
        return None, None, None
    fires = sparse.csr_array(codes[:, [neuron]])
    frequency = fires.nnz / size(codes)[0]
    if H is None:
        return frequency, None, None
    column = sparse.csr_array(H[:, [i]])
    hits = int(_hits(fires, column, np.zeros(1, dtype=np.int64))[0])
    return frequency, hits / max(fires.nnz, 1), hits / max(column.nnz, 1)


def _conclude(learned, neuron, cosine, threshold, facts, on_neuron, mixture, partners, neighbours) -> str:
    """The most specific reason that the facts support; the order is from what rules learning out to what
    blurs it."""
    frequency, near, above = facts["frequency"], facts["near_targets"], facts["targets_above"]
    if learned:
        reason = f" and {near} neurons have a target within a factor 2 of its frequency" if near else ""
        return f"Learned: neuron {neuron} points at it (cosine {cosine:.3f}){reason}."
    if neuron < 0:
        return "Not learned: every neuron is a zero row."
    if frequency == 0:
        return "Not learned: it does not occur in these samples."
    if partners and partners[0][1] > 0.5:
        j, part = partners[0]
        return f"Not learned, probably because feature {j} is present on {part:.0%} of its samples."
    if near == 0 and above is not None:
        side = "all of them fire more often" if above and not facts["targets_below"] else "none is near"
        return f"Not learned, probably because no neuron's target is near its frequency (factor 2; {side})."
    if neighbours and abs(neighbours[0][1]) > 0.5:
        j, near_cosine = neighbours[0]
        return f"Not learned, probably because feature {j} is close to it in V (cosine {near_cosine:.2f})."
    if mixture:
        others = ", ".join(str(j) for j, value in on_neuron if value > MIXTURE)
        return f"Not learned: its best neuron is a mixture, it also points at feature(s) {others}."
    if on_neuron and on_neuron[0][1] > threshold:
        return f"Not learned: no neuron is near it, the best one belongs to feature {on_neuron[0][0]}."
    return f"Not learned: no neuron is near it (best cosine {cosine:.3f}) and these facts name no reason."


def _largest(values: np.ndarray, without: int, top: int, *, positive: bool) -> tuple[tuple[int, float], ...]:
    order = [int(j) for j in np.argsort(-values, kind="stable")[: top + 1] if j != without][:top]
    return tuple((j, float(values[j])) for j in order if values[j] > 0 or not positive)


def _listing(pairs: tuple[tuple[int, float], ...]) -> str:
    return ", ".join(f"{j}: {value:.3f}" for j, value in pairs)
