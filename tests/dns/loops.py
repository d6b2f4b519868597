"""Coroutines run to their end on a loop of their own, asyncio's or uvloop's: the resolver must do on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(loop: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What ``main()`` returns. In a thread of its own: the tests' own thread belongs to the reactor."""

    def thread() -> Any:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            return runner.run(main())

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(thread).result()


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns without waiting for anything."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("it waits")
