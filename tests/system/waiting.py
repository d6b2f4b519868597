"""Waiting for another process: until it is so, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds after which something that a busy machine does in one is given up.
PATIENCE = 120.0


def wait_for(done: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait until ``done()``; fail with ``what()`` if it does not come true."""
    until = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < until, what()
        time.sleep(0.01)
