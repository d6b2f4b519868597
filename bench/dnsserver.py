"""The nameservers of the figures that ask the DNS: each in a process of its own, so that its work does not count as policyd's.

The tests' own server can be slow, silent and lying. The others here answer an order of magnitude faster, so that it is not
the nameserver that is measured: for blocklists from a few octets, for senders with answers that are made before.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import dns.message

from bench.dnstraffic import CLEAN, LISTED
from tests.dns.server import Behaviour, DnsServer

#: The zones of :class:`ListServer`.
LISTS = tuple(f"list{number}.example" for number in range(6))
_TTL = 300
_A = struct.pack("!HHHIH4B", 0xC00C, 1, 1, _TTL, 4, 127, 0, 0, 2)
_SOA = struct.pack("!HHIHBB5I", 6, 1, _TTL, 22, 0, 0, 1, 3600, 600, 86400, _TTL)


class ListServer(DnsServer):
    """Blocklists with the test entries of RFC 5782.

    All of them list the network ``LISTED``; the first one each tenth address of ``CLEAN``; none anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Before each answer, s.
        self.pace = 0.0
        self.asked = 0
        self._zones = [(in_labels(zone), number) for number, zone in enumerate(LISTS)]

    def udp_question(self, transport: asyncio.DatagramTransport, data: bytes, peer: Any) -> None:
        """One datagram came in."""
        answer = self._quick(data)
        if answer is None:
            super().udp_question(transport, data, peer)
            return
        self.asked += 1
        if self.pace:
            self._loop.call_later(self.pace, transport.sendto, answer, peer)
        else:
            transport.sendto(answer, peer)

    def _quick(self, data: bytes) -> bytes | None:
        """The answer, if it is a question for an IPv4 address in one of the zones."""
        end = data.find(b"\0", 12) + 1
        if data[end : end + 4] != b"\0\1\0\1":
            return None
        zone, number = next((each for each in self._zones if data.endswith(each[0], 12, end)), (b"", 0))
        octets = _octets(data[12 : end - len(zone)]) if zone else []
        if len(octets) != 4:
            return None
        question = data[12 : end + 4]
        if _lists(octets, number):
            return data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + _A
        owner = struct.pack("!H", 0xC000 | end - len(zone))
        return data[:2] + b"\x81\x83\0\1\0\0\0\1\0\0" + question + owner + _SOA


def in_labels(name: str) -> bytes:
    """A name as messages have it."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _octets(labels: bytes) -> list[int]:
    """The octets of an address from its labels, which stand in reverse; what is none has another number of them."""
    found = []
    while labels:
        label, labels = labels[1 : labels[0] + 1], labels[labels[0] + 1 :]
        if not label.isdigit():
            return []
        found.append(int(label))
    return found[::-1]


def _lists(octets: list[int], number: int) -> bool:
    if octets == [127, 0, 0, 2]:
        return True
    network = f"{octets[0]}.{octets[1]}"
    return network == LISTED or (network == CLEAN and number == 0 and octets[3] % 10 == 0)


class ReadyServer(DnsServer):
    """Its answers are made before they are asked for; the names below ``slow`` are answered after ``pace``."""

    def __init__(self) -> None:
        super().__init__()
        #: Endings of names, in labels as messages have them.
        self.slow: tuple[bytes, ...] = ()
        self.pace = 0.0
        #: How often each question was asked, as it stands in messages.
        self.asked: Counter[bytes] = Counter()
        self._ready: dict[bytes, bytes] = {}

    def make_ready(self) -> None:
        """Make the answers for all records there are."""
        for name, types in self._records.items():
            if not name.startswith("*"):
                for rdtype in types:
                    query = dns.message.make_query(name, rdtype, use_edns=True, payload=1232)
                    wire = query.to_wire()
                    section = wire[12 : wire.index(b"\0", 12) + 5]
                    self._ready[section] = self._answer(query, Behaviour(), udp=True)[2:]

    def udp_question(self, transport: asyncio.DatagramTransport, data: bytes, peer: Any) -> None:
        """One datagram came in."""
        end = data.find(b"\0", 12) + 1
        section = data[12 : end + 4]
        self.asked[section] += 1
        ready = self._ready.get(section)
        if ready is None:
            super().udp_question(transport, data, peer)
        elif self.pace and section[:-4].endswith(self.slow):
            self._loop.call_later(self.pace, transport.sendto, data[:2] + ready, peer)
        else:
            transport.sendto(data[:2] + ready, peer)


class Remote:
    """A nameserver in another process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        #: ``ADDRESS:PORT``.
        self.nameserver: str = pipe.recv()

    def do(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call ``function``, with the server before ``arguments``, over there; what it returns."""
        self._pipe.send((function, arguments, named))
        return self._pipe.recv()


def _serve(kind: type[DnsServer], pipe: Connection) -> None:
    with kind() as server:
        pipe.send(server.nameserver)
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                function, arguments, named = pipe.recv()
                pipe.send(function(server, *arguments, **named))


@contextlib.contextmanager
def running(kind: type[DnsServer]) -> Iterator[Remote]:
    """A server of ``kind``, until the end of the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(kind, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Remote(ours)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


# --- to be called over there -------------------------------------------------------------------------------------------


def set_pace(server: ListServer, seconds: float) -> None:
    """Answer after so many seconds from now on."""
    server.pace = seconds


def asked(server: ListServer) -> int:
    """Questions for addresses so far."""
    return server.asked
