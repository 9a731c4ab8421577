"""A training in a thread of its own: it can be watched and stopped, and its result read when it is done."""

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from simulator import RequestError

PATIENCE = 90.0
"""Seconds without a look after which a training ends: its page was closed. Hidden pages look once a minute."""


class _Stopped(Exception):
    """Raised inside the training by its own progress call."""


class Training:
    """A function that reports (step, loss) after every step, run in a thread.

    Attributes:
        steps: how many steps it will take.
        step, loss: where it is.
        result: what the function returned; None until then.
        error: one line that says why there is no result.
        stopped: whether it was asked to stop.
    """

    def __init__(self, work: Callable[[Callable[[int, float], None]], Any], steps: int) -> None:
        self.steps, self.step, self.loss = steps, 0, float("nan")
        self.result: Any = None
        self.error, self.stopped = "", False
        self._work = work
        self._looked = time.monotonic()
        _ALL.add(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work(self._progress)
        except _Stopped:
            pass
        except RequestError as error:
            self.error = str(error)
        except Exception as error:  # the page shows one line; a thread's traceback would be lost
            self.error = f"{type(error).__name__}: {error}"

    def _progress(self, step: int, loss: float) -> None:
        if self.stopped or time.monotonic() - self._looked > PATIENCE:
            self.stopped = True
            raise _Stopped
        self.step, self.loss = step, loss

    @property
    def running(self) -> bool:
        """Whether it is still at work. Who asks goes on watching it."""
        self._looked = max(self._looked, time.monotonic())
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask it to stop; it does before its next step."""
        self.stopped = True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        self._looked = math.inf if seconds is None else time.monotonic() + seconds
        self._thread.join(seconds)
        return not self.running


_ALL: weakref.WeakSet[Training] = weakref.WeakSet()


def stop_all(seconds: float) -> None:
    """Stop every training and wait for them, together at most so long: their folders are cleared as they end."""
    end = time.monotonic() + seconds
    trainings = list(_ALL)
    for training in trainings:
        training.stop()
    for training in trainings:
        training.wait(max(0.0, end - time.monotonic()))
