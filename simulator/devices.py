"""Where a run is computed: the device and the threads on the CPU."""

import contextlib
from collections.abc import Iterator

import torch

from simulator.errors import RequestError
from simulator.training import Training


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError):
        raise RequestError(f"device {name!r} is not available here; take cpu or auto") from None


def choose_threads(training: Training, d: int) -> int:
    """Threads worth using: one while a step's encoder product is under 2^29 multiplications."""
    return 1 if training.batch * training.neurons * d < 1 << 29 else torch.get_num_threads()


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
