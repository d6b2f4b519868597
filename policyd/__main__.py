"""``policyd``: runs the policy server in the foreground until SIGTERM."""

from __future__ import annotations

# What is imported here delays the moment from which on signals are taken; all else is imported after it.
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from policyd.errors import PolicydError
    from policyd.messages import Messages

DEFAULT_CONFIG = "/etc/policyd/policyd.toml"


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0 after SIGTERM, 1 when it could not start, 2 for a wrong command line."""
    signals = _EarlySignals()
    try:
        return _main(arguments, signals)
    except _Ended:
        return 0


def _main(arguments: list[str] | None, signals: _EarlySignals) -> int:
    import argparse
    import logging

    from policyd import __version__
    from policyd.errors import PolicydError
    from policyd.messages import Messages

    parser = argparse.ArgumentParser(
        prog="policyd",
        description="Postfix policy server. Runs in the foreground; SIGHUP reloads the configuration, "
        "SIGUSR1 reopens the logs, SIGTERM ends it.",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--version", action="version", version=f"policyd {__version__}")
    options = parser.parse_args(arguments)
    _open_standard_files()
    messages = Messages()
    logging.basicConfig(handlers=[messages], level=logging.INFO)
    # A peer that is gone is no news; everything else that asyncio tells of is a defect to be seen.
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in record.getMessage())
    loop = _install_reactor()
    # Only now: importing anything of Twisted's that wants a reactor would install another one.
    from twisted.internet import reactor

    from policyd.checks import options_of
    from policyd.config import load
    from policyd.notify import Manager
    from policyd.service import Service, raise_file_limit

    try:
        raise_file_limit()
        service = Service(load(options.config, options_of), loop, Manager())
    except PolicydError as error:
        return _refuse(error, messages)
    return _run(service, loop, reactor, signals, messages)


class _Ended(BaseException):
    """SIGTERM or SIGINT, while there is nothing yet to end in order."""


class _EarlySignals:
    """What is signalled before the loop can take it: an end is an end, anything else is done after the start."""

    def __init__(self) -> None:
        #: Whether the end was asked for.
        self.end = False
        self._building = True
        self._kept: set[int] = set()
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._kept.add(number))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, *_: object) -> None:
        self.end = True
        if self._building:
            raise _Ended

    def built(self) -> None:
        """From here on there is something to end in order, and :attr:`end` says whether it is to."""
        self._building = False

    def hand_over(self) -> None:
        """Now that somebody listens for them, send again what was kept."""
        for number in self._kept:
            signal.raise_signal(number)
        self._kept.clear()


def _run(
    service: Any, loop: asyncio.AbstractEventLoop, reactor: Any, signals: _EarlySignals, messages: Messages
) -> int:
    import asyncio
    import gc
    import logging

    from twisted.internet.defer import Deferred

    from policyd.errors import PolicydError

    signals.built()
    outcome = 0
    ending = False
    starting: asyncio.Task[None] | None = None

    def end_soon() -> None:
        nonlocal ending
        # To be asked again is no news.
        if not ending:
            ending = True
            reactor.stop()

    async def start() -> None:
        nonlocal outcome
        try:
            await service.start()
        except PolicydError as error:
            outcome = _refuse(error, messages)
            end_soon()

    def started(task: asyncio.Task[None]) -> None:
        nonlocal outcome
        error = None if task.cancelled() else task.exception()
        if error is None:
            signals.hand_over()
        else:
            # A defect; a daemon that neither listens nor ends would be worse than one that says so.
            logging.getLogger("policyd").critical("policyd cannot start: %s: %s", type(error).__name__, error)
            outcome = 1
            end_soon()

    def begin() -> None:
        nonlocal starting
        # In the place of Twisted's own handlers.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end_soon)
        if signals.end:
            end_soon()
            return
        starting = loop.create_task(start())
        starting.add_done_callback(started)

    async def end() -> None:
        if starting is not None and not starting.done():
            # What it opens last has to be closed as well.
            await asyncio.wait((starting,))
        await service.stop()

    def stop() -> Any:
        return Deferred.fromFuture(asyncio.ensure_future(end(), loop=loop))

    # What is alive now lives to the end: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    return outcome


def _install_reactor() -> asyncio.AbstractEventLoop:
    import asyncio

    from twisted.internet import asyncioreactor

    try:
        import uvloop
    except ImportError:
        loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)  # type: ignore[no-untyped-call]
    return loop


def _open_standard_files() -> None:
    """Whoever started us with one of them closed must not find messages in the database, which would get its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _refuse(error: PolicydError, messages: Messages) -> int:
    for line in str(error).splitlines():
        messages.say(f"policyd: {line}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
