"""Page 2: the hypotheses' slack, and another dictionary that explains the same data."""

import math

import numpy as np
import scipy.sparse as sparse

from figures.explorer.scenes.scene import Scene, panel
from figures.style import ACCENT, DARK, LIGHT, MIDDLE
from simulator import RequestError
from simulator.checks import real, whole
from theory.conditions import Conditions, measure
from theory.counterexamples import Counterexample, composite
from theory.identifiability import Identifiability, compare
from theory.validation import unit_rows

TOLERANCE = 0.05
"""Epsilon up to which two dictionaries count as the same."""
LIMITS = {
    "H1": "s ≤ 10",
    "H2": "means in [0.1, 10]",
    "H3": "ρ₂ ≤ 1/(2√n)",
    "V1": "max |cos| ≤ ½",
    "joint": "s max |cos| < 1",
}


def alternative(s: int, coherence: float, rho_2: float) -> Counterexample | None:
    """Two dictionaries that explain the same data, one of them with a composite feature; None where there is none.

    A feature that is a combination of s others exists only where s max |cos| >= 1, and is told from its parts only
    by samples in which they occur together. Dictionaries that violate a hypothesis themselves are not looked for.
    """
    if s < 2 or s * coherence < 1 - 1e-9 or rho_2 < 1 / 400:
        return None
    return composite(s, max(coherence, 1 / s), rho_2)


def plain_world(s: int, coherence: float, rho_2: float) -> tuple[sparse.csr_array, np.ndarray]:
    """(H, V) without a composite: two blocks of features with mutual cosine `coherence`, each 400 times.

    A block has s features, all active in a share `rho_2` of its samples; two that never meet where s = 1.
    """
    m = max(s, 2)
    V = np.kron(np.eye(2), np.linalg.cholesky((1 - coherence) * np.eye(m) + coherence))
    together = round(400 * rho_2) if s > 1 else 0
    alone = np.tile(np.eye(2 * m), (400 - together, 1))
    both = np.repeat(np.kron(np.eye(2), np.ones(m)), together, axis=0)
    return sparse.csr_array(np.vstack([alone, both])), V


def show(s: int, coherence: float, rho_2: float) -> Scene:
    """Slack of every hypothesis, both dictionaries where there are two, and how far they are from each other.

    Raises:
        RequestError: a dial outside its range.
    """
    s = whole("s", s, 1, 16)
    coherence = real("coherence", coherence, 0.0, 0.95)
    rho_2 = real("rho_2", rho_2, 0.0, 0.95)
    if s == 1 and rho_2 > 0:
        raise RequestError("with s = 1 no two features occur together; take rho_2 = 0, or s >= 2")
    pair = alternative(s, coherence, rho_2)
    if pair is None:
        H, V = plain_world(s, coherence, rho_2)
        conditions, found = measure(H, V), None
        axes = measure(sparse.csr_array(H @ V), np.eye(len(V)))
    else:
        V = pair.V
        found = compare(V, pair.V_prime, H=pair.H, H_prime=pair.H_prime, tolerance=TOLERANCE, draws=0)
        conditions = found.conditions[0]
        assert conditions is not None
        axes = None
    pictures, (left, middle, right) = zip(panel(), panel(), panel(), strict=True)
    _draw_slack(left, conditions)
    _draw_gram(middle, V, "cosines within V")
    if pair is None:
        right.axis("off")
        right.text(0.5, 0.5, "no composite explains\nthe same data", ha="center", va="center", fontsize=12, color=DARK)
    else:
        cosines = np.abs(unit_rows(pair.V_prime) @ unit_rows(V).T)
        _draw_gram(right, None, "V' (rows) against V (columns)", cosines)
    numbers = {condition.name: condition.slack for condition in (*conditions, conditions.joint)}
    numbers |= {"n": len(V), "alternative": pair is not None}
    if found is not None:
        numbers |= {"difference": found.difference, "eps_lower": found.forward.eps_lower}
    return Scene(pictures, _told(conditions, found, axes, s, coherence, rho_2), numbers)


def _broken(conditions: Conditions) -> list[str]:
    return [condition.name for condition in conditions if not condition.slack > 0]


def _told(
    conditions: Conditions,
    found: Identifiability | None,
    axes: Conditions | None,
    s: int,
    coherence: float,
    rho_2: float,
) -> str:
    """What to see. `axes`: the conditions of V' = I, which explains any data without negative entries."""
    broken = _broken(conditions)
    state = f"Broken: **{', '.join(broken)}**." if broken else "All four hypotheses hold at this finite size."
    if found is None:
        if rho_2 < 1 / 400 or s < 2:
            why = "no two features ever occur together, so every sample shows one feature alone (and has s = 1)"
        else:
            why = f"s · max |cos| = {s * coherence:.2f} < 1: any s + 1 features are linearly independent"
        others = (
            f" A dictionary that breaks a hypothesis itself is no rival to the theorem: the axes, V' = I with H' = X, "
            f"explain these data too and break {', '.join(_broken(axes))}."
            if axes is not None and coherence > 0 and _broken(axes)
            else ""
        )
        return (
            f"{state}\n\n**No composite explains the same data**: {why}.{others} (Alternatives from rare large "
            "coefficients are the H2 family of `theory.counterexamples`.)"
        )
    lower, upper = found.forward.eps_lower, found.forward.eps_upper
    far = f"between {lower:.3f} and {upper:.3f}" if upper - lower > 5e-4 else f"{upper:.3f}"
    verdict = (
        "so V' **cannot** be turned into V"
        if lower > TOLERANCE
        else "so the two dictionaries count as one" if upper <= TOLERANCE else "undecided at 0.05"
    )  # fmt: skip
    finite = (
        ""
        if broken
        else " The hypotheses are asymptotic: at a finite size they are no guarantee until s · max |cos| < 1 as well."
    )
    return (
        f"{state}\n\n**Another dictionary explains the same data**: H V = H' V' up to {found.difference:.0e}. V' "
        f"writes out as {s} features what V holds as one, and the reverse. The best grouping of V' misses a "
        f"feature of V by ε = {far}, {verdict}.{finite}"
    )


def _draw_slack(axis, conditions: Conditions) -> None:
    shown = (*conditions, conditions.joint)
    values = [float(np.clip(condition.slack, -2.5, 2.5)) for condition in shown]
    colours = [ACCENT if value <= 0 else MIDDLE for value in values]
    axis.barh(range(len(shown)), values, color=colours, height=0.6)
    for row, (condition, value) in enumerate(zip(shown, values, strict=True)):
        exact = "∞" if math.isinf(condition.slack) else f"{condition.slack + 0.0:+.2f}"
        axis.text(value + (0.08 if value >= 0 else -0.08), row, exact, va="center",
                  ha="left" if value >= 0 else "right", fontsize=9)  # fmt: skip
    axis.axvline(0, color=DARK, lw=1)
    axis.set_yticks(
        range(len(shown)), [f"{condition.name}\n{LIMITS[condition.name]}" for condition in shown], fontsize=9
    )
    axis.set_xlim(-3.4, 3.4)
    axis.invert_yaxis()
    axis.set_xlabel("slack: log(limit / measured), > 0 holds")
    axis.set_title("hypotheses", fontsize=10)


def _draw_gram(axis, V: np.ndarray | None, title: str, cosines: np.ndarray | None = None) -> None:
    if cosines is None:
        assert V is not None
        cosines = np.abs(unit_rows(V) @ unit_rows(V).T)
    picture = axis.imshow(cosines, vmin=0, vmax=1, cmap="Greys")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["top", "right", "left", "bottom"]].set(visible=True, color=LIGHT)
    axis.set_title(title, fontsize=10)
    axis.figure.colorbar(picture, ax=axis, shrink=0.7, label="|cos|")
