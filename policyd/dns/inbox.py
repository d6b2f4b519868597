"""Answers are read a few at a time: hundreds that come at once hold up nobody who waits for something else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

#: Time for reading in one turn of the loop, s; an answer takes a third of a millisecond.
SLICE = 0.002


class Inbox:
    """The answers that have come and are not read yet, of all nameservers."""

    __slots__ = ("_clock", "_reading", "_waiting")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._reading = False
        self._waiting: deque[tuple[Callable[[bytes], None], bytes]] = deque()

    def put(self, take: Callable[[bytes], None], data: bytes) -> None:
        """Have ``take`` called with ``data``, in this turn of the loop or one soon."""
        if not self._reading:
            self._reading = True
            asyncio.get_running_loop().call_soon(self._read)
        self._waiting.append((take, data))

    def _read(self) -> None:
        end = self._clock() + SLICE
        waiting = self._waiting
        try:
            while waiting:
                take, data = waiting.popleft()
                take(data)
                if self._clock() >= end:
                    break
        finally:
            self._reading = bool(waiting)
            if waiting:
                asyncio.get_running_loop().call_soon(self._read)
