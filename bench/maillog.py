"""A synthetic mail log, as Postfix writes it behind a busy submission service and MX, and what is true of it.

``python -m bench.maillog LINES FILE`` writes one. Of ten mails four are submitted, by accounts of which few send much and many
little, to contacts of their own; four come in from outside; two connections come to nothing. Lines of several mails stand
between each other, some mails are deferred and tried again, one in fifty goes through an alias, and every submitted one
comes back from a content filter under another queue id. Random, and the same for the same seed.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

#: Seconds since 1970 of the first line: 1 November 2026, 00:00 UTC.
BEGINS = 1_793_491_200
#: Lines a day.
PACE = 350_000


@dataclass
class Truth:
    """What a log holds, as its writer knows it."""

    lines: int = 0
    messages: int = 0
    recipients: int = 0
    accounts: set[str] = field(default_factory=set, repr=False)
    first_at: int = 0
    last_at: int = 0


def write(path: Path, lines: int, accounts: int = 20_000, seed: int = 1) -> Truth:
    """Write a log of at least ``lines`` lines; what is true of it."""
    random_ = random.Random(seed)
    truth = Truth()
    at = float(BEGINS)
    waiting: list[tuple[float, str]] = []
    number = 0
    with path.open("w", encoding="ascii", buffering=1 << 20) as file:
        while truth.lines + len(waiting) < lines:
            number += 1
            at += random_.expovariate(PACE / 86_400 / 7.5)
            kind = random_.random()
            if kind < 0.4:
                _submitted(random_, truth, waiting, at, number, accounts)
            elif kind < 0.8:
                _from_outside(random_, waiting, at, number)
            else:
                _noise(random_, waiting, at)
            if len(waiting) > 20_000:
                _flush(file, waiting, truth, at - 30)
        _flush(file, waiting, truth, float("inf"))
    return truth


def _flush(file: TextIO, waiting: list[tuple[float, str]], truth: Truth, until: float) -> None:
    waiting.sort()
    ready = [line for line in waiting if line[0] < until]
    del waiting[: len(ready)]
    truth.lines += len(ready)
    for at, text in ready:
        stamp = time.gmtime(at)
        file.write(
            f"{stamp[0]}-{stamp[1]:02}-{stamp[2]:02}T{stamp[3]:02}:{stamp[4]:02}:{stamp[5]:02}"
            f".{int(at * 1_000_000) % 1_000_000:06}+00:00 mx1 postfix/{text}\n"
        )


def _submitted(
    random_: random.Random,
    truth: Truth,
    waiting: list[tuple[float, str]],
    at: float,
    number: int,
    accounts: int,
) -> None:
    who = 1 + int(accounts * random_.random() ** 3)
    login = f"u{who}@example.org"
    pid, first, second = random_.randrange(1000, 60_000), f"4F{number:07X}z", f"4G{number:07X}z"
    count = 1 if random_.random() < 0.8 else random_.randrange(2, 12)
    to = [f"c{random_.randrange(60)}.{who}@example{who % 97}.net" for _ in range(count)]
    to = list(dict.fromkeys(to))
    client = f"host{who}.example.net[198.51.{who % 250}.{who // 250 % 250}]"
    size, half, add = random_.randrange(800, 90_000), at + 0.2, waiting.append
    add((at, f"submission/smtpd[{pid}]: connect from {client}"))
    tls = "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"
    add((at + 0.01, f"submission/smtpd[{pid}]: Anonymous TLS connection established from {client}: {tls}"))
    add(
        (
            at + 0.1,
            f"submission/smtpd[{pid}]: {first}: client={client}, sasl_method=PLAIN, sasl_username={login}",
        )
    )
    add((half, f"cleanup[{pid + 1}]: {first}: message-id=<{number}@host{who}.example.net>"))
    add((half + 0.01, f"qmgr[811]: {first}: from=<{login}>, size={size}, nrcpt={len(to)} (queue active)"))
    add(
        (
            half + 0.02,
            f"submission/smtpd[{pid}]: disconnect from {client} ehlo=2 starttls=1 auth=1 mail=1 quit=1",
        )
    )
    done = "relay=127.0.0.1[127.0.0.1]:10024, delay=0.4, delays=0.1/0/0/0.3, dsn=2.0.0, status=sent (250 2.0.0 Ok)"
    # For one in fifty an alias made three of the last recipient before the mail was queued.
    made = [f"m{n}.{who}@example{n}.com" for n in range(3)] if random_.random() < 0.02 else []
    queued = len(to) - 1 + len(made) if made else len(to)
    add((half + 0.01, f"qmgr[811]: {first}: from=<{login}>, size={size}, nrcpt={queued} (queue active)"))
    for address in to[:-1] if made else to:
        add((half + 0.4, f"smtp[{pid + 2}]: {first}: to=<{address}>, {done}"))
    for address in made:
        add((half + 0.4, f"smtp[{pid + 2}]: {first}: to=<{address}>, orig_to=<{to[-1]}>, {done}"))
    add((half + 0.41, f"qmgr[811]: {first}: removed"))
    # The filter gives it back.
    add((half + 0.3, f"smtpd[{pid + 3}]: {second}: client=localhost[127.0.0.1]"))
    add((half + 0.31, f"cleanup[{pid + 1}]: {second}: message-id=<{number}@host{who}.example.net>"))
    add(
        (
            half + 0.32,
            f"qmgr[811]: {second}: from=<{login}>, size={size + 500}, nrcpt={len(to)} (queue active)",
        )
    )
    later = half + 0.5
    if random_.random() < 0.05:
        lost = "relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, status=deferred (connect to mx: timed out)"
        for address in to:
            add((later, f"smtp[{pid + 4}]: {second}: to=<{address}>, {lost}"))
        later += 300
        add(
            (later, f"qmgr[811]: {second}: from=<{login}>, size={size + 500}, nrcpt={len(to)} (queue active)")
        )
    for address in to:
        add((later, f"smtp[{pid + 4}]: {second}: to=<{address}>, {done}"))
    add((later + 0.01, f"qmgr[811]: {second}: removed"))
    truth.messages += 1
    truth.recipients += len(to)
    truth.accounts.add(login)
    moment = int((half + 0.01) * 1_000_000) // 1000
    truth.first_at = truth.first_at or moment
    truth.last_at = moment


def _from_outside(random_: random.Random, waiting: list[tuple[float, str]], at: float, number: int) -> None:
    pid, queue_id = random_.randrange(1000, 60_000), f"4H{number:07X}z"
    client, add = f"mail.example{number % 999}.com[203.0.113.{number % 250}]", waiting.append
    sender, to = (
        f"someone{number % 5000}@example{number % 999}.com",
        f"u{random_.randrange(1, 20_000)}@example.org",
    )
    add((at, f"smtpd[{pid}]: connect from {client}"))
    add((at + 0.1, f"smtpd[{pid}]: {queue_id}: client={client}"))
    add((at + 0.2, f"cleanup[{pid + 1}]: {queue_id}: message-id=<in{number}@example{number % 999}.com>"))
    add((at + 0.21, f"qmgr[811]: {queue_id}: from=<{sender}>, size=4711, nrcpt=1 (queue active)"))
    add((at + 0.22, f"smtpd[{pid}]: disconnect from {client} ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5"))
    done = "relay=mx1[private/dovecot-lmtp], delay=0.2, delays=0.1/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)"
    add((at + 0.3, f"lmtp[{pid + 2}]: {queue_id}: to=<{to}>, orig_to=<{to.upper()}>, {done}"))
    add((at + 0.31, f"qmgr[811]: {queue_id}: removed"))


def _noise(random_: random.Random, waiting: list[tuple[float, str]], at: float) -> None:
    pid, client = random_.randrange(1000, 60_000), f"unknown[192.0.2.{random_.randrange(250)}]"
    add = waiting.append
    add((at, f"smtpd[{pid}]: connect from {client}"))
    if random_.random() < 0.5:
        refused = "554 5.7.1 Service unavailable; Client host blocked using bl.example.net"
        who = "from=<a@example.com> to=<u1@example.org> proto=ESMTP helo=<x>"
        add((at + 0.3, f"smtpd[{pid}]: NOQUEUE: reject: RCPT from {client}: {refused}; {who}"))
    else:
        add(
            (
                at + 0.3,
                f"smtpd[{pid}]: warning: {client}: SASL LOGIN authentication failed: (reason unavailable), sasl_username=u1",
            )
        )
    add((at + 0.4, f"smtpd[{pid}]: disconnect from {client} ehlo=1 auth=0/1 commands=1/2"))


if __name__ == "__main__":
    print(write(Path(sys.argv[2]), int(sys.argv[1])))
