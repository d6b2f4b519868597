"""The requests that the benchmark sends: what Postfix sends, each with an instance of its own.

The attributes and their order are those of Postfix's SMTPD_POLICY_README, up to version 3.8.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

RCPT = "RCPT"
END_OF_MESSAGE = "END-OF-MESSAGE"
#: The domain of the accounts; the recipients are elsewhere, so that the mail counts as external.
DOMAIN = "example.org"
SIZE = 2_000


def user_name(number: int) -> str:
    """The login of account ``number``."""
    return f"u{number}@{DOMAIN}"


def active_users(count: int, population: int) -> list[str]:
    """``count`` logins out of ``population``, the same ones in each run."""
    if count > population:
        raise ValueError(f"{count} active users out of {population} accounts")
    if count == population:
        return [user_name(number) for number in range(count)]
    return [user_name(number) for number in random.Random(count).sample(range(population), count)]


def _parts(user: str, number: int, stage: str) -> tuple[bytes, bytes]:
    """A request without its instance: what stands before it and what follows."""
    at_rcpt = stage == RCPT
    host = f"host{number}.example.net"
    head = (
        "request=smtpd_access_policy",
        f"protocol_state={stage}",
        "protocol_name=ESMTP",
        f"client_address=198.18.{number >> 8 & 255}.{number & 255}",
        f"client_name={host}",
        f"client_port={1024 + number % 60_000}",
        f"reverse_client_name={host}",
        "server_address=192.0.2.25",
        "server_port=587",
        f"helo_name={host}",
        f"sender={user}",
        f"recipient=r{number}@example.net",
        f"recipient_count={0 if at_rcpt else 1}",
        f"queue_id={'' if at_rcpt else f'4F{number:08X}'}",
        "instance=",
    )
    tail = (
        "",
        f"size={SIZE}",
        "etrn_domain=",
        "stress=",
        "sasl_method=PLAIN",
        f"sasl_username={user}",
        "sasl_sender=",
        "ccert_subject=",
        "ccert_issuer=",
        "ccert_fingerprint=",
        "ccert_pubkey_fingerprint=",
        "encryption_protocol=TLSv1.3",
        "encryption_cipher=TLS_AES_256_GCM_SHA384",
        "encryption_keysize=256",
        "policy_context=submission",
        "compatibility_level=3.6",
        "mail_version=3.8.6",
        "",
        "",
    )
    return "\n".join(head).encode("ascii"), "\n".join(tail).encode("ascii")


def requests(users: list[str], stage: str) -> Callable[[], bytes]:
    """A function that gives the next request: users at random, all as often; the instance never repeats."""
    parts = [_parts(user, number, stage) for number, user in enumerate(users)]
    order = random.Random(len(users)).choices(parts, k=65_536)
    prefix = b"%x.%x" % (os.getpid(), time.time_ns())
    number = 0

    def next_request() -> bytes:
        nonlocal number
        number += 1
        head, tail = order[number & 65_535]
        return b"%b%b.%x.0%b" % (head, prefix, number, tail)

    return next_request
