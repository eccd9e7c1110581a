"""A clean stop: the first SIGINT or SIGTERM asks for one, the second ends at once.

A third one does not wait for threads and workers either, which may hang in a read: the process is gone. Nothing is
lost by that, since every file is whole at every moment.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sccam.errors import Interrupted

SIGNALLED = 128  # and the signal's number: how a shell reports an end by it, 130 or 143


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second one stops at once, the third ends the process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._ending = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Takes SIGINT and SIGTERM inside the block (in the main thread; elsewhere it does nothing)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ending:
            os._exit(SIGNALLED + number)
        if self.signal is not None:
            self._ending = True
            raise self._interrupted("stopped at once; what was saved before is intact")
        self.signal = number

    def check(self) -> None:
        """Raises Interrupted when a stop was asked for."""
        if self.signal is not None:
            raise self._interrupted("stopped on request; what was finished is saved")

    def _interrupted(self, text: str) -> Interrupted:
        error = Interrupted(text)
        error.exit_code = SIGNALLED + (self.signal or signal.SIGINT)
        return error
