import numpy as np
import pytest

from simulator.errors import RequestError
from simulator.rng import stream


def numbers(*arguments) -> tuple[int, ...]:
    return tuple(stream(*arguments).integers(0, 2**63, 4).tolist())


def test_a_stream_depends_on_seed_name_and_index_only():
    first = numbers(3, "batches", 7)
    np.random.default_rng(0).random(5)
    stream(3, "dictionary").random(5)
    assert numbers(3, "batches", 7) == first


def test_streams_are_different():
    # Two streams agree by chance with probability 2^-252 each.
    arguments = [
        (seed, name, *index)
        for seed in (0, 1, 2**32, 2**62, 2**63 - 1)
        for name in ("", "a", "batches")
        for index in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**32,), (2**32 + 1,), (2**63 - 1,))
    ]
    assert len({numbers(*argument) for argument in arguments}) == len(arguments)


def test_the_numbers_do_not_change_between_versions():
    # Frozen: a change here makes every stored result of the same seed another result.
    assert numbers(0, "dictionary")[0] == 4716805052506827991
    assert numbers(5, "batches", 2)[0] == 6721935604382326169


def test_numpy_integers_are_seeds():
    assert numbers(np.int64(4), "a", np.uint32(2)) == numbers(4, "a", 2)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(seed):
    with pytest.raises(RequestError, match=f"seed = {seed} is out of range.*from 0 to 9223372036854775807"):
        stream(seed, "a")


def test_a_bool_is_no_seed():
    with pytest.raises(RequestError, match="seed = True is not a whole number"):
        stream(True, "a")


def test_index_out_of_range():
    with pytest.raises(RequestError, match="index of a random stream = -1 is out of range"):
        stream(0, "a", -1)
