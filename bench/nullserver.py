"""The yardstick: Twisted on its epoll reactor reads each request into a dict, answers DUNNO and does nothing else.

``python -m bench.nullserver PORT`` listens on 127.0.0.1 and prints one line when it does.
"""

from __future__ import annotations

import sys

from twisted.internet import epollreactor

if __name__ == "__main__":
    # By name, although it is Linux's default: the figure is of this reactor. Before anything imports another one.
    epollreactor.install()

from twisted.internet import protocol
from twisted.protocols import basic


class NullPolicy(basic.LineOnlyReceiver):
    """One connection."""

    delimiter = b"\n"
    MAX_LENGTH = 65_536

    def connectionMade(self) -> None:  # noqa: N802, Twisted's name
        """A new connection."""
        self.request: dict[bytes, bytes] = {}

    def lineReceived(self, line: bytes) -> None:  # noqa: N802, Twisted's name
        """An attribute, or the empty line that ends a request."""
        if line:
            name, _, value = line.partition(b"=")
            self.request[name] = value
            return
        self.request = {}
        self.transport.write(b"action=DUNNO\n\n")


def main(port: int) -> None:
    """Serve until the process is ended."""
    from twisted.internet import reactor

    factory = protocol.Factory.forProtocol(NullPolicy)
    factory.noisy = False
    reactor.listenTCP(port, factory, backlog=1024, interface="127.0.0.1")
    print(f"null server ready on {type(reactor).__name__}", file=sys.stderr, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
