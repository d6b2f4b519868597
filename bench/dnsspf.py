"""The figure of hostile SPF zones: what fifty of them at once may cost, and what all other mail feels of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dns.name

from bench import dnsload, dnsserver, dnstraffic, servers
from bench.dnsserver import ReadyServer, Remote, in_labels
from bench.dnstraffic import BANNED, CLEAN, HONEST
from bench.figures import Say, Scale, judged, rest
from bench.servers import Server, Trouble
from tests.dns.test_spf_hostile import hostile

AT_ONCE = 50
#: All other mail: ordinary mail from new domains, and mail that needs no DNS, a second of each.
OTHERS = 50
DEADLINE, GRACE, MOST_QUESTIONS, OTHERS_P99 = 5.0, 0.1, 30, 100.0
ZONE = "hostile.example"


def _checks(nameserver: str) -> str:
    """What ends without a verdict is deferred, so that the answer shows it."""
    return f"""
[dns]
nameservers = ["{nameserver}"]
{servers.CHECKS}
[[check]]
use = "spf"
for = "mx"
header = ""
on_temperror = "defer"
"""


def fill(server: ReadyServer, mails: int) -> None:
    """For each of ``mails`` a zone at all limits of RFC 7208; and one that is as most are."""
    for _, (client, _, domain, _) in zip(range(mails), dnstraffic.hostile(0, 0), strict=False):
        hostile(server, domain, client)
    server.behave()
    server.add(f"_spf.{HONEST}", "TXT", f"v=spf1 ip4:{CLEAN}.0.0/16 ~all")
    for _, (_, _, domain, _) in zip(range(OTHERS * 60), dnstraffic.fresh(0, 0), strict=False):
        server.add(domain, "TXT", f"v=spf1 include:_spf.{HONEST} -all")
    server.make_ready()
    server.slow = in_labels(ZONE), in_labels("in-addr.arpa")


def pace(server: ReadyServer, seconds: float) -> None:
    """Answer about the hostile zones after so long, and count anew."""
    server.pace = seconds
    server.asked.clear()


def most_questions(server: ReadyServer) -> int:
    """The most different questions that one mail from a hostile zone came to; one sent twice is one."""
    found: Counter[bytes] = Counter()
    for section in server.asked:
        name = dns.name.from_wire(section, 0)[0].labels[:-1]
        if section[:-4].endswith(in_labels(ZONE)):
            found[name[-3]] += 1
        elif section[:-4].endswith(in_labels("in-addr.arpa")):
            # Mail e258 comes from 203.0.1.2.
            found[b"e%d" % (int(name[1]) * 256 + int(name[0]))] += 1
    return max(found.values(), default=0)


def spf_hostile(scale: Scale, work: Path, say: Say) -> None:
    """Fifty mails at once from zones made to hold SPF up, and what other mail waits meanwhile."""
    waves = 1 if scale.rounds == 1 else 4
    mails = AT_ONCE * waves
    say(
        f"{AT_ONCE} hostile mails at once, {waves} times; {OTHERS} other mails/s with SPF from new domains, "
        f"{OTHERS} that need no DNS"
    )
    with dnsserver.running(ReadyServer) as nameserver:
        nameserver.do(fill, mails)
        for name, seconds in (("1 s per answer", 1.0), ("answers at once", 0.0)):
            directory = work / f"spf-{seconds:.0f}"
            with servers.policyd(directory, "policyd", _checks(nameserver.nameserver)) as server:
                servers.ban_client(directory, BANNED)
                rest(server)
                nameserver.do(pace, seconds)
                _one(
                    server,
                    nameserver,
                    name,
                    mails,
                    waves * (DEADLINE if seconds else 1.0),
                    bool(seconds),
                    say,
                )


def _one(
    server: Server, nameserver: Remote, name: str, mails: int, seconds: float, slow: bool, say: Say
) -> None:
    others: dict[str, dict[str, Any]] = {}
    with (
        dnsload.Run(server, "fresh", connections=50, rate=OTHERS, seconds=seconds + 1) as ordinary,
        dnsload.Run(server, dnsload.WITHOUT_DNS, connections=20, rate=OTHERS, seconds=seconds + 1) as without,
    ):
        attack = dnsload.measured(server, "hostile", connections=AT_ONCE, requests=mails)
        others["SPF"], others["no DNS"] = ordinary.result(), without.result()
    questions = nameserver.do(most_questions)
    for kind, wanted in (("SPF", {"DUNNO"}), ("no DNS", {"DUNNO", "550"})):
        result = others[kind]
        if result["verbs"].keys() != wanted:
            raise Trouble(f"other mail ({kind}) was answered {dnsload.verbs(result)}")
    temperrors = attack["verbs"].get("451", 0)
    worst = max(result["p99"] for result in others.values())
    bounded = attack["max"] < (DEADLINE + GRACE) * 1000 and questions <= MOST_QUESTIONS
    # A zone that answers at once is a flood of its own: there it is the questions that matter.
    met = judged(temperrors == mails and bounded and (worst < OTHERS_P99 or not slow))
    bar = f"bar {DEADLINE * 1000:,.0f} ms, {MOST_QUESTIONS}" + (f", {OTHERS_P99:.0f} ms" if slow else "")
    say(
        f"{name:<16}{temperrors} of {mails} temperror, slowest {attack['max']:,.0f} ms, at most {questions} questions a mail; "
        + "; ".join(f"{kind} p99 {result['p99']:.1f} ms" for kind, result in others.items())
        + f"   {bar}: {met}"
    )
