"""A DNS server of the tests' own: it says what a test wants, also what no honest server would, and counts what it was asked.

    with DnsServer() as dns:
        dns.add("2.0.0.127.bl.example", "A", "127.0.0.2")
        dns.add("example.org", "TXT", "v=spf1 -all")
        resolver = Resolver([dns.nameserver])
        dns.behave(silent=True)                        # all names
        dns.behave("slow.example", delay=1.0)          # this name and those below it; the longest name wins
        dns.behave()                                   # honest again; dns.behave("slow.example") likewise
        assert dns.count("2.0.0.127.bl.example") == 1

It runs in a thread of its own; everything may be changed while it runs. Names stand without the last dot, in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from tests.ports import free_port

IN = dns.rdataclass.IN
#: Beyond what the system allows to all (socket(7)): a burst must not be lost while the test's thread has its turn.
SO_RCVBUFFORCE = 33
JUNK_ADDRESS = "127.0.0.66"


@dataclass(frozen=True)
class Behaviour:
    """How questions are answered; the defaults are those of an honest server."""

    #: No answer at all.
    silent: bool = False
    #: Seconds before the answer.
    delay: float = 0.0
    #: ``SERVFAIL``, ``REFUSED``, ``FORMERR``, ``NOTIMP``, ``NXDOMAIN``: instead of an answer.
    rcode: str = ""
    #: Over UDP each answer is cut off, whatever its size.
    truncate: bool = False
    #: Over TCP: ``answer``, ``refuse`` (the connection is closed at once), ``silent``.
    tcp: str = "answer"
    #: Before each UDP answer so many rounds of wrong ones: no DNS, wrong id, other question, other source port. All with
    #: data claim ``JUNK_ADDRESS``.
    junk: int = 0
    #: The wrong ones alone, never the true one.
    lie: bool = False
    #: A CNAME's target is left out, though it is known here.
    chase: bool = True
    #: FORMERR to a question with EDNS, as some old servers do.
    no_edns: bool = False


class DnsServer:
    """UDP and TCP on one free port of 127.0.0.1, or of ``host``."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, minimum: int = 300) -> None:
        """
        :param minimum: of the SOA record in negative answers, s; below 0 there is no SOA record.
        """
        self.host, self.port = host, port
        self.minimum = minimum
        self.queries: Counter[tuple[str, str]] = Counter()
        #: The same over TCP alone.
        self.tcp_queries: Counter[tuple[str, str]] = Counter()
        #: (address, port) that each UDP question came from, in order, and its id.
        self.sources: list[tuple[str, int]] = []
        self.ids: list[int] = []
        self._records: dict[str, dict[str, tuple[int, list[dns.rdata.Rdata]]]] = {}
        self._existing: Counter[str] = Counter()
        self._behaviours: dict[str, Behaviour] = {"": Behaviour()}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # --- what it says -----------------------------------------------------------------------------------------------

    def add(self, name: str | dns.name.Name, rdtype: str, *values: Any, ttl: int = 300) -> None:
        """Add records; ``*.zone`` answers for each name below that has no records of its own, ``*`` for every name.

        A, AAAA, CNAME, PTR, NS: text. MX: ``(preference, name)`` or text. TXT, SPF: text, bytes, or a list of strings
        (text is UTF-8; more than 255 octets are split). Or ready :class:`dns.rdata.Rdata`.
        """
        key = key_of(name)
        with self._lock:
            if key not in self._records:
                self._records[key] = {}
                for ancestor in _ancestors(key):
                    self._existing[ancestor] += 1
            rdatas = self._records[key].setdefault(rdtype, (ttl, []))[1]
            rdatas.extend(_rdata(rdtype, value) for value in values)
            self._records[key][rdtype] = (ttl, rdatas)

    def remove(self, name: str, rdtype: str = "") -> None:
        """Remove a name's records, of one type or all; a name that has none is no error."""
        key = key_of(name)
        with self._lock:
            types = self._records.get(key)
            if types is None:
                return
            if rdtype:
                types.pop(rdtype, None)
            if not rdtype or not types:
                del self._records[key]
                for ancestor in _ancestors(key):
                    self._existing[ancestor] -= 1

    def clear(self) -> None:
        """Forget all records, behaviours and counts."""
        with self._lock:
            self._records.clear()
            self._existing.clear()
            self._behaviours = {"": Behaviour()}
        self.forget()

    def behave(self, under: str = "", **changes: Any) -> None:
        """Behave so for ``under`` and all names below it; without ``changes`` honestly again (as the names above it)."""
        with self._lock:
            if changes or not under:
                self._behaviours[key_of(under) if under else ""] = replace(Behaviour(), **changes)
            else:
                self._behaviours.pop(key_of(under), None)

    # --- what it was asked ------------------------------------------------------------------------------------------

    def count(self, name: str = "", rdtype: str = "") -> int:
        """How often it was asked for ``name`` (all names), ``rdtype`` (all types)."""
        key = key_of(name) if name else ""
        return sum(
            count
            for (asked, kind), count in list(self.queries.items())
            if (not key or asked == key) and (not rdtype or kind == rdtype)
        )

    def count_under(self, zone: str) -> int:
        """How often it was asked for ``zone`` and the names below it."""
        key = key_of(zone)
        return sum(
            count
            for (asked, _), count in list(self.queries.items())
            if asked == key or asked.endswith("." + key)
        )

    def forget(self) -> None:
        """Count from zero."""
        self.queries.clear()
        self.tcp_queries.clear()
        self.sources.clear()
        self.ids.clear()

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def nameserver(self) -> str:
        """``address:port`` as the configuration writes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def start(self) -> Self:
        """Listen; a stopped one listens on the same port again."""
        started: threading.Event = threading.Event()
        errors: list[OSError] = []
        self._thread = threading.Thread(target=self._run, args=(started, errors), daemon=True)
        self._thread.start()
        started.wait()
        if errors:
            self._thread.join()
            self._thread = None
            raise errors[0]
        return self

    def stop(self) -> None:
        """Listen no more: UDP is answered by ICMP port unreachable, TCP refused."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _run(self, started: threading.Event, errors: list[OSError]) -> None:
        asyncio.run(self._serve(started, errors))

    async def _serve(self, started: threading.Event, errors: list[OSError]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        try:
            udp, tcp = _bind(self.host, self.port)
        except OSError as error:
            errors.append(error)
            started.set()
            return
        self.port = udp.getsockname()[1]
        transport, _ = await self._loop.create_datagram_endpoint(lambda: _Udp(self), sock=udp)
        self._other, _ = await self._loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=(self.host, 0)
        )
        server = await asyncio.start_server(self._tcp, sock=tcp)
        started.set()
        await self._stopping.wait()
        transport.close()
        self._other.close()
        server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    # --- questions --------------------------------------------------------------------------------------------------

    def udp_question(self, transport: asyncio.DatagramTransport, data: bytes, peer: Any) -> None:
        """One datagram came in."""
        query = _parse(data)
        if query is None:
            return
        self.sources.append(peer[:2])
        self.ids.append(query.id)
        behaviour = self._count(query, self.queries)
        if behaviour.silent:
            return
        out: list[tuple[asyncio.DatagramTransport, bytes]] = []
        if behaviour.junk or behaviour.lie:
            for _ in range(max(behaviour.junk, 1)):
                out += [(transport, wrong) for wrong in _wrong_answers(query)]
                out.append((self._other, _claim(query).to_wire()))
        if not behaviour.lie:
            out.append((transport, self._answer(query, behaviour, udp=True)))
        if behaviour.delay:
            self._loop.call_later(behaviour.delay, _send, out, peer)
        else:
            _send(out, peer)

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                query = _parse(
                    await reader.readexactly(int.from_bytes(await reader.readexactly(2), byteorder="big"))
                )
                if query is None:
                    break
                behaviour = self._count(query, self.queries)
                self._count(query, self.tcp_queries)
                if behaviour.tcp == "refuse":
                    break
                if behaviour.tcp == "silent" or behaviour.silent:
                    continue
                await asyncio.sleep(behaviour.delay)
                wire = self._answer(query, behaviour, udp=False)
                writer.write(len(wire).to_bytes(2, "big") + wire)
        self._connections.discard(writer)
        writer.close()

    def _count(self, query: dns.message.Message, counter: Counter[tuple[str, str]]) -> Behaviour:
        question = query.question[0]
        key = key_of(question.name)
        counter[key, dns.rdatatype.to_text(question.rdtype)] += 1
        with self._lock:
            return next(
                self._behaviours[name] for name in (key, *_ancestors(key), "") if name in self._behaviours
            )

    def _answer(self, query: dns.message.Message, behaviour: Behaviour, *, udp: bool) -> bytes:
        response = dns.message.make_response(query, recursion_available=True)
        if behaviour.no_edns and query.edns >= 0:
            response.use_edns(False)
            response.set_rcode(dns.rcode.FORMERR)
            return response.to_wire()
        if behaviour.rcode:
            response.set_rcode(dns.rcode.from_text(behaviour.rcode))
            return response.to_wire()
        with self._lock:
            self._fill(response, behaviour.chase)
        size = max(query.payload, 512) if query.edns >= 0 else 512
        if udp and not behaviour.truncate:
            with contextlib.suppress(dns.exception.TooBig):
                return response.to_wire(max_size=size)
        if not udp:
            return response.to_wire(max_size=65535)
        cut = dns.message.make_response(query, recursion_available=True)
        cut.flags |= dns.flags.TC
        return cut.to_wire()

    def _fill(self, response: dns.message.Message, chase: bool) -> None:
        question = response.question[0]
        owner, rdtype = question.name, dns.rdatatype.to_text(question.rdtype)
        for _ in range(20):
            key = key_of(owner)
            types = self._types(key)
            if types is None:
                if not response.answer or chase:
                    response.set_rcode(dns.rcode.NXDOMAIN)
                break
            if rdtype in types or "CNAME" not in types:
                if rdtype in types:
                    ttl, rdatas = types[rdtype]
                    if rdatas:
                        response.answer.append(dns.rrset.from_rdata_list(owner, ttl, rdatas))
                        return
                break
            ttl, rdatas = types["CNAME"]
            response.answer.append(dns.rrset.from_rdata_list(owner, ttl, rdatas))
            owner = rdatas[0].target  # type: ignore[attr-defined]
            if not chase:
                return
        if self.minimum >= 0:
            soa = f"ns.invalid. root.invalid. 1 3600 600 86400 {self.minimum}"
            zone = owner.parent() if len(owner) > 1 else owner
            response.authority.append(dns.rrset.from_text(zone, max(self.minimum, 3600), "IN", "SOA", soa))

    def _types(self, key: str) -> dict[str, tuple[int, list[dns.rdata.Rdata]]] | None:
        """The records at ``key``: none but the name exists: empty; no such name: ``None``."""
        if key in self._records:
            return self._records[key]
        for ancestor in (*_ancestors(key), ""):
            wildcard = self._records.get(f"*.{ancestor}" if ancestor else "*")
            if wildcard is not None:
                return wildcard
        return {} if self._existing[key] else None


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._server.udp_question(self._transport, data, addr)


def key_of(name: str | dns.name.Name) -> str:
    """A name as it is counted: lower case, without the last dot, odd octets escaped as dnspython does."""
    if isinstance(name, str):
        name = dns.name.from_text(name)
    return name.to_text(omit_final_dot=True).lower()


def _ancestors(key: str) -> Iterable[str]:
    name = dns.name.from_text(key)
    while len(name) > 2:
        name = name.parent()
        yield key_of(name)


def _rdata(rdtype: str, value: Any) -> dns.rdata.Rdata:
    if isinstance(value, dns.rdata.Rdata):
        return value
    if rdtype in ("TXT", "SPF"):
        given = [value] if isinstance(value, str | bytes) else value
        octets = [each.encode() if isinstance(each, str) else each for each in given]
        strings = [each[at : at + 255] for each in octets for at in range(0, max(len(each), 1), 255)]
        return dns.rdtypes.ANY.TXT.TXT(IN, dns.rdatatype.from_text(rdtype), strings)
    if rdtype == "MX" and not isinstance(value, str):
        value = f"{value[0]} {value[1]}"
    return dns.rdata.from_text(
        IN, dns.rdatatype.from_text(rdtype), value, origin=dns.name.root, relativize=False
    )


def _parse(data: bytes) -> dns.message.Message | None:
    try:
        query = dns.message.from_wire(data)
    except dns.exception.DNSException:
        return None
    return query if len(query.question) == 1 and not query.flags & dns.flags.QR else None


def _claim(query: dns.message.Message) -> dns.message.Message:
    """An answer that claims ``JUNK_ADDRESS`` for whatever was asked."""
    response = dns.message.make_response(query, recursion_available=True)
    owner = response.question[0].name
    response.answer.append(dns.rrset.from_text(owner, 3600, "IN", "A", JUNK_ADDRESS))
    return response


def _wrong_answers(query: dns.message.Message) -> list[bytes]:
    other_id = _claim(query)
    other_id.id = (query.id + 1) % 65536
    other = dns.message.make_query("other.invalid", "A", id=query.id)
    no_question = _claim(query)
    no_question.question = []
    return [
        b"",
        b"\x00" * 3,
        query.to_wire()[:2] + b"\xff" * 40,
        _claim(query).to_wire()[:-3],
        query.to_wire(),
        other_id.to_wire(),
        _claim(other).to_wire(),
        no_question.to_wire(),
    ]


def _send(out: list[tuple[asyncio.DatagramTransport, bytes]], peer: Any) -> None:
    for transport, wire in out:
        if not transport.is_closing():
            transport.sendto(wire, peer)


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Both sockets on one port: the given one, or a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    udp, tcp = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        with contextlib.suppress(PermissionError):
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        port = port or free_port(host)
        udp.bind((host, port))
        tcp.bind((host, port))
    except OSError:
        udp.close()
        tcp.close()
        raise
    tcp.listen(200)
    tcp.setblocking(False)
    udp.setblocking(False)
    return udp, tcp
