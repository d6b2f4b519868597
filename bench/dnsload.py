"""The load generator for mail from outside: ``python -m bench.dnsload KIND HOST:PORT`` prints one line of JSON.

As :mod:`bench.load`, with the mails of :mod:`bench.dnstraffic`; and how the figures start it and read it.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from typing import Any, Self

from bench import dnstraffic, load, servers
from bench.servers import Server, Trouble

WITHOUT_DNS = "without-dns"


class Run:
    """The generator under way."""

    def __init__(self, server: Server, kind: str, **options: object) -> None:
        self._server = server
        words = [f"--{name}={value}" for name, value in options.items()]
        host, port = server.address
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.dnsload", kind, f"{host}:{port}", *words],
            cwd=servers.ROOT,
            env=servers.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> dict[str, Any]:
        """Wait for its end; what it measured.

        :raises Trouble: it could not, or an answer was missing or malformed.
        """
        said, error = self._process.communicate()
        if not said.strip():
            raise Trouble(f"{self._server.name}: {error.strip() or 'the load generator said nothing'}")
        result: dict[str, Any] = json.loads(said)
        if result["malformed"] or result["unanswered"]:
            raise Trouble(
                f"{self._server.name}: {result['malformed']} malformed answers, "
                f"{result['unanswered']} requests without an answer"
            )
        return result

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


def measured(server: Server, kind: str, **options: object) -> dict[str, Any]:
    """One run from its start to its end; see :meth:`Run.result`."""
    with Run(server, kind, **options) as run:
        return run.result()


def verbs(result: dict[str, Any]) -> str:
    """How often each answer came."""
    return ", ".join(f"{number:,} {verb}" for verb, number in sorted(result["verbs"].items())) or "none"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.dnsload", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=[*dnstraffic.KINDS, WITHOUT_DNS])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--connections", type=int, default=50, help="held at once (default 50)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument("--requests", type=int, default=0, help="stop after so many instead")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second to offer")
    parser.add_argument(
        "--first", type=int, default=0, help="the first client's number, or what chance begins with"
    )
    parser.add_argument("--count", type=int, default=300, help="clients of kind 'known' (default 300)")
    return parser


def main() -> int:
    """Run, print one line of JSON; 1 when something was not answered as it must be."""
    given = arguments().parse_args()
    host, _, port = given.address.rpartition(":")
    if given.kind == WITHOUT_DNS:
        next_request = dnstraffic.without_dns()
    else:
        next_request = dnstraffic.requests(dnstraffic.KINDS[given.kind](given.first, given.count))
    gc.disable()
    result = load.Result()
    try:
        connections = load.Connections((host, int(port)), given.connections, next_request, result)
    except OSError as error:
        print(f"bench.dnsload: {given.address}, {given.connections} connections: {error}", file=sys.stderr)
        return 2
    try:
        if given.rate:
            load.offered(connections, result, given.seconds, given.rate)
        else:
            load.closed_loop(connections, result, given.seconds, given.requests)
        load.drain(connections)
        result.unanswered += len(connections.waiting)
    finally:
        connections.close()
    print(json.dumps(result.summary()))
    return 1 if result.malformed or result.unanswered or result.closed else 0


if __name__ == "__main__":
    sys.exit(main())
