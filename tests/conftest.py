"""Shared by all tests: shapes in annotations are enforced, one thread, no display."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Modules whose functions are compiled by numba stay out: the hook wraps every function.
_HOOK = install_import_hook(
    ["simulator.world", "simulator.dictionaries", "simulator.frequencies", "theory"], "typecheck.check"
)

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The same examples on every run: a failure is one that can be repeated.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> np.random.Generator:
    """Fixed randomness for tests that need some data."""
    return np.random.default_rng(20250614)
