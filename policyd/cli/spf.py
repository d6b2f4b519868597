"""``policyctl spf check``: what a domain's SPF record says of a client, with each look-up; asks the DNS from here."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.common import Session, json_option, pass_session, table
from policyd.match import parse_address
from policyd.senderpolicy import TEMPERROR, SpfResult, Verdicts, helo_claim, mail_from_claim

if TYPE_CHECKING:
    from policyd.config import Config
    from policyd.lookup import Found

#: A question, its answer, and the seconds that it took.
LookUp = tuple[tuple[str, str], "Found", float]

MEANINGS = {
    "pass": "the domain permits the client",
    "fail": "the domain says that the client may not send its mail",
    "softfail": "the domain says that the client probably may not send its mail",
    "neutral": "the domain says nothing either way",
    "none": "there is no SPF record",
    "temperror": "the DNS gave no answer; later it may",
    "permerror": "the record cannot be understood",
}


@click.command()
@click.argument("ip", metavar="IP")
@click.argument("sender", metavar="SENDER")
@click.argument("helo", metavar="[HELO]", default="")
@json_option
@pass_session
def check(session: Session, ip: str, sender: str, helo: str) -> int:
    """Evaluate SPF for a client's address and a sender, and for the HELO name if it is given.

    SENDER is an address, a domain, or <> for the null sender, of which the HELO name is judged. Asks the nameservers of
    [dns] itself, with the bounds that the daemon has but for its deadline; exit code 1 when the DNS gave no answer.
    """
    address = parse_address(ip)
    if address is None:
        raise click.UsageError(
            f"{escape(ip)!r} is no IP address; write one like 192.0.2.1", click.get_current_context()
        )
    if sender in ("", "<>") and not helo:
        raise click.UsageError(
            "of the null sender the HELO name is judged; write it after <>", click.get_current_context()
        )
    if "@" not in sender and sender not in ("", "<>"):
        sender = f"postmaster@{sender}"
    begun = time.monotonic()
    verdicts, look_ups = asyncio.run(_evaluate(session.config, str(address), sender, helo))
    took = time.monotonic() - begun
    if session.json:
        session.data(_record(str(address), verdicts, look_ups))
    else:
        for line in _lines(verdicts, look_ups):
            click.echo(line)
    deadline = session.config.server.deadline / 1000
    if took > deadline:
        session.note(f"this took {took:.1f} s; a mail waits {deadline:g} s at most, then it is temperror")
    return 1 if verdicts.mail_from.result == TEMPERROR else 0


async def _evaluate(config: Config, ip: str, sender: str, helo: str) -> tuple[Verdicts, list[LookUp]]:
    from policyd.dns.resolver import Resolver
    from policyd.dns.spf import LONGEST, Evaluator

    look_ups: list[LookUp] = []
    resolver = Resolver(config.dns.nameservers, config.dns.timeout / 1000)
    evaluator = Evaluator(resolver, trace=lambda *look_up: look_ups.append(look_up))
    try:
        verdicts = await evaluator.evaluate(
            mail_from_claim(ip, sender, helo),
            helo_claim(ip, helo) if helo and sender not in ("", "<>") else None,
            time.monotonic() + LONGEST,
        )
    finally:
        evaluator.close()
        await resolver.close()
    return verdicts, look_ups


def _lines(verdicts: Verdicts, look_ups: list[LookUp]) -> list[str]:
    lines = []
    for name, result in (("MAIL FROM", verdicts.mail_from), ("HELO", verdicts.helo)):
        if result is not None:
            lines += _verdict(name, result)
    rows = [
        (
            rdtype,
            name,
            _answer(found),
            found.ttl if found.status != "unknown" else "",
            f"{1000 * took:.0f} ms",
        )
        for (name, rdtype), found, took in look_ups
    ]
    if rows:
        lines += ["", table(("type", "name", "answer", "ttl", "took"), rows)]
    count = sum(result.questions for result in verdicts if result is not None)
    return [*lines, "", f"{count} look-ups" if count != 1 else "1 look-up"]


def _verdict(name: str, result: SpfResult) -> list[str]:
    words = "this is no domain that could have a record" if not result.domain else MEANINGS[result.result]
    lines = [f"{name} {escape(result.domain) or '-'}: {result.result}; {words}"]
    for label, text in (
        ("decided by", result.mechanism),
        ("problem", result.problem),
        ("the domain explains", result.explanation),
    ):
        if text:
            lines.append(f"  {label}: {escape(text, 400)}")
    return lines


def _answer(found: Found) -> str:
    if found.status == "unknown":
        return f"no answer: {found.why}"
    if not found.records:
        return "no such name" if found.status == "nxdomain" else "no such record"
    return "; ".join(_record_text(record) for record in found.records)


def _record_text(record: Any) -> str:
    if isinstance(record, bytes):
        return record.decode("utf-8", "backslashreplace")
    return " ".join(map(str, record)) if isinstance(record, tuple) else str(record)


def _record(ip: str, verdicts: Verdicts, look_ups: list[LookUp]) -> dict[str, Any]:
    return {
        "client_address": ip,
        "mail_from": verdicts.mail_from._asdict(),
        "helo": None if verdicts.helo is None else verdicts.helo._asdict(),
        "look_ups": [
            {
                "name": name,
                "type": rdtype,
                "status": found.status,
                "records": [_record_text(record) for record in found.records],
                "why": found.why,
                "ttl": found.ttl,
                "ms": round(1000 * took, 1),
            }
            for (name, rdtype), found, took in look_ups
        ],
    }
