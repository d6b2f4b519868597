"""What detectors cost: the same requests with all of them and with none; a million accounts in the database."""

from __future__ import annotations

import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

from bench import servers, traffic
from bench.figures import Rates, Say, Scale, judged, rest, saturate, spread

#: One of each kind, at lines that are never reached.
DETECTORS = "".join(
    f"""
[[detect]]
name = "d{number}"
when = "more than {what}"
then = "suspend"
"""
    for number, what in enumerate(
        (
            "8 client networks per user in 10m",
            "3 listed clients per user in 1h",
            "20 sender addresses per user in 1h",
            "8 sender domains per user in 1h",
            "500 recipients per user in 1h",
            "60 new recipients per user in 1h",
            "20 quota breaches per user in 1h",
            "20 refused requests per user in 1h",
            "30% failed of at least 20 deliveries per user in 1h",
            "8 times the usual recipients per user in 1h, at least 999999",
        )
    )
)


def detectors(scale: Scale, work: Path, say: Say) -> None:
    """Requests a second with all detectors on and with none, in turns; processor time."""
    with (
        servers.policyd(work / "detect-none", "no detectors") as none,
        servers.policyd(work / "detect-all", "all detectors", servers.CHECKS + DETECTORS) as every,
    ):
        both = (none, every)
        for server in both:
            rest(server)
            saturate(server, min(3.0, scale.seconds))
        rates = {server.name: Rates() for server in both}
        for turn in range(scale.rounds):
            for server in both if turn % 2 == 0 else reversed(both):
                saturate(server, scale.seconds, into=rates[server.name])
    for server in both:
        say(f"{server.name:<16}{rates[server.name]}")
    ratios = [a / b for a, b in zip(rates[every.name].rates, rates[none.name].rates, strict=True)]
    say(f"all / none      {spread(ratios)}   bar 0.80: {judged(statistics.median(ratios) >= 0.80)}")


def accounts(scale: Scale, work: Path, say: Say) -> None:
    """A database with a million accounts and whom they wrote to: start-up, resident memory, the rate."""
    directory = work / "accounts"
    checks = servers.CHECKS + DETECTORS
    with servers.policyd(directory, checks=checks):
        pass
    fill(directory / "policyd.db", scale.users)
    began = time.monotonic()
    with servers.policyd(directory, "a million accounts", checks) as server:
        started = time.monotonic() - began
        rest(server)
        rates = Rates()
        for _ in range(scale.rounds):
            saturate(server, scale.seconds, scale.users, rates)
        now, most = server.memory()
    octets = (directory / "policyd.db").stat().st_size
    say(f"{scale.users:,} accounts, {10 * scale.users:,} recipients: {octets / 1e9:.2f} GB; {rates}")
    say(f"start until it listens   {started:.2f} s   bar 5 s: {judged(started < 5)}")
    say(
        f"resident memory          {now:.0f} MB, at its highest {most:.0f} MB   bar 250 MB: {judged(now < 250)}"
    )


def fill(path: Path, users: int) -> None:
    """Accounts with marks and a past, and ten recipients each."""
    marks = '{"d0/client networks":{"198.18.0.0/24":[1,1],"203.0.113.0/24":[2,2]},"d5/new recipients":{"1234567890abcdef":[1,1]}}'
    past = f'{{"recipients/3600000":[{",".join(f"[{day},{day % 9}]" for day in range(30))}]}}'
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1) "
            "INSERT INTO account SELECT 'u' || i || '@' || ?2, 'bench', 'learned', 1, 0, 1, 1, 100, 0, '[]', '', ?3, ?4 FROM n",
            (users, traffic.DOMAIN, marks, past),
        )
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1), "
            "r (j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM r WHERE j < 9) "
            "INSERT INTO correspondent SELECT 'u' || i || '@' || ?2, (i * 7919 + j * 104729) % 9007199254740993, 20000 FROM n, r",
            (users, traffic.DOMAIN),
        )
        connection.execute("COMMIT")
