"""The benchmark's own parts: what it sends is a real request, what it gets is checked, the database it fills is sound."""

from __future__ import annotations

import ipaddress
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from bench import dnsserver, dnstraffic, fill, load, servers, traffic
from policyd.store import partitions
from policyd.units import DAY
from policyd.window import Counter


@pytest.fixture
def null(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.null_server(tmp_path) as server:
        yield server


def test_the_null_server_answers_every_request_of_the_generator(null: servers.Server) -> None:
    """300 requests over 5 connections: as many answers, all DUNNO, none malformed, nothing closed."""
    result = load.run(null.address, traffic.active_users(20, 20), connections=5, requests=300)
    assert result.summary()["answered"] == result.sent == 300
    assert result.verbs == {"DUNNO": 300}
    assert (result.malformed, result.closed, result.unanswered) == (0, 0, 0)
    assert len(result.latency) == 300


def test_an_offered_rate_sends_what_is_due_over_all_connections(null: servers.Server) -> None:
    """200 requests at 2,000/s over 40 connections: exactly 200 are sent and answered."""
    result = load.run(null.address, traffic.active_users(20, 20), connections=40, seconds=0.1, rate=2_000)
    assert result.sent == 200
    assert result.verbs == {"DUNNO": 200}


def test_requests_look_like_postfix_and_never_repeat_an_instance() -> None:
    """Some thirty attributes, the stage asked for, one empty line at the end, an instance of its own each."""
    next_request = traffic.requests(traffic.active_users(10, 1_000), traffic.RCPT)
    instances = set()
    for _ in range(500):
        request = next_request()
        assert request.endswith(b"\n\n")
        assert request.count(b"\n\n") == 1
        attributes = dict(line.split(b"=", 1) for line in request.splitlines() if line)
        assert len(attributes) >= 30
        assert attributes[b"request"] == b"smtpd_access_policy"
        assert attributes[b"protocol_state"] == b"RCPT"
        assert attributes[b"sasl_method"] == b"PLAIN"
        instances.add(attributes[b"instance"])
    assert len(instances) == 500


@pytest.mark.parametrize(
    ("answer", "verb"),
    [
        (b"action=DUNNO\n\n", "DUNNO"),
        (b"action=dunno\n\n", "DUNNO"),
        (b"action=450 4.7.1 Sending limit reached\n\n", "450"),
        (b"action=DUNNO\n\naction=DUNNO\n\n", ""),
        (b"action=DUNNO\nmore=1\n\n", ""),
        (b"\n\n", ""),
        (b"action=\n\n", ""),
    ],
)
def test_an_answer_is_well_formed_or_has_no_verb(answer: bytes, verb: str) -> None:
    """One action, one line, one empty line; anything else is not taken for an answer."""
    assert load.verb_of(answer) == verb


def test_a_server_that_hangs_up_is_noticed() -> None:
    """A connection closed instead of an answer counts as closed and as unanswered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        result = load.run(listener.getsockname()[:2], ["u0@example.org"], connections=1, requests=5)
        thread.join()
    assert (result.closed, result.unanswered, result.verbs) == (1, 1, {})


def test_the_filled_database_is_sound(tmp_path: Path) -> None:
    """Counters that can be read, decisions in closed partitions without gaps, no open one, every instance different."""
    path = tmp_path / "large.db"
    fill.fill(path, users=300, decisions=1_001)
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counters = connection.execute("SELECT value, cells FROM counter").fetchall()
        assert len({value for value, _ in counters}) == 300
        (ledger,) = connection.execute("SELECT ledger FROM ledger_state").fetchone()
        assert all(Counter.unpack(cells).used(DAY, ledger) > 0 for _, cells in counters)
        total = connection.execute(
            "SELECT count(*), count(DISTINCT id), count(DISTINCT instance), max(id) FROM decision"
        )
        assert total.fetchone() == (1_001, 1_001, 1_001, 1_001)
        found = partitions.catalogue(connection)
        assert sum(partition.rows for partition in found) == 1_001
        assert len(found) >= fill.DAYS
        assert all(partition.closed_at and partition.indexed for partition in found)
    finally:
        connection.close()


@pytest.mark.parametrize("kind", dnstraffic.KINDS)
def test_mail_from_outside_looks_as_it_comes_to_postfix(kind: str) -> None:
    """Mail of each kind is a whole request at RCPT without a login, from an address; no instance comes twice."""
    next_request = dnstraffic.requests(dnstraffic.KINDS[kind](5, 20))
    seen = set()
    for _ in range(50):
        head, end, rest = next_request().partition(b"\n\n")
        attributes = dict(line.split(b"=", 1) for line in head.splitlines())
        assert (end, rest) == (b"\n\n", b"")
        assert len(attributes) >= 30
        assert attributes[b"protocol_state"] == b"RCPT"
        assert attributes[b"sasl_username"] == b""
        assert ipaddress.ip_address(attributes[b"client_address"].decode()).is_loopback is False
        seen.add(attributes[b"instance"])
    assert len(seen) == 50


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("2.0.0.127.list0.example", True),
        ("1.0.0.127.list0.example", False),
        ("9.8.19.198.list5.example", True),
        ("20.8.18.198.list0.example", True),
        ("20.8.18.198.list1.example", False),
        ("21.8.18.198.list0.example", False),
        ("x.8.19.198.list0.example", False),
    ],
)
def test_the_quick_lists_answer_as_lists_do(name: str, found: bool) -> None:
    """Who is listed has 127.0.0.2, who is not NXDOMAIN and how long that holds: as dnspython reads it."""
    with dnsserver.ListServer() as server:
        query = dns.message.make_query(name, "A")
        answer = dns.query.udp(query, server.host, timeout=10, port=server.port)
    if found:
        assert [each.to_text() for each in answer.answer] == [f"{name}. 300 IN A 127.0.0.2"]
    else:
        assert answer.rcode() == dns.rcode.NXDOMAIN
        assert answer.authority[0].rdtype == dns.rdatatype.SOA


def test_answers_made_ready_are_those_of_the_server() -> None:
    """A server whose answers are made before says what it would have said, and counts the question."""
    with dnsserver.ReadyServer() as server:
        server.add("a.example", "MX", (10, "m.example"))
        query = dns.message.make_query("a.example", "MX", use_edns=True, payload=1232)
        before = dns.query.udp(query, server.host, timeout=10, port=server.port)
        server.make_ready()
        after = dns.query.udp(query, server.host, timeout=10, port=server.port)
        assert before == after
        assert list(server.asked.values()) == [2]
