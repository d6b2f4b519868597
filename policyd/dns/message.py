"""Questions as octets, and what a nameserver's answer says; no socket, no clock."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from policyd.lookup import FOUND, NODATA, NXDOMAIN, UNKNOWN
from policyd.match import domain_key

#: What fits through every path without being cut into fragments (DNS flag day 2020).
EDNS_SIZE = 1232
#: Longer answers and ones of more records are not read: reading them would hold everybody up. They are some 15 times what
#: the longest honest ones are.
MOST_OCTETS = 16_384
MOST_RECORDS = 200
#: A CNAME may lead to a CNAME; pyspf and most resolvers stop about here.
MOST_ALIASES = 10

_HEADER = struct.Struct("!HHHHHH")
_TAIL = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_QR, _AA, _TC, _RD = 0x8000, 0x0400, 0x0200, 0x0100
_OPCODE, _RCODE = 0x7800, 0x000F
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP, _REFUSED = range(6)
_WHY = {_FORMERR: "formerr", _SERVFAIL: "servfail", _NOTIMP: "notimp", _REFUSED: "refused"}
#: Owner: root; type: OPT; class: the size; no flags, no options (RFC 6891 6.1.2).
_OPT = b"\0" + struct.pack("!HHIH", 41, EDNS_SIZE, 0, 0)
_SOA, _OPT_TYPE = 6, 41
#: Compressed, the name that stands behind the header: what was asked for (RFC 1035 4.1.4).
_ASKED = b"\xc0\x0c"
_TYPES = {"A": 1, "NS": 2, "CNAME": 5, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SPF": 99}


class Question(NamedTuple):
    """A question, ready to be sent behind an id."""

    name: str
    rdtype: str
    #: The section of the question as it stands in messages.
    section: bytes

    def wire(self, identity: int, *, edns: bool = True) -> bytes:
        """The message; without EDNS for nameservers that do not know it."""
        header = _HEADER.pack(identity, _RD, 1, 0, 0, 1 if edns else 0)
        return header + self.section + (_OPT if edns else b"")


class Reply(NamedTuple):
    """What one nameserver said."""

    #: As in :class:`policyd.lookup.Found`; ``unknown``: this nameserver cannot say.
    status: str
    records: tuple[Any, ...] = ()
    #: As the records say, not clamped, s; ``None``: nothing says how long.
    ttl: int | None = None
    why: str = ""
    #: The name that has to be asked next: a CNAME leads there, and the nameserver did not follow.
    alias: str = ""
    #: Cut off: ask again over TCP.
    truncated: bool = False


def canonical(name: str) -> str:
    """The name as it is asked: A-labels, lower case, without the last dot; the root is ``.``.

    :raises ValueError: no name can be so.
    """
    if not 0 < len(name) <= 255:
        raise ValueError("bad name")
    if not name.isascii():
        name = domain_key(name)
        if not name.isascii():
            raise ValueError("bad name")
    if name == ".":
        return name
    name = name.lower().removesuffix(".")
    if name in ("", "."):
        raise ValueError("bad name")
    return name


def make_question(name: str, rdtype: str) -> Question:
    """The question for a canonical name. Every octet means itself: a backslash is no escape.

    :raises ValueError: no name can be so, or the type is none of those that policyd asks for.
    """
    labels = [] if name == "." else name.encode("ascii").split(b".")
    if any(not 0 < len(label) <= 63 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise ValueError("bad name")
    code = _TYPES.get(rdtype)
    if code is None:
        raise ValueError("unknown type")
    section = b"".join(bytes((len(label),)) + label for label in labels) + b"\0" + _TAIL.pack(code, 1)
    return Question(name, rdtype, section)


def answers(question: Question, identity: int, data: bytes) -> bool:
    """Whether a datagram answers this question: id, direction and question (RFC 5452 9.1). Cheap: most junk ends here."""
    if len(data) < 12:
        return False
    given, flags, questions, _, _, _ = _HEADER.unpack_from(data)
    if given != identity or not flags & _QR or flags & _OPCODE:
        return False
    if questions == 0:
        # Old nameservers that cannot read a question do not repeat it.
        return len(data) == 12 and flags & _RCODE in (_FORMERR, _NOTIMP)
    # Lengths of labels are below 64, so this folds letters only.
    return questions == 1 and data[12 : 12 + len(question.section)].lower() == question.section.lower()


def read_reply(question: Question, data: bytes) -> Reply:
    """What an answer to ``question`` says.

    :raises ValueError: it is malformed.
    """
    _, flags, _, answer_count, authority_count, additional_count = _HEADER.unpack_from(data)
    if flags & _TC:
        return Reply(UNKNOWN, why="truncated", truncated=True)
    rcode = flags & _RCODE
    if rcode not in (_NOERROR, _NXDOMAIN):
        return Reply(UNKNOWN, why=_WHY.get(rcode, f"rcode {rcode}"))
    if len(data) > MOST_OCTETS or answer_count + authority_count + additional_count > MOST_RECORDS:
        return Reply(UNKNOWN, why="answer too large")
    if answer_count == 0:
        return _read_nothing(
            data, 12 + len(question.section), rcode, flags, authority_count, additional_count
        )
    if question.rdtype == "A" and rcode == _NOERROR:
        plain = _read_addresses(question, data, answer_count, authority_count + additional_count)
        if plain is not None:
            return plain
    try:
        message = dns.message.from_wire(data)
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            # The upper bits stand in the OPT record (BADVERS).
            return Reply(UNKNOWN, why=f"rcode {int(message.rcode())}")
        return _read(question, message)
    # dnspython's two versions raise different errors of Python's own beside their own for hostile octets.
    except Exception as error:
        raise ValueError("malformed") from error


def _read_nothing(
    data: bytes, at: int, rcode: int, flags: int, authority_count: int, additional_count: int
) -> Reply:
    """An answer without any record for the question, as most are: nobody is listed in most lists.

    Only the SOA record and the upper bits of the rcode matter; reading all with dnspython takes ten times as long.
    """
    ttl, referred = None, False
    for number in range(authority_count + additional_count):
        at = _skip_name(data, at)
        if at + _RECORD.size > len(data):
            raise ValueError("malformed")
        kind, _, seconds, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size + length
        if at > len(data):
            raise ValueError("malformed")
        if kind == _OPT_TYPE and number >= authority_count and seconds >> 24:
            # The upper bits of the rcode (BADVERS).
            return Reply(UNKNOWN, why=f"rcode {(seconds >> 24 << 4) + rcode}")
        if number < authority_count and kind == _SOA and length >= 22:
            # RFC 2308 5: the smaller of the record's own TTL and its last field.
            ttl = min(_ttl(seconds), int.from_bytes(data[at - 4 : at], "big"))
        referred |= number < authority_count and kind == _TYPES["NS"]
    if at != len(data):
        raise ValueError("malformed")
    if rcode == _NXDOMAIN:
        return Reply(NXDOMAIN, ttl=ttl)
    if ttl is None and referred and not flags & _AA:
        # Who only refers to others has not said that there is nothing (RFC 2308 2.2).
        return Reply(UNKNOWN, why="no recursion")
    return Reply(NODATA, ttl=ttl)


def _read_addresses(question: Question, data: bytes, answer_count: int, other_count: int) -> Reply | None:
    """Addresses of the very name that was asked for, as a list answers; ``None`` for everything else.

    dnspython reads that too, in ten times the time: a burst from clients that stand on all lists needs it thousands of times.
    """
    owners = (_ASKED, question.section[: -_TAIL.size])
    at = 12 + len(question.section)
    found: dict[bytes, int] = {}
    for _ in range(answer_count):
        owner = next((each for each in owners if data.startswith(each, at)), b"")
        at += len(owner)
        value = at + _RECORD.size
        if not owner or value + 4 > len(data):
            return None
        kind, rdclass, seconds, length = _RECORD.unpack_from(data, at)
        if (kind, rdclass, length) != (_TYPES["A"], 1, 4) or seconds >> 31:
            return None
        address = data[value : value + 4]
        found[address] = min(seconds, found.get(address, seconds))
        at = value + 4
    ttl = min(found.values())
    for _ in range(other_count):
        # Nothing but an OPT record that says nothing: who sends more is read with more care.
        if data[at : at + 3] != _OPT[:3] or at + len(_OPT) > len(data):
            return None
        _, _, seconds, length = _RECORD.unpack_from(data, at + 1)
        if seconds >> 24 or length:
            return None
        at += len(_OPT)
    if at != len(data):
        return None
    return Reply(FOUND, tuple(".".join(map(str, value)) for value in found), ttl)


def _skip_name(data: bytes, at: int) -> int:
    while at < len(data):
        length = data[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += length + 1
    raise ValueError("malformed")


def _ttl(seconds: int) -> int:
    """With its highest bit set it is zero (RFC 2181 8)."""
    return 0 if seconds >> 31 else seconds


def _read(question: Question, message: dns.message.Message) -> Reply:
    wanted = dns.rdatatype.from_text(question.rdtype)
    owner = message.question[0].name
    by_owner = {(each.name, each.rdtype): each for each in message.answer if each.rdclass == 1}
    ttls: list[int] = []
    alias = ""
    for _ in range(MOST_ALIASES + 1):
        found = by_owner.get((owner, wanted))
        if found is not None and message.rcode() == dns.rcode.NOERROR:
            ttls.append(found.ttl)
            return Reply(FOUND, tuple(_value(rdata) for rdata in found), min(ttls))
        led = by_owner.get((owner, dns.rdatatype.CNAME))
        if led is None:
            break
        ttls.append(led.ttl)
        owner = led[0].target
        alias = _name(owner)
    else:
        return Reply(UNKNOWN, why="too many CNAMEs")
    soa = next((each for each in message.authority if each.rdtype == dns.rdatatype.SOA), None)
    if soa is not None:
        ttls.append(min(soa.ttl, soa[0].minimum))
    ttl = min(ttls) if soa is not None else None
    if message.rcode() == dns.rcode.NXDOMAIN:
        return Reply(NXDOMAIN, ttl=ttl)
    if soa is None and alias:
        return Reply(UNKNOWN, ttl=min(ttls), why="CNAME not followed", alias=alias)
    return Reply(NODATA, ttl=ttl)


def _name(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _value(rdata: Any) -> Any:
    kind = rdata.rdtype
    if kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return rdata.address
    if kind in (dns.rdatatype.TXT, dns.rdatatype.SPF):
        return b"".join(rdata.strings)
    if kind == dns.rdatatype.MX:
        return rdata.preference, _name(rdata.exchange)
    return _name(rdata.target)  # CNAME, NS, PTR: there are no others in _TYPES
