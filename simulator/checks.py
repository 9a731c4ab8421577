"""Checks of numbers that a user gives: each returns the plain Python value or raises RequestError."""

import math
import numbers
from typing import Any

import numpy as np

from simulator.errors import RequestError

LARGEST = 2**53
"""No count in this project can be larger."""


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int with low <= value (<= high); a bool or a fraction is refused.

    Raises:
        RequestError: `value` is not a whole number or lies outside the range.
    """
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise RequestError(f"{name} = {value!r} is not {wanted}")
    number = int(value)
    if high is None and number > LARGEST:
        raise RequestError(f"{name} = {number} is too large for any machine; it must be {wanted}, at most {LARGEST}")
    if number < low or (high is not None and number > high):
        raise RequestError(f"{name} = {number} is out of range: it must be {wanted}")
    return number


def real(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a finite float in the interval from `low` to `high`, open at the ends that say so.

    Raises:
        RequestError: `value` is no number, NaN, infinite or outside the interval.
    """
    left = f"> {low:g}" if open_low else f">= {low:g}"
    right = f"< {high:g}" if open_high else f"<= {high:g}"
    wanted = " and ".join(
        ["a finite number"] + [text for text, end in ((left, low), (right, high)) if math.isfinite(end)]
    )
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} = {value!r} is not {wanted}")
    number = float(value)
    above = low < number if open_low else low <= number
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        raise RequestError(f"{name} = {number:g} is out of range: it must be {wanted}")
    return number


def finite_array(name: str, values: Any, dimensions: int) -> np.ndarray:
    """`values` as a read-only float64 copy with the wanted number of dimensions and no NaN or infinity.

    Raises:
        RequestError: not numeric, of another number of dimensions, empty, or not finite.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise RequestError(f"{name}: not an array of real numbers ({str(error).splitlines()[0]})") from None
    if array.dtype.kind not in "biuf":
        raise RequestError(f"{name}: not an array of real numbers (its dtype is {array.dtype})")
    array = np.array(array, dtype=np.float64, order="C")
    if array.ndim != dimensions:
        raise RequestError(f"{name} has shape {array.shape}; it must have {dimensions} dimension(s)")
    if array.size == 0:
        raise RequestError(f"{name} has shape {array.shape}: it is empty, and needs at least one entry")
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - finite.sum())
        raise RequestError(f"{name}: {bad} entries are NaN or infinite; all must be finite")
    array.flags.writeable = False
    return array


def at_most_all(name: str, size: float, n: int) -> None:
    """RequestError if `size` active features are more than there are."""
    if size > n:
        raise RequestError(f"{name} = {size:g} exceeds the number of features n = {n}; choose at most {n}")
