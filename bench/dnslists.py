"""The figures of the blocklists: what they cost when everything is remembered, and how long a new client waits."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from bench import dnsload, dnsserver, servers
from bench.dnsserver import LISTS, ListServer
from bench.figures import CONNECTIONS, Rates, Say, Scale, judged, rest, spread
from bench.servers import Server, Trouble

#: Clients whose scores are remembered.
CLIENTS = 300
#: What is offered, new clients a second, and what comes at once.
NEW_CLIENTS, BURST = 100, 1_000
PACE = 0.020
DEADLINE = 5.0

_OTHERS = """
[[check]]
use = "allow"

[[check]]
use = "bans"
"""


def _checks(nameserver: str) -> str:
    """Six lists; only who stands on all of them is refused."""
    sites = ", ".join(f'"{zone}"' for zone in LISTS)
    return f"""
[dns]
nameservers = ["{nameserver}"]
{_OTHERS}
[[check]]
use = "dnsbl"
for = "mx"
sites = [{sites}]
threshold = {len(LISTS)}
"""


def _passing(result: dict[str, object], server: Server) -> None:
    if result["verbs"].keys() != {"DUNNO"} or result["closed"]:  # type: ignore[attr-defined]
        raise Trouble(
            f"{server.name} answered {dnsload.verbs(result)}, closed {result['closed']} connections"
        )


def warm(scale: Scale, work: Path, say: Say) -> None:
    """Requests a second with six blocklists, all remembered, against the same requests without the check."""
    with (
        dnsserver.running(ListServer) as lists,
        servers.policyd(work / "dns-without", "without dnsbl", _OTHERS) as without,
        servers.policyd(work / "dns-with", "with six lists", _checks(lists.nameserver)) as with_lists,
    ):
        both = (without, with_lists)
        options = {"connections": CONNECTIONS, "count": CLIENTS}
        for server in both:
            rest(server)
            _passing(dnsload.measured(server, "known", seconds=min(1.0, scale.seconds), **options), server)
        rates = {server.name: Rates() for server in both}
        asked = lists.do(dnsserver.asked)
        for turn in range(scale.rounds):
            # Who comes first changes, because the disk is busier right after the other one.
            for server in both if turn % 2 == 0 else reversed(both):
                before = server.cpu_seconds()
                result = dnsload.measured(server, "known", seconds=scale.seconds, **options)
                _passing(result, server)
                rates[server.name].rates.append(result["rate"])
                rates[server.name].micros.append((server.cpu_seconds() - before) / result["answered"] * 1e6)
        asked = lists.do(dnsserver.asked) - asked
    for server in both:
        say(f"{server.name:<18}{rates[server.name]}")
    ratios = [a / b for a, b in zip(rates[with_lists.name].rates, rates[without.name].rates, strict=True)]
    say(f"with / without    {spread(ratios)}   bar 0.7: {judged(statistics.median(ratios) >= 0.7)}")
    say(f"{CLIENTS} clients, a tenth of them on one list; the lists were asked {asked:,} questions meanwhile")


def cold(scale: Scale, work: Path, say: Say) -> None:
    """How long a new client waits for six blocklists that answer after 20 ms, and 1,000 of them at once."""
    with (
        dnsserver.running(ListServer) as lists,
        servers.policyd(work / "dns-cold", "policyd", _checks(lists.nameserver)) as server,
    ):
        rest(server)
        lists.do(dnsserver.set_pace, PACE)
        seconds = min(scale.seconds * 5, 15.0)
        result = dnsload.measured(server, "fresh", connections=CONNECTIONS, seconds=seconds, rate=NEW_CLIENTS)
        _passing(result, server)
        say(
            f"{NEW_CLIENTS} new clients/s for {seconds:.0f} s: median {result['p50']:.1f} ms, p99 {result['p99']:.1f} ms, "
            f"slowest {result['max']:.1f} ms   bar median 40 ms: {judged(result['p50'] < 40)}"
        )
        slowest, unknown, questions, worked = [], 0, [], []
        for first in itertools.islice(itertools.count(0, BURST), scale.rounds):
            before, cpu = lists.do(dnsserver.asked), server.cpu_seconds()
            result = dnsload.measured(server, "listed", connections=BURST, requests=BURST, first=first)
            questions.append(lists.do(dnsserver.asked) - before)
            worked.append(server.cpu_seconds() - cpu)
            slowest.append(result["max"])
            # Who is on all six lists is refused; one that did not answer in time would let the mail through.
            unknown += BURST - result["verbs"].get("550", 0)
    say(
        f"{BURST:,} new clients at once, {spread(questions, ',.0f')} questions, {spread(worked)} s of processor time"
    )
    met = judged(max(slowest) < DEADLINE * 1000 and not unknown)
    say(
        f"the last answer after {spread(slowest, ',.0f')} ms, "
        f"{unknown} without the answer of each list   bar {DEADLINE * 1000:,.0f} ms, none: {met}"
    )
