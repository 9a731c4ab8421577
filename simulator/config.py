"""A configuration as JSON and its fingerprint: the key under which results are stored."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.errors import RequestError

NUMBERS = 3
"""Raised whenever the code changes what a configuration computes, so that stored results are not taken for new."""


def to_config(value: Any) -> Any:
    """`value` as JSON-able data that names types and is the same in every run.

    A dataclass becomes {"type": its class name, field: ...}; fields that do not change the numbers are
    marked with `dataclasses.field(metadata={"config": False})` and left out; so are, at their defaults, fields that
    are marked "unless default" (they came later, and what was stored before keeps its key). Lists and
    tuples become lists, mappings with string keys become objects. An array becomes {"array": shape, "dtype": ...,
    "sha256": ...} of its little-endian C-ordered bytes; NumPy scalars become Python numbers.

    Raises:
        TypeError: a value of another type, or a dataclass with a field called "type".
        RequestError: a float that is NaN or infinite (JSON has none).
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RequestError(f"a configuration holds {value}; every number in it must be finite")
        return value
    if isinstance(value, np.ndarray):
        return _array_config(value)
    if isinstance(value, (tuple, list)):
        return [to_config(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a configuration needs string keys, not {list(value)!r}")
        return {key: to_config(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if _is_told(value, field)]
        if any(field.name == "type" for field in fields):
            raise TypeError(f'{type(value).__name__} has a field "type", which the type tag needs')
        contents = {field.name: to_config(getattr(value, field.name)) for field in fields}
        return {"type": type(value).__name__} | contents
    raise TypeError(f"a {type(value).__name__} cannot stand in a configuration: {value!r}")


def _is_told(value: Any, field: dataclasses.Field) -> bool:
    told = field.metadata.get("config", True)
    return getattr(value, field.name) != field.default if told == "unless default" else told


def fingerprint(value: Any) -> str:
    """SHA-256, as 64 hexadecimal digits, of `to_config(value)` in JSON with sorted keys.

    Raises:
        TypeError, RequestError: as in `to_config`.
    """
    text = json.dumps(to_config(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def difference(theirs: Any, ours: Any, path: str = "") -> str:
    """The first place where two configurations differ, in words: `method.p: 0.1 there, 0.2 here`."""
    if theirs is None and not path:
        return "it was not written by this program"
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted(set(theirs) | set(ours)):
            if key not in ("fingerprint", "versions") and theirs.get(key) != ours.get(key):
                return difference(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
    return f"{path or 'configuration'}: {theirs!r} there, {ours!r} here"


def _array_config(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of dtype {array.dtype} cannot stand in a configuration")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"array": list(array.shape), "dtype": array.dtype.str, "sha256": digest}
