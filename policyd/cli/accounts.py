"""What the commands about accounts share: why one is in its tier, and how a suspension is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from policyd.accounts import BY_HAND, Account
from policyd.answer import escape, shell_word
from policyd.cli.common import Session, Times, did_you_mean
from policyd.errors import NotFound
from policyd.tiers import Tiers

if TYPE_CHECKING:
    import sqlite3

    from policyd.steering import Suspension

#: What puts an account into its tier, besides who put it there.
_SPOKEN = {
    BY_HAND: "by hand",
    "learned": "learned from logs",
    "promoted": "promoted",
    "probation": "on probation after a suspension",
    "configuration": "by the configuration",
    "default": "the default",
}
#: Values of a detector that are told to people.
SHOWN = 8


def reason_of_tier(account: Account, tiers: Tiers, now: int) -> str:
    """Why the account is in its tier: hand, learned, promoted, configuration, probation, default."""
    if now < account.probation_until:
        return "probation"
    known = account.tier in tiers.all
    if known and account.tier_by == BY_HAND:
        return BY_HAND
    if tiers.member_of(account.user):
        return "configuration"
    return account.tier_by if known and account.tier_by else "default"


def spoken_reason(reason: str) -> str:
    """The same for people."""
    return _SPOKEN.get(reason, escape(reason))


def tier_named(session: Session, name: str, what_helps: str = "") -> str:
    """``name``, if the configuration has a tier of that name.

    :raises NotFound: it has none.
    """
    tiers = session.sound_config.tiers
    if name in tiers.all:
        return name
    there = ", ".join(map(escape, tiers.all)) or "none"
    near = did_you_mean(name, tiers.all) or f"; there is {there}"
    raise NotFound(f"{session.config_path} has no tier {escape(name)!r}{near}{what_helps}")


def suspension_text(row: Suspension, times: Times) -> str:
    """A suspension on one line: since when, until when, by what, why."""
    until = f"until {times.until(row.expires_at)}" if row.expires_at else "until it is released"
    by = f"detector {escape(row.detector)}" if row.detector else escape(row.author) or "hand"
    ref = f", ref {escape(row.ref)}" if row.ref else ""
    reason = f": {escape(row.reason, 400)}" if row.reason else ""
    return f"suspended since {times.text(row.created_at)}, {until}, by {by}, step {row.step}{ref}{reason}"


def evidence_of(row: Suspension) -> dict[str, list[Any]]:
    """What proved it: ``values`` and the ids of ``decisions``; what cannot be read is empty."""
    try:
        found = json.loads(row.evidence or "{}")
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, dict):
        found = {}
    values, decisions = found.get("values"), found.get("decisions")
    return {
        "values": values if isinstance(values, list) else [],
        "decisions": [each for each in decisions if isinstance(each, int)]
        if isinstance(decisions, list)
        else [],
    }


def evidence_lines(row: Suspension) -> list[str]:
    """The evidence for people."""
    found = evidence_of(row)
    lines = []
    if found["values"]:
        some = ", ".join(escape(str(value), 80) for value in found["values"][:SHOWN])
        rest = len(found["values"]) - SHOWN
        lines.append(f"seen: {some}" + (f" and {rest} more" if rest > 0 else ""))
    return lines


def suspension_record(row: Suspension, times: Times) -> dict[str, Any]:
    """A suspension for programs."""
    return {
        "detector": row.detector or None,
        "reason": row.reason,
        **evidence_of(row),
        "step": row.step,
        "ref": row.ref or None,
        "author": row.author,
        "created": times.iso(row.created_at),
        "expires": times.iso(row.expires_at),
    }


def suspension_in_force(connection: sqlite3.Connection, user: str, now: int) -> Suspension | None:
    """The suspension of ``user`` that holds at ledger time ``now``."""
    from policyd.store import admin

    row: Suspension | None = admin.find(connection, "suspension", (user,), now)
    return row


def release_command(user: str) -> str:
    """What takes a suspension back."""
    return f"policyctl release {shell_word(user)} --note TEXT"


def confirmed(question: str, yes: bool) -> None:
    """Go on if ``yes`` was given on the command line, or is given on the terminal.

    :raises click.UsageError: nobody can be asked.
    :raises click.Abort: the answer was no.
    """
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here; add --yes", click.get_current_context())
    click.confirm(question, abort=True, err=True)
