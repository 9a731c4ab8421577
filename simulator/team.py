"""A few threads that each run one fixed part of the work: results do not depend on who is faster."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Team:
    """`size` threads; part 0 runs in the calling thread, so a team of one costs nothing.

    The members run compiled loops and torch products, both without Python's lock; each uses one
    torch thread, since the team is the parallelism.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], Result]) -> list[Result]:
        """[work(0), ..., work(size - 1)], side by side; the first exception is raised."""
        if self.size == 1:
            return [work(0)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.size - 1, "team", initializer=torch.set_num_threads, initargs=(1,))
        others = [self._pool.submit(work, part) for part in range(1, self.size)]
        return [work(0), *(other.result() for other in others)]

    def share(self, part: int, count: int) -> tuple[int, int]:
        """First and past-last of the `count` items that belong to a part."""
        return part * count // self.size, (part + 1) * count // self.size
