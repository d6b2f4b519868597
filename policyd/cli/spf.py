"""``policyctl spf check``: what a domain's SPF record says of a client, with each look-up; asks the DNS from here."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.common import Session, json_option, pass_session, table
from policyd.cli.configured import checks_of
from policyd.inquiry import Inquiry
from policyd.match import parse_address
from policyd.request import RCPT
from policyd.senderpolicy import TEMPERROR, Claim, SpfResult, Verdicts, helo_claim, mail_from_claim
from policyd.steering import Steering

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
    [dns] itself, with the bounds that the daemon has but for its deadline; exit code 1 when the DNS gave no answer. What each
    spf check of the configuration would answer, were it asked, comes last; 'policyctl try' asks all checks.
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
    answers = asyncio.run(_answers(session, str(address), sender, helo, verdicts))
    if session.json:
        session.data(_record(str(address), verdicts, look_ups) | {"checks": answers})
    else:
        for line in _lines(verdicts, look_ups):
            click.echo(line)
        for each in answers:
            said = (
                escape(each["answer"], 2000)
                if each["answer"]
                else "nothing: this mail is none that it looks at"
            )
            click.echo(f"check {each['check']} answers {said}")
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


class _Known:
    """Says what was found out already (:class:`policyd.senderpolicy.SpfEvaluator`)."""

    def __init__(self, verdicts: Verdicts, receiver: str) -> None:
        self.receiver = receiver
        self._verdicts = verdicts

    async def evaluate(self, mail_from: Claim, helo: Claim | None, due: float) -> Verdicts:
        return self._verdicts._replace(helo=self._verdicts.helo if helo is not None else None)


async def _answers(
    session: Session, ip: str, sender: str, helo: str, verdicts: Verdicts
) -> list[dict[str, Any]]:
    """What each spf check of the configuration answers to these verdicts; ``None``: it looks at no such mail."""
    from policyd.dns.spf import host_name

    attributes = {
        "request": "smtpd_access_policy",
        "protocol_state": RCPT,
        "client_address": ip,
        "helo_name": helo,
        "sender": "" if sender == "<>" else sender,
    }
    request, found = session.config.site.request(attributes), []
    for section, check in checks_of(session, "spf", spf=_Known(verdicts, host_name())):
        opinion = None
        if section.direction in ("any", request.direction):
            opinion = await check.check(request, 0, Steering(), Inquiry())
        # The reference is that of a decision, and this is none.
        answer = None if opinion is None else str(opinion.answer).replace("{ref}", "REF")
        found.append({"check": section.name, "answer": answer})
    return found


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
