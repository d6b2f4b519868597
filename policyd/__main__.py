"""``policyd``: runs the policy server in the foreground until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from typing import Any

from policyd import __version__
from policyd.errors import PolicydError

DEFAULT_CONFIG = "/etc/policyd/policyd.toml"

log = logging.getLogger("policyd")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0 after SIGTERM, 1 when it could not start, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="policyd",
        description="Postfix policy server. Runs in the foreground; SIGHUP reloads the configuration, "
        "SIGUSR1 reopens the logs, SIGTERM ends it.",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--version", action="version", version=f"policyd {__version__}")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # A peer that is gone is no news; everything else that asyncio tells of is a defect to be seen.
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in record.getMessage())
    # Until there is something to reload or to reopen, the signals for it must not end the process.
    for early in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(early, signal.SIG_IGN)
    loop = _install_reactor()
    # Only now: importing anything of Twisted's that wants a reactor would install another one.
    from twisted.internet import reactor

    from policyd.checks import options_of
    from policyd.config import load
    from policyd.service import Service, raise_file_limit

    try:
        raise_file_limit()
        service = Service(load(options.config, options_of), loop)
    except PolicydError as error:
        return _refuse(error)
    return _run(service, loop, reactor)


def _run(service: Any, loop: asyncio.AbstractEventLoop, reactor: Any) -> int:
    from twisted.internet.defer import Deferred

    outcome = 0

    async def start() -> None:
        nonlocal outcome
        try:
            await service.start()
        except PolicydError as error:
            outcome = _refuse(error)
            reactor.stop()

    def started(task: asyncio.Task[None]) -> None:
        nonlocal outcome
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # A defect; a daemon that neither listens nor ends would be worse than one that says so.
            log.critical("policyd cannot start: %s: %s", type(error).__name__, error)
            outcome = 1
            reactor.stop()

    def stop() -> Any:
        return Deferred.fromFuture(asyncio.ensure_future(service.stop(), loop=loop))

    # What is alive now lives to the end: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    reactor.callWhenRunning(lambda: loop.create_task(start()).add_done_callback(started))
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    return outcome


def _install_reactor() -> asyncio.AbstractEventLoop:
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


def _refuse(error: PolicydError) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"policyd: {line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
