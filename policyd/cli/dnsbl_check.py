"""``policyctl dnsbl check``: what every configured blocklist says of an address or domain; asks the DNS from here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from policyd.answer import escape
from policyd.blocklists import SUBJECT, Blocklist, Listing, reversed_address
from policyd.cli.common import Session, json_option, pass_session, table
from policyd.cli.configured import checks_of
from policyd.errors import NotFound, StoreError
from policyd.opinion import OFF
from policyd.senderpolicy import policy_domain

if TYPE_CHECKING:
    from policyd.checks.dnsbl import Check, Sum
    from policyd.config import Config

#: Until the lists' answers are there, s.
PATIENCE = 10.0

NOT_LISTED = 3


@click.command()
@click.argument("what", metavar="ADDRESS|DOMAIN")
@json_option
@pass_session
def check(session: Session, what: str) -> int:
    """Ask every configured list about an address or a domain, now and from here: answer, code, time.

    Exit code 0: some list has it, 3: none has, 1: none could be asked. What the daemon remembers plays no part in this. A list
    that is off is asked too, and adds nothing to the score.
    """
    address = reversed_address(what)
    name = address or policy_domain(what.rpartition("@")[2].removesuffix("."))
    if not name:
        raise click.UsageError(
            f"{escape(what)!r} is no address and no domain; write one like 192.0.2.1 or example.org",
            click.get_current_context(),
        )
    asking: list[tuple[str, Check]] = [
        (section.name, check)
        for section, check in checks_of(session, "dnsbl")
        if check.blocklists[0].domains != bool(address)
    ]
    if not asking:
        kind = "addresses" if address else "domains"
        raise NotFound(
            f"no dnsbl check of {session.config_path} looks up {kind}; add one, see policyd-checks(7)"
        )
    lists = list(dict.fromkeys(each for _, check in asking for each in check.blocklists))
    # What the zones tell the daemon's admin stands in the table here.
    logging.getLogger("policyd").addHandler(logging.NullHandler())
    said = asyncio.run(_ask(session.config, lists, name))
    off, notes = _state(session, lists)
    for note in notes:
        session.note(note)
    if session.json:
        session.data(_check_record(what, asking, said, off))
    else:
        for line in _check_lines(what, asking, said, off):
            click.echo(line)
    if any(each.listing.codes for each in said.values()):
        return 0
    return NOT_LISTED if any(each.listing.known for each in said.values()) else 1


def _state(session: Session, lists: Sequence[Blocklist]) -> tuple[list[str], list[str]]:
    """The public names of the lists that are off by hand, and a note on each of them and on each that is sick for policyd;
    nothing where there is no database to say so."""
    from policyd.cli.common import Times
    from policyd.cli.dnsbl import STALE, health_of
    from policyd.dns.health import SICK
    from policyd.store import admin
    from policyd.store.health import read_health

    try:
        with session.reading() as connection:
            times = Times.of(connection)
            modes = admin.rows(connection, "check_mode", times.now)
            health = read_health(connection, SUBJECT)
    except StoreError:
        return [], []
    off, notes = {row.name for row in modes if row.mode == OFF}, []
    for each in lists:
        known, name = health_of(health, each.public, each.domains), escape(each.public)
        if each.subject in off:
            notes.append(f"{name} is off: policyd counts nothing for it until 'policyctl dnsbl on {name}'")
        elif known is not None and known.state == SICK and times.now + times.ahead - known.at <= STALE:
            why = escape(str(known.figures.get("why", "")), 200)
            notes.append(f"{name} is sick for policyd, which counts nothing for it now: {why}")
    return list(dict.fromkeys(each.public for each in lists if each.subject in off)), notes


class Said(NamedTuple):
    """What one list said, its own text on it, and what it took, s."""

    listing: Listing
    text: str
    seconds: float


async def _ask(config: Config, lists: Sequence[Blocklist], name: str) -> dict[Blocklist, Said]:
    from policyd.dns.resolver import Resolver
    from policyd.dns.zones import Zones

    resolver = Resolver(config.dns.nameservers, config.dns.timeout / 1000)
    zones = Zones(resolver)
    due = time.monotonic() + PATIENCE

    async def one(blocklist: Blocklist) -> Said:
        began = time.monotonic()
        (listing,) = await zones.look_up([blocklist], name, due)
        took = time.monotonic() - began
        text = await zones.text(blocklist, name, due) if listing.codes else ""
        return Said(listing, text, took)

    try:
        return dict(zip(lists, await asyncio.gather(*map(one, lists)), strict=True))
    finally:
        await resolver.close()


def _answer(listing: Listing) -> str:
    if listing.codes:
        return " ".join(listing.codes)
    return "not listed" if listing.known else f"does not count: {listing.why}"


def _total(check: Check, said: dict[Blocklist, Said], off: Sequence[str]) -> Sum:
    """What the check makes of it, without the lists that are off, as the daemon leaves them out."""
    lists = [each for each in check.blocklists if each.public not in off]
    total = check.add_up(lists, [said[each].listing for each in lists])
    left_out = [each.public for each in check.blocklists if each not in lists]
    # Who said nothing, and why, stands in the table.
    reason = total.reason.partition("; not counted: ")[0] if lists else "score 0: all its lists are off"
    if lists and left_out:
        reason += f"; off: {', '.join(left_out)}"
    return total._replace(reason=reason)


def _check_lines(
    what: str, asking: Sequence[tuple[str, Check]], said: dict[Blocklist, Said], off: Sequence[str]
) -> list[str]:
    rows = [
        (each.public, _answer(its.listing), f"{1000 * its.seconds:.0f} ms", its.text[:120])
        for each, its in said.items()
    ]
    lines = [table(("list", "answer", "took", "says"), rows), ""]
    for name, check in asking:
        total = _total(check, said, off)
        meaning = "listed" if total.named is not None else "not refused"
        lines.append(
            f"check {name}: {total.reason}; refused from {check.threshold} on: {escape(what, 100)} is {meaning}"
        )
    return lines


def _check_record(
    what: str, asking: Sequence[tuple[str, Check]], said: dict[Blocklist, Said], off: Sequence[str]
) -> dict[str, Any]:
    checks = []
    for name, check in asking:
        total = _total(check, said, off)
        checks.append(
            {
                "check": name,
                "score": total.score,
                "threshold": check.threshold,
                "listed": total.named is not None,
            }
        )
    return {
        "what": what,
        "lists": [
            {
                "list": each.public,
                "off": each.public in off,
                "codes": list(its.listing.codes),
                "known": its.listing.known,
                "why": its.listing.why,
                "text": its.text,
                "ms": round(1000 * its.seconds, 1),
            }
            for each, its in said.items()
        ],
        "checks": checks,
    }
