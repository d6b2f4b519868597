"""``policyctl explain``: one decision with everything behind it, found by what somebody pastes."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli import explain_suspension
from policyd.cli.common import Session, Times, json_option, pass_session, table
from policyd.cli.decisions import behind, decision_table, record, reference_of
from policyd.cli.when import stamp
from policyd.errors import NotFound
from policyd.units import format_duration, format_size

if TYPE_CHECKING:
    import sqlite3

    from policyd.store.read import Logged

#: Decisions of one mail that are listed at the most.
SIBLINGS = 100

_NAMED = re.compile(r"\b(ref|queue_id|queue-id|instance)=([0-9A-Za-z.]+)")
_REF = re.compile(r"\bref[ =:]+([0-9A-Za-z]{4,12})\b", re.IGNORECASE)
_INSTANCE = re.compile(r"\b([0-9a-f]+\.[0-9a-f]+\.[0-9a-f]+(?:\.[0-9]+)?)\b")
#: After the process in a line of Postfix's log, or after "queued as": short hexadecimal, or long base 52
#: (postconf(5) enable_long_queue_ids).
_QUEUE_ID = re.compile(
    r"(?:\]: |queued as |^)([0-9A-F]{5,15}|[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{10,20})(?=:|\b)"
)
_TOKEN = re.compile(r"[0-9A-Za-z.]{4,}")


def clues(text: str) -> list[tuple[str, str]]:
    """What in ``text`` can name a decision: (ref, queue_id or instance, value), the surest first."""
    text = " ".join(text.split())
    found: list[tuple[str, str]] = []
    for name, value in _NAMED.findall(text):
        found.append((name.replace("-", "_"), reference_of(value) if name == "ref" else value))
    found += [("ref", reference_of(value)) for value in _REF.findall(text)]
    found += [("queue_id", value) for value in _QUEUE_ID.findall(text)]
    if " " not in text:
        bare = text.strip("<>,;:()[]\"'")
        found += [("ref", reference_of(bare)), ("queue_id", bare), ("instance", bare)]
    else:
        found += [("instance", value) for value in _INSTANCE.findall(text)]
    return list(dict.fromkeys(clue for clue in found if _TOKEN.fullmatch(clue[1])))


def find(connection: sqlite3.Connection, text: str) -> tuple[list[Logged], str]:
    """The decisions that ``text`` names, oldest first, and what they were found by; none when there are none."""
    from policyd.store.read import Wanted, decisions

    for name, value in clues(text):
        wanted = (
            Wanted(ref=value)
            if name == "ref"
            else Wanted(queue_id=value)
            if name == "queue_id"
            else Wanted(instance=value)
        )
        rows = decisions(connection, wanted, SIBLINGS)
        if rows:
            return rows[::-1], name
    return [], ""


@click.command()
@click.argument("what", metavar="REF|QUEUE_ID|INSTANCE|LINE", nargs=-1, required=True)
@json_option
@pass_session
def explain(session: Session, what: tuple[str, ...]) -> None:
    """Explain one decision: each check's opinion, the numbers, the times, the policy.

    Takes a reference (7F3K2), a queue id, an instance, or a pasted log line that holds one of them; - reads it from stdin.
    """
    from policyd.store.read import Wanted, decisions

    text = " ".join(what)
    if text == "-":
        text = sys.stdin.buffer.read(65_536).decode(errors="replace")
    with session.reading() as connection:
        rows, by = find(connection, text)
        if not rows:
            raise NotFound(
                f"{escape(text, 80)!r} names no decision that is kept; a reference, queue id or instance is wanted "
                "(see 'policyctl log --since 1h'; how long decisions are kept is [keep] decisions)"
            )
        instance = rows[-1].instance
        if by == "queue_id" and any(row.instance != instance for row in rows):
            queue_id = escape(rows[-1].queue_id)
            session.note(
                f"several mails had this queue id; this is the last one, 'policyctl log --queue-id {queue_id}' lists all"
            )
        if instance and by != "instance":
            # At the first recipient there is no queue id yet, and only a refusal has a reference.
            mail = decisions(connection, Wanted(instance=instance), SIBLINGS)[::-1]
            rows = mail if by == "queue_id" else [*(other for other in mail if other != rows[-1]), rows[-1]]
        # The one that matters of several: what has this reference, the refusal, else the last word.
        row = next((row for row in reversed(rows) if row.verdict != "pass"), rows[-1])
        policy_now = session.config.policy_version
        times, suspended = Times.of(connection), explain_suspension.behind(session, connection, row)
    if session.json:
        session.data(
            {
                **record(row),
                "suspension": explain_suspension.record(suspended, times) if suspended is not None else None,
                "policy_now": policy_now or None,
                "same_mail": [record(other) for other in rows if other.id != row.id],
            }
        )
        return
    for text_line in describe(row, policy_now):
        click.echo(text_line)
    if suspended is not None:
        for text_line in explain_suspension.lines(suspended, times):
            click.echo(text_line)
    others = [other for other in rows if other.id != row.id]
    earlier = said_before(row, others)
    if earlier:
        click.echo("\nBefore that, of the same mail:")
        click.echo(table(["stage", "recipient", "check", "mode", "opinion", "took", "reason"], earlier))
    if others:
        click.echo(
            f"\nThe same mail was asked about {len(others)} more time{'s' if len(others) > 1 else ''}:"
        )
        click.echo(decision_table(others))


def said_before(row: Logged, others: list[Logged]) -> list[tuple[str, ...]]:
    """The first opinions of checks that were asked about the mail and not in ``row``: blocklists and SPF are asked at RCPT,
    and it is at its end that a mail passes."""
    named = {check["check"] for check in behind(row).checks}
    found: list[tuple[str, ...]] = []
    for other in others:
        for check in behind(other).checks:
            # One that had no opinion of the first recipient may have one of the next.
            if check["check"] in named or check["outcome"] == "-":
                continue
            named.add(check["check"])
            found.append(
                (
                    other.stage,
                    other.recipient,
                    check["check"],
                    check["mode"],
                    check["outcome"],
                    f"{check['micros']} us",
                    check["reason"],
                )
            )
    return found


def describe(row: Logged, policy_now: str, only_tried: bool = False) -> list[str]:
    """A decision for people, escaped. ``only_tried``: it was made by ``policyctl try``."""
    verdict = {"pass": "let pass", "hold": "put on hold", "refuse": "refused"}.get(row.verdict, row.verdict)
    if only_tried:
        verdict = f"would be {verdict}"
    lines = [
        click.style(
            f"{stamp(row.wall_at)}: {verdict}" + (f" by check {escape(row.by)}" if row.by else ""), bold=True
        )
    ]
    client = (
        row.client
        + (f" ({row.client_name})" if row.client_name else "")
        + (f", HELO {row.helo}" if row.helo else "")
    )
    now = f"the file's is {policy_now} now" if policy_now else "the file has errors now"
    policy = row.policy + ("" if row.policy == policy_now else f" ({now})")
    facts: list[tuple[str, Any]] = [
        ("answer", row.action),
        ("why", row.reason),
        ("reference", row.ref),
        ("would have", row.would),
        (
            "stage",
            f"{row.stage}, {row.direction}, asked on {row.listener}"
            + (f", context {row.context}" if row.context else ""),
        ),
        ("account", row.user),
        ("client", client),
        ("sender", f"<{row.sender}>"),
        ("recipient", f"<{row.recipient}>" if row.recipient else ""),
        ("recipients", row.recipient_count or ""),
        ("size", format_size(row.size) if row.size else ""),
        ("queue id", row.queue_id),
        ("instance", row.instance),
        ("policy", policy),
        ("took", f"{row.micros / 1000:.2f} ms"),
        ("mark", row.mark),
    ]
    # An answer may have 400 octets, each of which may be escaped.
    lines += [f"  {name:<11} {escape(str(value), 2000)}" for name, value in facts if value]
    found = behind(row)
    checks = [
        (check["check"], check["mode"], check["outcome"], f"{check['micros']} us", check["reason"])
        for check in found.checks
    ]
    if checks:
        lines += ["", table(["check", "mode", "opinion", "took", "reason"], checks)]
    limits = [
        (
            *(limit[name] for name in ("check", "scope", "value", "unit")),
            format_duration(limit["window_ms"]),
            *(limit[name] for name in ("used", "amount", "allowed")),
            "yes" if limit["fits"] else "NO",
        )
        for limit in found.limits
    ]
    if limits:
        lines += [
            "",
            table(["limit of", "per", "value", "unit", "window", "used", "adds", "limit", "fits"], limits),
        ]
    charges = [tuple(charge.values()) for charge in found.charges]
    if charges:
        lines += [
            "",
            table(["would count per" if only_tried else "counted per", "value", "unit", "amount"], charges),
        ]
    elif row.stage == "END-OF-MESSAGE":
        lines += ["", "nothing was counted for it"]
    return lines
