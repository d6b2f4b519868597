"""The figures of a DNS in trouble: who waits how long, that nobody is refused for it, and how soon it is over."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from bench import dnsload, dnsserver, dnstraffic, servers
from bench.dnsserver import LISTS, Remote
from bench.dnstraffic import BANNED, CLEAN, FORGED, HONEST, LISTED
from bench.figures import Say, Scale, judged, rest
from bench.load import Connections, Result
from bench.servers import Server, Trouble
from tests.dns.server import DnsServer

#: By name, how the nameserver behaves; ``None``: nobody listens.
TROUBLES: dict[str, dict[str, Any] | None] = {
    "silent": {"silent": True},
    "gone": None,
    "refusing": {"rcode": "REFUSED"},
    "SERVFAIL": {"rcode": "SERVFAIL"},
    "5 s late": {"delay": 5.0},
    "junk first": {"junk": 1},
    "truncated, no TCP": {"truncate": True, "tcp": "refuse"},
}
#: Mails a second from clients and domains that are not known yet, and such as need no DNS.
MAILS, OTHERS = 20, 50
DEADLINE, GRACE, OTHERS_P99, RECOVERY = 5.0, 0.1, 50.0, 30.0
_USED = LISTS[:3]


def _checks(nameserver: str) -> str:
    sites = ", ".join(f'"{zone}"' for zone in _USED)
    return f"""
[dns]
nameservers = ["{nameserver}"]
{servers.CHECKS}
[[check]]
use = "dnsbl"
for = "mx"
sites = [{sites}]

[[check]]
use = "spf"
for = "mx"
header = ""
"""


def fill(server: DnsServer) -> None:
    """Three lists of the network ``LISTED``; senders' domains that permit, and that forbid."""
    for zone in _USED:
        server.add(f"2.0.0.127.{zone}", "A", "127.0.0.2")
        network = ".".join(reversed(LISTED.split(".")))
        server.add(f"*.{network}.{zone}", "A", "127.0.0.2")
    server.add(f"*.{HONEST}", "TXT", f"v=spf1 ip4:{CLEAN}.0.0/16 ip4:{LISTED}.0.0/16 -all")
    server.add(f"*.{FORGED}", "TXT", "v=spf1 -all")


def trouble(scale: Scale, work: Path, say: Say) -> None:
    """A resolver that is silent, refuses, fails, is late, lies or cuts off: latencies, wrong refusals, recovery."""
    say(
        f"{MAILS} mails/s from new clients with {len(_USED)} lists and SPF, {OTHERS} mails/s that need no DNS"
    )
    say(
        f"bars: p99 below {(DEADLINE + GRACE) * 1000:,.0f} ms, nobody refused; no DNS p99 below {OTHERS_P99:.0f} ms; "
        f"normal within {RECOVERY:.0f} s"
    )
    numbers = itertools.count(0, 2000)
    with dnsserver.running(DnsServer) as nameserver:
        nameserver.do(fill)
        for name, behaviour in TROUBLES.items():
            directory = work / f"dns-{name.split()[0].strip(',')}"
            with servers.policyd(directory, "policyd", _checks(nameserver.nameserver)) as server:
                servers.ban_client(directory, BANNED)
                rest(server)
                until_normal(server, next(numbers))
                say(f"{name:<18}{_one(scale, server, nameserver, behaviour, next(numbers))}")


def _one(
    scale: Scale, server: Server, nameserver: Remote, behaviour: dict[str, Any] | None, first: int
) -> str:
    seconds = scale.trouble_seconds
    if behaviour is None:
        nameserver.do(DnsServer.stop)
    else:
        nameserver.do(DnsServer.behave, **behaviour)
    try:
        with (
            # Enough connections for all that wait until the deadline.
            dnsload.Run(
                server, "fresh", connections=MAILS * 8, rate=MAILS, seconds=seconds, first=first
            ) as mails,
            dnsload.Run(server, dnsload.WITHOUT_DNS, connections=20, rate=OTHERS, seconds=seconds) as others,
        ):
            asking, other = mails.result(), others.result()
    finally:
        if behaviour is None:
            nameserver.do(restart)
        else:
            nameserver.do(DnsServer.behave)
    began = time.monotonic()
    until_normal(server, first + 1000)
    recovered = time.monotonic() - began
    if other["verbs"].keys() != {"DUNNO", "550"}:
        raise Trouble(f"mail that needs no DNS was answered {dnsload.verbs(other)}")
    refused = asking["answered"] - asking["verbs"].get("DUNNO", 0)
    met = judged(
        asking["p99"] < (DEADLINE + GRACE) * 1000
        and not refused
        and other["p99"] < OTHERS_P99
        and recovered < RECOVERY
    )
    return (
        f"p50 {asking['p50']:7,.1f} ms, p99 {asking['p99']:7,.1f} ms, {refused} of {asking['answered']} refused; "
        f"no DNS p99 {other['p99']:5.1f} ms; normal after {recovered:4.1f} s: {met}"
    )


def restart(server: DnsServer) -> None:
    """Listen again; what it returns must not go through a pipe."""
    server.start()


def until_normal(server: Server, first: int, patience: float = 120.0) -> None:
    """Return once the lists and SPF refuse again whom they must, and nobody else.

    :raises Trouble: that does not come.
    """
    end = time.monotonic() + patience
    wanted = {"listed": "550", "forged": "550", "fresh": "DUNNO"}
    for number in itertools.count(first):
        said = {}
        for kind in wanted:
            result = Result()
            line = Connections(
                server.address, 1, dnstraffic.requests(dnstraffic.KINDS[kind](number, 1)), result
            )
            try:
                line.ask(line.open()[0], time.perf_counter())
                while line.waiting and time.monotonic() < end:
                    for _ in line.answered(0.5):
                        pass
            finally:
                line.close()
            said[kind] = next(iter(result.verbs), "nothing")
        if said == wanted:
            return
        if time.monotonic() > end:
            raise Trouble(f"{server.name} is not normal after {patience:.0f} s: {said}")
        time.sleep(0.1)
