"""Servers of the tests get ports that no client can have taken when they come back."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.dns.server import DnsServer
from tests.ports import before_ephemeral, free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port_is_no_clients(host: str) -> None:
    """Below the ephemeral range, and never the same twice."""
    ports = [free_port(host) for _ in range(50)]
    assert len(set(ports)) == 50
    assert set(ports) <= set(before_ephemeral())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_is_taken_is_passed_over(kind: socket.SocketKind) -> None:
    """One that is taken for TCP or for UDP alone, too."""
    with socket.socket(socket.AF_INET, kind) as taken:
        following = free_port() + 1
        # Somebody else's is as good.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", following))
        assert free_port() != following


def test_a_nameserver_that_was_stopped_comes_back() -> None:
    """It was stopped for a moment, and a client took its port (CI, 2026-11-28)."""
    with DnsServer() as dns:
        assert dns.port in before_ephemeral()
        port = dns.port
        dns.stop()
        assert dns.start().port == port
