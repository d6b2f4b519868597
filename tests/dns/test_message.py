"""Questions and answers as octets: whatever comes in is an answer to the question, or it is nothing."""

from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.dns import message as message_module
from policyd.dns.message import MOST_RECORDS, Reply, answers, canonical, make_question, read_reply
from policyd.lookup import FOUND, NODATA, NXDOMAIN, UNKNOWN

QUESTION = make_question("a.example", "A")
ID = 4711


def response(*records: str, rcode: str = "NOERROR", flags: int = 0, name: str = "a.example") -> bytes:
    """An answer; a record that begins with ``!`` stands in the authority section."""
    query = dns.message.make_query(name, "A", id=ID)
    message = dns.message.make_response(query, recursion_available=True)
    message.set_rcode(dns.rcode.from_text(rcode))
    message.flags |= flags
    for record in records:
        section = message.authority if record.startswith("!") else message.answer
        owner, ttl, kind, value = record.removeprefix("!").split(" ", 3)
        section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, value))
    return message.to_wire(max_size=65535)


SOA = "!example. 600 SOA ns. root. 1 2 3 4 300"


def test_a_question_is_what_dnspython_reads() -> None:
    """Recursion is asked for, and answers of up to 1232 octets."""
    message = dns.message.from_wire(make_question("a.b-c.example", "TXT").wire(ID))
    assert message.id == ID
    assert [each.to_text() for each in message.question] == ["a.b-c.example. IN TXT"]
    assert message.flags == dns.flags.RD
    assert (message.edns, message.payload) == (0, 1232)
    assert dns.message.from_wire(QUESTION.wire(ID, edns=False)).edns == -1


@given(st.text(max_size=300))
def test_any_text_is_a_name_or_none(text: str) -> None:
    """A name is canonical once and for all, and fits into a question; what is none is a ValueError."""
    try:
        name = canonical(text)
        question = make_question(name, "A")
    except ValueError:
        return
    assert canonical(name) == name
    assert name.isascii()
    assert name == name.lower()
    assert dns.message.from_wire(question.wire(ID)).question[0].name.is_absolute()


@pytest.mark.parametrize(
    ("data", "is_one"),
    [
        (response(), True),
        (response(name="A.Example"), True),
        (response(name="b.example"), False),
        (response()[:20], False),
        (b"", False),
        (QUESTION.wire(ID), False),
        ((ID).to_bytes(2, "big") + b"\x80\x01" + bytes(8), True),  # FORMERR of those that could not read it
        ((ID).to_bytes(2, "big") + b"\x80\x00" + bytes(8), False),
        ((ID).to_bytes(2, "big") + b"\x80\x03" + bytes(8), False),
        ((ID + 1).to_bytes(2, "big") + response()[2:], False),
    ],
)
def test_only_what_answers_the_question_is_an_answer(data: bytes, is_one: bool) -> None:
    """Id, direction and question (RFC 5452 9.1)."""
    assert answers(QUESTION, ID, data) is is_one


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (response("a.example. 60 A 127.0.0.2"), Reply(FOUND, ("127.0.0.2",), 60)),
        (response("b.example. 60 A 127.0.0.2"), Reply(NODATA)),
        (response("a.example. 60 TXT x", SOA), Reply(NODATA, ttl=300)),
        (response(SOA, rcode="NXDOMAIN"), Reply(NXDOMAIN, ttl=300)),
        (response("!example. 100 SOA ns. root. 1 2 3 4 300", rcode="NXDOMAIN"), Reply(NXDOMAIN, ttl=100)),
        (
            response("!elsewhere.test. 90 SOA ns. root. 1 2 3 4 300", rcode="NXDOMAIN"),
            Reply(NXDOMAIN, ttl=90),
        ),
        (response(SOA, "!example. 60 NS ns.example.", rcode="NOERROR"), Reply(NODATA, ttl=300)),
        # An error beside records: nothing of them is believed.
        (response("a.example. 60 A 127.0.0.2", rcode="NXDOMAIN"), Reply(NXDOMAIN)),
        (response("a.example. 60 A 127.0.0.2", rcode="SERVFAIL"), Reply(UNKNOWN, why="servfail")),
        (response("a.example. 60 A 127.0.0.2", rcode="REFUSED"), Reply(UNKNOWN, why="refused")),
        (response(rcode="YXDOMAIN"), Reply(UNKNOWN, why="rcode 6")),
        (response(rcode="BADVERS"), Reply(UNKNOWN, why="rcode 16")),
        (response(flags=dns.flags.TC), Reply(UNKNOWN, why="truncated", truncated=True)),
        # Who only refers to others has not said that there is nothing; who owns the zone has.
        (response("!example. 60 NS ns.example."), Reply(UNKNOWN, why="no recursion")),
        (response("!example. 60 NS ns.example.", flags=dns.flags.AA), Reply(NODATA)),
        (
            response("a.example. 60 CNAME b.example.", "b.example. 30 A 127.0.0.2"),
            Reply(FOUND, ("127.0.0.2",), 30),
        ),
        (
            response("a.example. 60 CNAME B.example."),
            Reply(UNKNOWN, ttl=60, why="CNAME not followed", alias="b.example"),
        ),
        (response("a.example. 60 CNAME b.example.", SOA), Reply(NODATA, ttl=60)),
        (response("a.example. 60 CNAME a.example."), Reply(UNKNOWN, why="too many CNAMEs")),
    ],
)
def test_what_an_answer_says(data: bytes, reply: Reply) -> None:
    """Found, nothing of this type, no such name, or: this one cannot say."""
    assert read_reply(QUESTION, data) == reply


def test_too_many_records_are_not_read() -> None:
    """Of any section: to read them takes the time of all others."""
    records = [f"a.example. 60 A 10.0.{n // 250}.{n % 250}" for n in range(MOST_RECORDS)]
    assert read_reply(QUESTION, response(*records[:-1])).status == FOUND
    assert read_reply(QUESTION, response(*records)).status == FOUND
    assert read_reply(QUESTION, response(*records, SOA)).why == "answer too large"


@pytest.mark.parametrize(
    "tail",
    [
        b"\x80" + bytes(10),
        b"\x01",
        b"\x00\x00\x06\x00\x01",
        b"\x00\x00\x06\x00\x01" + bytes(4) + b"\xff\xff",
        b"\xc0",
    ],
)
def test_an_authority_that_is_cut_off_is_malformed(tail: bytes) -> None:
    """It says neither that there is nothing, nor for how long."""
    wire = bytearray(response(rcode="NXDOMAIN"))
    wire[8:12] = b"\x00\x01\x00\x00"
    with pytest.raises(ValueError, match="malformed"):
        read_reply(QUESTION, bytes(wire) + tail)
    wire[8:10] = b"\x00\x00"
    with pytest.raises(ValueError, match="malformed"):
        read_reply(QUESTION, bytes(wire) + tail)


REAL = [
    response("a.example. 60 A 127.0.0.2", "a.example. 60 A 127.0.0.4"),
    response("a.example. 60 CNAME b.example.", "b.example. 30 A 127.0.0.2", SOA),
    response(SOA, rcode="NXDOMAIN"),
    response("a.example. 60 MX 10 mx.example.", 'a.example. 60 TXT "x" "y"'),
]


@settings(max_examples=1500)
@given(st.sampled_from(REAL), st.data())
def test_damaged_answers_are_refused_in_one_way(real: bytes, data: st.DataObject) -> None:
    """Octets changed, cut off, put in: a reply or a ValueError, in every version of dnspython."""
    wire = bytearray(real)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(wire) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                wire[at] = data.draw(st.integers(0, 255))
            case "cut":
                del wire[max(at, 12) :]
            case _:
                wire[at:at] = data.draw(st.binary(max_size=20))
    for rdtype in ("A", "MX", "TXT"):
        question = make_question("a.example", rdtype)
        if answers(question, ID, bytes(wire)):
            try:
                reply = read_reply(question, bytes(wire))
            except ValueError:
                continue
            assert reply.status in (FOUND, NODATA, NXDOMAIN, UNKNOWN)


OPT = b"\0\x00\x29\x04\xd0\0\0\0\0\0\0"


@given(
    st.lists(
        st.tuples(st.sampled_from(["127.0.0.2", "127.0.0.3", "10.0.0.1"]), st.integers(0, 9)), min_size=1
    ),
    st.sampled_from([b"", OPT, OPT[:5] + b"\1" + OPT[6:]]),
    st.booleans(),
    st.integers(-3, 3),
)
def test_plain_addresses_say_the_same_whoever_reads_them(
    given_records: list[tuple[str, int]], opt: bytes, compressed: bool, cut: int
) -> None:
    """The quick way for a list's answer and dnspython's agree, also on octets too few or too many."""
    owner = b"\xc0\x0c" if compressed else QUESTION.section[:-4]
    records = b"".join(
        owner + struct.pack("!HHIH", 1, 1, ttl, 4) + bytes(map(int, address.split(".")))
        for address, ttl in given_records
    )
    header = struct.pack("!HHHHHH", ID, 0x8180, 1, len(given_records), 0, bool(opt))
    data = header + QUESTION.section + records + opt
    data = data[:cut] if cut < 0 else data + b"\0" * cut
    with pytest.MonkeyPatch.context() as patch:
        quick = outcome(data)
        patch.setattr(message_module, "_read_addresses", lambda *_: None)
        slow = outcome(data)
    assert quick == slow


def outcome(data: bytes) -> Reply | str:
    try:
        reply = read_reply(QUESTION, data)
    except ValueError as error:
        return str(error)
    return reply._replace(records=tuple(sorted(reply.records)))
