"""Ports of loopback for servers of the tests: such as stay theirs while a server is stopped, too.

The kernel gives outgoing connections and questions the ports of its ephemeral range (ip(7), ip_local_port_range): a port of
that range that a server leaves for a moment may be some client's when it comes back.
"""

from __future__ import annotations

import itertools
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Below them stand the services that a machine may have.
_FIRST = 10_240


def before_ephemeral() -> range:
    """The ports below those that the kernel gives to clients."""
    ports = range(_FIRST, int(_RANGE.read_text().split()[0]))
    if len(ports) < 1_000:
        raise RuntimeError(f"{_RANGE} begins at {ports.stop}: the tests need ports from {_FIRST} below it")
    return ports


def _in_turn() -> itertools.cycle[int]:
    """Never the same port twice in one run; two runs side by side begin at different ones."""
    ports = before_ephemeral()
    first = random.randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_ports = _in_turn()


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host``, an address of loopback, where nobody listens, neither for TCP nor for UDP."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in _ports:
        with (
            socket.socket(family, socket.SOCK_STREAM) as tcp,
            socket.socket(family, socket.SOCK_DGRAM) as udp,
        ):
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError
