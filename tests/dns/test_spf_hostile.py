"""A zone made to hold SPF up costs its own mail the deadline, thirty questions, and nobody else anything."""

from __future__ import annotations

import asyncio
import time

from policyd.dns.resolver import Resolver
from policyd.dns.spf import Evaluator
from policyd.dns.spf_bounds import AT_ONCE, Turns
from policyd.senderpolicy import MOST_QUESTIONS, helo_claim, mail_from_claim
from tests.dns.server import DnsServer
from tests.fakes import on_loop

ATTACKERS = 50
#: The issue's zone answers each question after a second.
SLOWLY = 1.0
#: Far more than the nameserver needs, far less than the attacker's answers take, s.
DEADLINE = 2.5


def hostile(server: DnsServer, domain: str, client: str) -> None:
    """Includes, each with ten mail exchangers, and a reverse zone of ten names: all at the limits of RFC 7208."""
    reverse = ".".join(reversed(client.split("."))) + ".in-addr.arpa"
    server.add(domain, "TXT", f"v=spf1 ptr mx {' '.join(f'include:i{i}.{domain}' for i in range(7))} -all")
    server.add(reverse, "PTR", *(f"p{i}.{domain}" for i in range(10)))
    for part in (domain, *(f"i{i}.{domain}" for i in range(7))):
        server.add(part, "MX", *((j, f"h{j}.{part}") for j in range(10)))
        for j in range(10):
            server.add(f"h{j}.{part}", "A", "10.0.0.1")
        if part != domain:
            server.add(part, "TXT", "v=spf1 mx -all")
    for i in range(10):
        server.add(f"p{i}.{domain}", "A", "10.0.0.1")
    server.behave(domain, delay=SLOWLY)


@on_loop
async def test_fifty_hostile_mails_at_once_cost_what_they_may_and_hold_up_nobody() -> None:
    """Each is temperror by its deadline; an honest domain's verdicts come while all of them still wait."""
    with DnsServer() as server:
        clients = [f"192.0.2.{i}" for i in range(ATTACKERS)]
        for i, client in enumerate(clients):
            hostile(server, f"evil{i}.example", client)
        server.add("honest.example", "TXT", "v=spf1 mx -all")
        server.add("honest.example", "MX", (10, "mx.honest.example"))
        server.add("mx.honest.example", "A", "198.51.100.1")
        resolver = Resolver([server.nameserver], timeout=2 * SLOWLY)
        evaluator = Evaluator(resolver)
        try:
            due = time.monotonic() + DEADLINE
            attacks = [
                asyncio.ensure_future(
                    evaluator.evaluate(
                        mail_from_claim(client, f"a@evil{i}.example", f"i1.evil{i}.example"),
                        helo_claim(client, f"i1.evil{i}.example"),
                        due,
                    )
                )
                for i, client in enumerate(clients)
            ]
            for i in range(20):
                claim = mail_from_claim(f"198.51.100.{i}", f"a{i}@honest.example", "")
                verdicts = await evaluator.evaluate(claim, None, due)
                assert verdicts.mail_from.result == ("pass" if i == 1 else "fail")
            assert not any(attack.done() for attack in attacks)
            for verdicts in await asyncio.gather(*attacks):
                assert verdicts.helo is not None
                assert (verdicts.mail_from.result, verdicts.helo.result) == ("temperror", "temperror")
                assert verdicts.mail_from.questions + verdicts.helo.questions <= MOST_QUESTIONS
        finally:
            evaluator.close()
            await resolver.close()
        for i, client in enumerate(clients):
            asked = server.count_under(f"evil{i}.example")
            asked += server.count(".".join(reversed(client.split("."))) + ".in-addr.arpa")
            # A datagram may be sent twice, a question is asked once.
            assert asked <= 2 * MOST_QUESTIONS


@on_loop
async def test_a_zone_that_answers_in_time_is_stopped_at_thirty_questions() -> None:
    """Also when it is quick: the bound is not the deadline's doing."""
    with DnsServer() as server:
        hostile(server, "evil.example", "192.0.2.1")
        server.behave("evil.example")
        resolver = Resolver([server.nameserver])
        evaluator = Evaluator(resolver)
        try:
            claim = mail_from_claim("192.0.2.1", "a@evil.example", "")
            verdicts = await evaluator.evaluate(claim, None, time.monotonic() + 30)
        finally:
            await resolver.close()
        assert verdicts.mail_from.result == "temperror"
        assert f"more than {MOST_QUESTIONS} look-ups" in verdicts.mail_from.problem
        assert server.count() == MOST_QUESTIONS


@on_loop
async def test_one_hostile_domain_from_fifty_clients_waits_in_line() -> None:
    """Two evaluations at a time, however many clients use the name: the others get temperror by their deadline."""
    with DnsServer() as server:
        for i in range(ATTACKERS):
            hostile(server, "evil.example", f"192.0.2.{i}")
        server.behave("evil.example", silent=True)
        resolver = Resolver([server.nameserver], timeout=2 * SLOWLY)
        evaluator = Evaluator(resolver)
        try:
            due = time.monotonic() + DEADLINE / 5
            attacks = [
                evaluator.evaluate(mail_from_claim(f"192.0.2.{i}", f"a{i}@evil.example", ""), None, due)
                for i in range(ATTACKERS)
            ]
            results = [verdicts.mail_from.result for verdicts in await asyncio.gather(*attacks)]
        finally:
            evaluator.close()
            await resolver.close()
        assert results == ["temperror"] * ATTACKERS
        assert server.count() <= AT_ONCE


@on_loop
async def test_who_has_asked_least_computes_first() -> None:
    """An honest mail's turn comes before those of hostile ones that waited longer; one that gives up leaves its turn."""
    turns = Turns()
    took: list[str] = []

    async def one(name: str, asked: int) -> None:
        await turns.take(asked)
        took.append(name)
        await asyncio.sleep(0)
        turns.leave()

    names = {"running": 0, "hostile": 20, "given up": 1, "hostile too": 20, "honest": 2}
    tasks = {name: asyncio.ensure_future(one(name, asked)) for name, asked in names.items()}
    await asyncio.sleep(0)
    tasks.pop("given up").cancel()
    await asyncio.gather(*tasks.values())
    assert took == ["running", "honest", "hostile", "hostile too"]
    await one("last", 0)
    assert took[-1] == "last"


@on_loop
async def test_a_turn_that_was_given_is_not_lost_with_who_is_cancelled() -> None:
    """Cancelled between being given the turn and taking it: the next one gets it."""
    turns = Turns()
    await turns.take(0)
    first, second = (asyncio.ensure_future(turns.take(0)) for _ in range(2))
    await asyncio.sleep(0)
    turns.leave()
    first.cancel()
    await asyncio.wait_for(second, 5)
    turns.leave()
    assert first.cancelled()
