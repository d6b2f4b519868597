"""Which records of strangers are evaluated at all: one that is huge must not hold the loop, which all mail shares."""

from __future__ import annotations

import re

#: Octets of a record. RFC 7208 3.4 wants all TXT of a name within 512; large providers stay below it, and records that
#: list every network of a provider reach some 2,000.
MOST_OCTETS = 4096
#: Octets of all records that one evaluation looks into: ten of 512 have 5,120.
MOST_IN_ALL = 8192
#: Terms that name no network. Ten of them may ask the DNS (RFC 7208 4.6.4).
MOST_TERMS = 40
#: Octets of one term, and of one label in it; macros make them longer than what they stand for.
MOST_TERM = 300
MOST_LABEL = 128
#: Macros of one term, and labels of a term that has macros.
MOST_MACROS = 10
MOST_LABELS = 30

_NETWORK = re.compile(rb"[-+?~]?ip[46]:", re.IGNORECASE)


def fits(record: bytes) -> bool:
    """Whether a TXT record is small enough to be looked into."""
    return len(record) <= MOST_OCTETS


def objection(record: bytes, in_all: int = 0) -> str:
    """Why the SPF record is not evaluated; empty when it is.

    :param in_all: octets of all records of this evaluation.
    """
    if len(record) > MOST_OCTETS:
        return f"the record has more than {MOST_OCTETS} octets"
    if in_all > MOST_IN_ALL:
        return f"the records have more than {MOST_IN_ALL} octets in all"
    others = 0
    for term in record.split(b" "):
        if len(term) > MOST_TERM:
            return f"a term of the record has more than {MOST_TERM} octets"
        if not _NETWORK.match(term):
            others += bool(term)
            if b"%" in term and (term.count(b"%") > MOST_MACROS or term.count(b".") > MOST_LABELS):
                return f"a term has more than {MOST_MACROS} macros or, with macros, {MOST_LABELS} labels"
        if len(term) > MOST_LABEL and max(map(len, term.split(b"."))) > MOST_LABEL:
            return f"a label in the record has more than {MOST_LABEL} octets"
    return f"the record has more than {MOST_TERMS} terms besides networks" if others > MOST_TERMS else ""
