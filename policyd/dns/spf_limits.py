"""Which records of strangers are evaluated at all: one that is huge must not hold the loop, which all mail shares."""

from __future__ import annotations

import re

#: Octets of a record. RFC 7208 3.4 wants all TXT of a name within 512; large providers stay below it, and records that
#: list every network of a provider reach some 2,000.
MOST_OCTETS = 4096
#: Terms that name no network. Ten of them may ask the DNS (RFC 7208 4.6.4).
MOST_TERMS = 40
#: Octets of one term, and of one label in it; macros make them longer than what they stand for.
MOST_TERM = 400
MOST_LABEL = 128
#: Macros of one term.
MOST_MACROS = 20

_NETWORK = re.compile(rb"[-+?~]?ip[46]:", re.IGNORECASE)


def fits(record: bytes) -> bool:
    """Whether a TXT record is small enough to be looked into."""
    return len(record) <= MOST_OCTETS


def objection(record: bytes) -> str:
    """Why the SPF record is not evaluated; empty when it is."""
    if len(record) > MOST_OCTETS:
        return f"the record has more than {MOST_OCTETS} octets"
    others = 0
    for term in record.split(b" "):
        if len(term) > MOST_TERM:
            return f"a term of the record has more than {MOST_TERM} octets"
        if not _NETWORK.match(term):
            others += bool(term)
            if term.count(b"%") > MOST_MACROS:
                return f"a term of the record has more than {MOST_MACROS} macros"
        if len(term) > MOST_LABEL and max(map(len, term.split(b"."))) > MOST_LABEL:
            return f"a label in the record has more than {MOST_LABEL} octets"
    return f"the record has more than {MOST_TERMS} terms besides networks" if others > MOST_TERMS else ""
