"""A run again from what it recorded: the configuration in a result.json, or one that the explorer gave."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import simulator
from figures.cells import Cell
from simulator import RequestError
from simulator.config import difference

TYPES = {
    name: value
    for name, value in vars(simulator).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}
"""Names that a configuration may tag its objects with."""


def stored_cell(file: Path) -> Cell:
    """The cell whose configuration stands in the file.

    Args:
        file: a configuration as JSON, or an object that has one under "config", as a result.json does.

    Raises:
        RequestError: no such file, not a configuration of one run on a world, one that holds arrays (only their hash is
            kept), or one of another version of the program, under which it would give other numbers.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{file} cannot be read as JSON ({error}); name a result.json or a config.json") from error
    config = found.get("config", found) if isinstance(found, dict) else None
    if not isinstance(config, dict) or not {"data", "training", "seed"} <= config.keys():
        raise RequestError(f"{file} holds no configuration of a run; name the result.json of sae-recovery verify")
    if not isinstance(config["data"], dict) or config["data"].get("type") != "World":
        raise RequestError(f"{file} was trained on activations, which it does not hold; repeat it with --activations")
    try:
        cell = Cell(
            _object(config["data"]), _object(config["training"]), config["seed"], samples=config["samples"],
            references=config["references"], dictionary_seed=config.get("dictionary_seed"), pilot="pilot" in config,
        )  # fmt: skip
        again = json.loads(json.dumps(cell.config()))
    except RequestError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise RequestError(f"{file} is no configuration of this version ({error})") from error
    if again != config:
        raise RequestError(f"{file} would give other numbers here: {difference(config, again)}")
    return cell


def _object(value: Any) -> Any:
    """The inverse of `simulator.config.to_config`, for the objects of the simulator."""
    if isinstance(value, list):
        return tuple(_object(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        raise RequestError(
            "the configuration holds an array, of which only the hash is kept; repeat the command instead"
        )
    if value.get("type") not in TYPES:
        raise RequestError(f"the configuration names {value.get('type')!r}, which is no object of the simulator")
    # What a class sets itself (BA's one group) is not passed; that it is the same is seen when all is compared.
    own = {field.name for field in dataclasses.fields(TYPES[value["type"]]) if not field.init} | {"type"}
    return TYPES[value["type"]](**{key: _object(item) for key, item in value.items() if key not in own})
