"""Named random streams from one integer seed."""

import functools
import hashlib

import numpy as np

from simulator.checks import whole


def stream(seed: int | np.integer, name: str, *index: int | np.integer) -> np.random.Generator:
    """The random stream of `seed` that is called `name`, number `index`.

    Streams with another seed, name or index are independent, and nothing else enters: not the order of the
    calls, not a global state. So methods that are compared at one seed see the same world, and batch t
    can be drawn without the batches before it. The name and the index are the spawn key of
    `numpy.random.SeedSequence` (never seed + 1, which would make stream k of seed 0 stream k - 1 of seed 1).

    Args:
        seed: whole number, 0 <= seed < 2**63.
        name: what the numbers are for, for example "dictionary".
        index: whole numbers, each 0 <= index < 2**63, for example the number of a batch.

    Raises:
        RequestError: a seed or an index that is no whole number in this range.
    """
    key = list(_name_words(name))
    for number in index:
        number = whole("index of a random stream", number, 0, 2**63 - 1)
        # Always two words, so that the index 2**32 (words 0, 1) is not the pair of indices (0, 1).
        key += [number & 0xFFFFFFFF, number >> 32]
    sequence = np.random.SeedSequence(whole("seed", seed, 0, 2**63 - 1), spawn_key=tuple(key))
    return np.random.Generator(np.random.PCG64(sequence))


@functools.lru_cache(maxsize=256)
def _name_words(name: str) -> tuple[int, ...]:
    """128 bits of the SHA-256 of the name as four 32-bit words (`hash` would differ between runs)."""
    digest = hashlib.sha256(name.encode()).digest()
    return tuple(int.from_bytes(digest[k : k + 4], "little") for k in range(0, 16, 4))
