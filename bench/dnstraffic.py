"""Mail from outside, as Postfix asks about it at RCPT, and a generator of load with it: ``python -m bench.dnsload``.

The attributes and their order are those of :mod:`bench.traffic`.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator

from bench import traffic

#: The first half of addresses that stand on no list, or on one (each tenth), and of those that stand on all.
CLEAN, LISTED = "198.18", "198.19"
#: An address that the figures ban; nothing else refuses it.
BANNED = f"{CLEAN}.255.253"
#: Zones of senders: each name below permits all clients of ``CLEAN`` and ``LISTED``, or none.
HONEST, FORGED = "honest.example", "forged.example"

_REQUEST = "\n".join(
    (
        "request=smtpd_access_policy",
        "protocol_state=RCPT",
        "protocol_name=ESMTP",
        "client_address=%(client)s",
        "client_name=mail.%(domain)s",
        "client_port=31415",
        "reverse_client_name=mail.%(domain)s",
        "server_address=192.0.2.25",
        "server_port=25",
        "helo_name=mail.%(domain)s",
        "sender=%(sender)s@%(domain)s",
        f"recipient=%(recipient)s@{traffic.DOMAIN}",
        "recipient_count=0",
        "queue_id=",
        "instance=%(instance)s",
        "size=2000",
        "etrn_domain=",
        "stress=",
        "sasl_method=",
        "sasl_username=",
        "sasl_sender=",
        "ccert_subject=",
        "ccert_issuer=",
        "ccert_fingerprint=",
        "ccert_pubkey_fingerprint=",
        "encryption_protocol=TLSv1.3",
        "encryption_cipher=TLS_AES_256_GCM_SHA384",
        "encryption_keysize=256",
        "policy_context=smtpd",
        "compatibility_level=3.6",
        "mail_version=3.8.6",
        "",
        "",
    )
)
#: A mail: client, sender's local part and domain, recipient's local part.
Mail = tuple[str, str, str, str]


def address(network: str, number: int) -> str:
    """Address ``number`` of a /16."""
    return f"{network}.{number >> 8 & 255}.{number & 255}"


def known(first: int, count: int) -> Iterator[Mail]:
    """``count`` clients at random, each with a sender of its own."""
    order = random.Random(count).choices(range(first, first + count), k=65_536)
    mails = [(address(CLEAN, n), "a", f"d{n}.{HONEST}", "r") for n in range(first, first + count)]
    return (mails[n - first] for n in itertools.cycle(order))


def fresh(first: int, count: int) -> Iterator[Mail]:
    """Each mail from a client and a domain that were never seen before."""
    return ((address(CLEAN, n), "a", f"d{n}.{HONEST}", "r") for n in itertools.count(first))


def listed(first: int, count: int) -> Iterator[Mail]:
    """The same from clients that stand on all lists."""
    return ((address(LISTED, n), "a", f"d{n}.{HONEST}", "r") for n in itertools.count(first))


def forged(first: int, count: int) -> Iterator[Mail]:
    """The same with domains that do not permit the client."""
    return ((address(CLEAN, n), "a", f"d{n}.{FORGED}", "r") for n in itertools.count(first))


def hostile(first: int, count: int) -> Iterator[Mail]:
    """Each mail from a client and a domain of its own that are made to hold SPF up (:mod:`bench.dnsspf`)."""
    return ((address("203.0", n), "a", f"e{n}.hostile.example", "r") for n in itertools.count(first))


def triplets(first: int, count: int) -> Iterator[Mail]:
    """Clients, senders and recipients at random, no two mails the same."""
    draw = random.Random(first).getrandbits
    while True:
        bits = draw(128)
        client = f"{(bits & 63) + 20}.{bits >> 7 & 255}.{bits >> 15 & 255}.{bits >> 23 & 255}"
        # Letters alone: what looks like a number that counts up is left out of a triplet.
        name = f"{bits >> 31 & 0xFFFFFFFFFF:x}".translate(_LETTERS)
        yield client, name, f"{name[:6]}.example", f"r{bits >> 71 & 1023}"


_LETTERS = str.maketrans("0123456789", "ghijklmnop")
KINDS: dict[str, Callable[[int, int], Iterator[Mail]]] = {
    each.__name__: each for each in (known, fresh, listed, forged, hostile, triplets)
}


def requests(mails: Iterator[Mail]) -> Callable[[], bytes]:
    """A function that gives the next request; the instance never repeats."""
    prefix = f"{os.getpid():x}.{time.time_ns():x}"
    numbers = itertools.count()

    def next_request() -> bytes:
        client, sender, domain, recipient = next(mails)
        fields = {
            "client": client,
            "sender": sender,
            "domain": domain,
            "recipient": recipient,
            "instance": f"{prefix}.{next(numbers):x}.0",
        }
        return (_REQUEST % fields).encode("ascii")

    return next_request


def without_dns() -> Callable[[], bytes]:
    """Mail that needs no DNS: by one's own users, after its data, and in turn from a banned client."""
    submission = traffic.requests(traffic.active_users(1000, 1000), traffic.END_OF_MESSAGE)
    banned = requests(itertools.repeat((BANNED, "a", f"d.{HONEST}", "r")))
    turns = itertools.cycle((submission, banned))

    def next_request() -> bytes:
        return next(turns)()

    return next_request
