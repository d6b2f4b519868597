"""The load generator: so many connections, each asks and waits for its answer; or so many requests a second in all.

``python -m bench.load [OPTIONS] HOST:PORT`` prints one line of JSON. It runs in a process of its own, so that neither its
limits nor its garbage collector touch the servers. Each answer must be ``action=VERB ...`` with one empty line after it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator

from bench import traffic

#: How long an answer may take after the end of the measurement, s.
PATIENCE = 10.0


class Result:
    """What one run came to."""

    def __init__(self) -> None:
        self.sent = 0
        #: Answers inside the measured time, and that time in s.
        self.measured = 0
        self.seconds = 0.0
        #: All answers by verb, those after the measured time included.
        self.verbs: Counter[str] = Counter()
        self.malformed = 0
        #: Connections that the server closed, and requests it never answered.
        self.closed = 0
        self.unanswered = 0
        #: From the moment a request was sent, or was due, to its answer; in s.
        self.latency = array("d")

    def summary(self) -> dict[str, object]:
        """As plain data; the latencies in ms."""
        ordered = sorted(self.latency)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0

        return {
            "rate": self.measured / self.seconds if self.seconds else 0.0,
            "seconds": self.seconds,
            "sent": self.sent,
            "answered": sum(self.verbs.values()),
            "verbs": dict(self.verbs),
            "malformed": self.malformed,
            "closed": self.closed,
            "unanswered": self.unanswered,
            "p50": at(0.5),
            "p90": at(0.9),
            "p99": at(0.99),
            "p999": at(0.999),
            "max": at(1),
        }


def verb_of(answer: bytes) -> str:
    """The verb of a whole answer, in capitals; empty when it is not well formed."""
    if not answer.startswith(b"action=") or answer.find(b"\n\n") != len(answer) - 2 or b"\n" in answer[:-2]:
        return ""
    words = answer[7:-2].split(None, 1)
    return words[0].decode("ascii", "replace").upper() if words else ""


class Connections:
    """Connections to one server, and the requests that are under way on them."""

    def __init__(
        self, address: tuple[str, int], count: int, next_request: Callable[[], bytes], result: Result
    ) -> None:
        self._next = next_request
        self._result = result
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        #: When the request under way on each connection was due.
        self.waiting: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        for _ in range(count):
            # Slowly: some peers listen with room for five, and a sixth waits a second for its next try.
            time.sleep(0.001)
            connection = socket.create_connection(address, timeout=30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection.fileno(), select.EPOLLIN)

    def open(self) -> list[int]:
        """The connections that the server has not closed."""
        return list(self._sockets)

    def close(self) -> None:
        """Close them all."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._poll.close()

    def ask(self, fd: int, due: float) -> None:
        """Send the next request on ``fd``."""
        request = self._next()
        self._result.sent += 1
        self.waiting[fd] = due
        try:
            written = os.write(fd, request)
        except BlockingIOError:
            written = 0
        except OSError:
            self._lost(fd)
            return
        if written != len(request):
            # The kernel's buffer holds hundreds of requests, and one is under way: a server that does not read.
            connection = self._sockets[fd]
            connection.settimeout(PATIENCE)
            try:
                connection.sendall(request[written:])
            except OSError:
                self._lost(fd)
                return
            connection.setblocking(False)

    def answered(self, timeout: float) -> Iterator[int]:
        """Wait for answers, at most ``timeout`` s; the connections that have one."""
        result, waiting = self._result, self.waiting
        for fd, _ in self._poll.poll(timeout, 1024):
            try:
                answer = os.read(fd, 8192)
            except BlockingIOError:
                continue
            except OSError:
                answer = b""
            if not answer:
                self._lost(fd)
                continue
            if fd in self._partial:
                answer = self._partial.pop(fd) + answer
            if not answer.endswith(b"\n\n") and len(answer) < 8192:
                self._partial[fd] = answer
                continue
            due = waiting.pop(fd, None)
            verb = "DUNNO" if answer == b"action=DUNNO\n\n" else verb_of(answer)
            if not verb or due is None:
                # Also an answer that nobody asked for.
                result.malformed += 1
                if due is None:
                    continue
            result.verbs[verb or "?"] += 1
            if due is not None:
                result.latency.append(time.perf_counter() - due)
            yield fd

    def _lost(self, fd: int) -> None:
        self._result.closed += 1
        if self.waiting.pop(fd, None) is not None:
            self._result.unanswered += 1
        self._partial.pop(fd, None)
        self._poll.unregister(fd)
        self._sockets.pop(fd).close()


def closed_loop(connections: Connections, result: Result, seconds: float, requests: int) -> None:
    """Each connection asks again as soon as it has its answer, for ``seconds`` or until ``requests`` were sent."""
    begin = time.perf_counter()
    end = begin + (seconds if not requests else float("inf"))
    for fd in connections.open():
        if not requests or result.sent < requests:
            connections.ask(fd, time.perf_counter())
    now = begin
    quiet = begin
    while connections.waiting and now < end:
        for fd in connections.answered(0.2):
            result.measured += 1
            now = quiet = time.perf_counter()
            if now < end and (not requests or result.sent < requests):
                connections.ask(fd, now)
        now = time.perf_counter()
        if now - quiet > PATIENCE:
            break
    result.seconds = now - begin


def offered(connections: Connections, result: Result, seconds: float, rate: float) -> None:
    """``rate`` requests a second over all connections in turn, for ``seconds``; a late answer delays no other request."""
    begin = time.perf_counter()
    idle = deque(connections.open())
    total, number = int(seconds * rate), 0
    while number < total:
        now = time.perf_counter()
        while idle and number < total and begin + number / rate <= now:
            connections.ask(idle.popleft(), begin + number / rate)
            number += 1
        if number >= total or not (idle or connections.waiting) or now - begin > seconds + PATIENCE:
            break
        # epoll counts in whole milliseconds; when nothing is idle only an answer can help.
        pause = begin + number / rate - now if idle else 0.2
        for fd in connections.answered(max(0.0, pause)):
            result.measured += 1
            idle.append(fd)
    result.seconds = time.perf_counter() - begin


def drain(connections: Connections) -> None:
    """Take the answers that are still under way, and notice what the server closed in the meantime."""
    end = time.perf_counter() + PATIENCE
    while connections.waiting and time.perf_counter() < end:
        for _ in connections.answered(0.2):
            pass
    for _ in connections.answered(0):
        pass


def run(
    address: tuple[str, int],
    users: list[str],
    stage: str = traffic.END_OF_MESSAGE,
    connections: int = 50,
    seconds: float = 5.0,
    requests: int = 0,
    rate: float = 0.0,
) -> Result:
    """One run against the server at ``address``.

    :param requests: stop after so many requests instead of ``seconds`` (without ``rate``).
    :param rate: requests a second to offer; 0: as many as are answered.
    :raises OSError: the server does not take the connections.
    """
    result = Result()
    all_connections = Connections(address, connections, traffic.requests(users, stage), result)
    try:
        if rate:
            offered(all_connections, result, seconds, rate)
        else:
            closed_loop(all_connections, result, seconds, requests)
        drain(all_connections)
        result.unanswered += len(all_connections.waiting)
    finally:
        all_connections.close()
    return result


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--connections", "-c", type=int, default=50, help="held at once (default 50)")
    parser.add_argument("--seconds", "-d", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument("--requests", "-n", type=int, default=0, help="stop after so many instead")
    parser.add_argument(
        "--rate", "-R", type=float, default=0.0, help="requests a second to offer, over all connections"
    )
    parser.add_argument(
        "--stage", "-s", default=traffic.END_OF_MESSAGE, help="protocol_state (default END-OF-MESSAGE)"
    )
    parser.add_argument("--users", "-u", type=int, default=1000, help="accounts that send (default 1000)")
    parser.add_argument(
        "--population", type=int, default=0, help="draw them out of so many (default: all of them send)"
    )
    return parser


def main() -> int:
    """Run, print one line of JSON; 1 when something was not answered as it must be."""
    given = arguments().parse_args()
    host, _, port = given.address.rpartition(":")
    if not host or not port.isdecimal():
        print(f"bench.load: {given.address!r} is not HOST:PORT", file=sys.stderr)
        return 2
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    users = traffic.active_users(given.users, given.population or given.users)
    gc.disable()
    try:
        result = run(
            (host, int(port)),
            users,
            given.stage,
            given.connections,
            given.seconds,
            given.requests,
            given.rate,
        )
    except OSError as error:
        print(f"bench.load: {given.address} with {given.connections} connections: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.summary()))
    return 1 if result.malformed or result.unanswered or result.closed else 0


if __name__ == "__main__":
    sys.exit(main())
