"""The figure of a flood of random triplets: that greylisting stays within its bounds and as fast as it was."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from bench import dnsload, servers
from bench.figures import CONNECTIONS, Rates, Say, Scale, judged, rest, spread
from bench.servers import Server, Trouble

#: The flood is measured in so many parts; the first and the last of them are compared, so many each.
PARTS, COMPARED = 20, 4
LEAST_RATIO, MOST_MEMORY = 0.85, 150


def _checks(rows: int, octets: int) -> str:
    return f"""
[keep]
memory = {rows}
max_size = "{octets // 1_000_000}MB"
min_free = "100MB"

[[check]]
use = "bans"

[[check]]
use = "greylist"
for = "mx"
"""


class Size(NamedTuple):
    """What the database holds."""

    rows: int
    #: Of memory, decisions and all, without free pages.
    used: int
    #: The file with its write-ahead log.
    file: int


def size_of(path: Path) -> Size:
    """Rows of the largest kind of remembered facts, and octets."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        rows = connection.execute("SELECT kind, count(*) FROM memory GROUP BY kind").fetchall()
        pages, free, octets = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    whole = sum(each.stat().st_size for each in (path, path.with_name(path.name + "-wal")) if each.exists())
    return Size(max((number for _, number in rows), default=0), (pages - free) * octets, whole)


def _flood(server: Server, seed: int, **options: object) -> float:
    """Requests a second.

    :raises Trouble: something was not deferred.
    """
    result = dnsload.measured(server, "triplets", connections=CONNECTIONS, first=seed, **options)
    if result["verbs"].keys() != {"DEFER_IF_PERMIT"} or result["closed"]:
        raise Trouble(f"{server.name} answered {dnsload.verbs(result)}, closed {result['closed']}")
    return float(result["rate"])


def flood(scale: Scale, work: Path, say: Say) -> None:
    """Millions of random greylist triplets: memory, rows, the database and the rate from the first to the last."""
    cap = max(scale.triplets // 5, 10_000)
    most_octets = max(scale.triplets * 200, 60_000_000)
    checks = _checks(cap, most_octets)
    directory = work / "flood"
    began = time.monotonic()
    with servers.policyd(directory, "policyd, flooded", checks) as full:
        rest(full)
        rates, micros, sizes = [], [], []
        for part in range(PARTS):
            before = full.cpu_seconds()
            rates.append(_flood(full, part, requests=scale.triplets // PARTS))
            micros.append((full.cpu_seconds() - before) / (scale.triplets // PARTS) * 1e6)
            sizes.append(size_of(directory / "policyd.db"))
        took = time.monotonic() - began
        say(f"{scale.triplets:,} random triplets in {took:,.0f} s; requests/s in {PARTS} parts:")
        for at in range(0, PARTS, 10):
            say("    " + " ".join(f"{rate:7,.0f}" for rate in rates[at : at + 10]))
        say("microseconds of processor time each:")
        for at in range(0, PARTS, 10):
            say("    " + " ".join(f"{each:7,.0f}" for each in micros[at : at + 10]))
        most = Size(*(max(column) for column in zip(*sizes, strict=True)))
        say(
            f"rows remembered    {most.rows:,} at the most   bar [keep] memory = {cap:,}: {judged(most.rows <= cap)}"
        )
        say(
            f"database           {most.used / 1e6:,.0f} MB in use at the most, file and log {most.file / 1e6:,.0f} MB   "
            f"bar [keep] max_size = {most_octets / 1e6:,.0f} MB: {judged(most.used <= most_octets)}"
        )
        now, highest = full.memory()
        met = judged(highest < MOST_MEMORY)
        say(f"resident memory    {now:.0f} MB, at its highest {highest:.0f} MB   bar {MOST_MEMORY} MB: {met}")
        ratio = statistics.median(rates[-COMPARED:]) / statistics.median(rates[:COMPARED])
        say(
            f"last / first parts {ratio:.2f}   bar {LEAST_RATIO}: {judged(ratio >= LEAST_RATIO)} (another time of day; in turns:)"
        )
        with servers.policyd(work / "flood-empty", "policyd, empty", checks) as empty:
            _against(scale, full, empty, say)


def _against(scale: Scale, full: Server, empty: Server, say: Say) -> None:
    both = (empty, full)
    rates = {server.name: Rates() for server in both}
    for server in both:
        rest(server, 10.0)
        _flood(server, PARTS, seconds=min(1.0, scale.seconds))
    for turn in range(scale.rounds):
        # Who comes first changes, because the disk is busier right after the other one.
        for server in both if turn % 2 == 0 else reversed(both):
            before = server.cpu_seconds()
            rate = _flood(server, PARTS + 1 + turn, seconds=scale.seconds)
            rates[server.name].rates.append(rate)
            used = (server.cpu_seconds() - before) / (rate * scale.seconds)
            rates[server.name].micros.append(used * 1e6)
    for server in both:
        say(f"{server.name:<19}{rates[server.name]}")
    ratios = [a / b for a, b in zip(rates[full.name].rates, rates[empty.name].rates, strict=True)]
    say(
        f"flooded / empty    {spread(ratios)}   bar {LEAST_RATIO}: {judged(statistics.median(ratios) >= LEAST_RATIO)}"
    )
