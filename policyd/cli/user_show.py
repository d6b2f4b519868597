"""``policyctl user show``: all that is known of one account, on one screen, and what can be done."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from policyd.accounts import Account
from policyd.answer import escape, shell_word
from policyd.cli.accounts import (
    evidence_lines,
    reason_of_tier,
    release_command,
    spoken_reason,
    suspension_in_force,
    suspension_record,
    suspension_text,
)
from policyd.cli.common import Session, Times, account_of, json_option, pass_session, table
from policyd.cli.when import iso, stamp
from policyd.match import fold, parse_address
from policyd.units import format_duration

if TYPE_CHECKING:
    import sqlite3

    from policyd.cli.offline import Usage
    from policyd.steering import Entry, Suspension
    from policyd.store.read import Logged
    from policyd.tiers import Tiers

#: Decisions of the account that are looked at for its networks and senders.
LOOKED_AT = 1_000
#: Of these the last ones that are shown.
LAST = 5
#: Networks and senders that are shown, the most used ones.
MOST = 6
#: Characters of a bar.
WIDTH = 24


@dataclass
class Seen:
    """A network or sender that the account used."""

    value: str
    requests: int = 0
    last_wall: int = 0

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {"value": self.value, "requests": self.requests, "last": iso(self.last_wall)}


@dataclass
class Found:
    """What is known of one account."""

    account: Account
    tier: str
    #: Why it is in that tier.
    reason: str
    note: str
    times: Times
    suspension: Suspension | None
    usages: list[Usage]
    own: list[dict[str, Any]]
    grants: list[dict[str, Any]]
    bans: list[Entry]
    decisions: list[Logged]
    #: All looked at, or only the newest ones of more.
    complete: bool
    #: When it will be promoted, and to what, in words; empty when never by itself.
    outlook: str
    networks: list[Seen] = field(default_factory=list)
    senders: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.networks = _most((_network(row.client), row.wall_at) for row in self.decisions)
        self.senders = _most((fold(row.sender) or "<>", row.wall_at) for row in self.decisions)

    @property
    def user(self) -> str:
        """The account's name."""
        return self.account.user


@click.command("show")
@click.argument("user")
@json_option
@pass_session
def show_user(session: Session, user: str) -> None:
    """All that is known of an account: its tier and why, limits with use and room, bans, suspension, strikes, grants, the
    note, its last decisions, from where and as whom it sends, and the commands that help.
    """
    from policyd.cli.import_journal import take_back_unfinished
    from policyd.cli.quota_show import must_be_known

    take_back_unfinished(session)
    account = account_of(session, user)
    with session.reading() as connection:
        must_be_known(connection, session, account)
        found = look(session, connection, account)
    if session.json:
        session.data(_record(found))
    else:
        for line in _lines(found, session):
            click.echo(line)


def look(session: Session, connection: sqlite3.Connection, user: str) -> Found:
    """Ask everything that is to be told of ``user``."""
    from policyd.cli.offline import Offline
    from policyd.cli.quota_show import steered
    from policyd.store import account_rows, read

    offline = Offline(session.config, connection, session.warn)
    times = Times(offline.now, Times.of(connection).ahead)
    known = account_rows.find(connection, user)
    account = known.account if known is not None else Account(user)
    request, _ = offline.typical(user)
    own, grants = steered(offline, user)
    held, masked = offline.bans(request)
    decisions = read.decisions(connection, read.Wanted(user=user), LOOKED_AT + 1)
    return Found(
        account,
        account.tier_of(session.config.tiers, times.now),
        reason_of_tier(account, session.config.tiers, times.now),
        known.note if known is not None else "",
        times,
        suspension_in_force(connection, user, times.now),
        offline.usage(request),
        own,
        grants,
        [*held, *(ban for ban, _ in masked)],
        decisions[:LOOKED_AT],
        len(decisions) <= LOOKED_AT,
        outlook(account, session.config.tiers, times),
    )


def outlook(account: Account, tiers: Tiers, times: Times) -> str:
    """What is still wanting until the account is promoted; empty when its tier leads to no other."""
    name = account.tier_of(tiers, times.now)
    tier = tiers.all.get(name)
    promote = tier.promote if tier is not None else None
    if promote is None or reason_of_tier(account, tiers, times.now) == "configuration":
        return ""
    clean = max(account.tier_since, account.incident_at)
    if not clean:
        return f"{escape(promote.to)} after {format_duration(promote.after)} of clean sending"
    due = max(clean + promote.after, account.probation_until)
    wanting = max(0, promote.min_messages - account.messages)
    when = f"from {times.text(due)}" if due > times.now else "due"
    more = (
        f", after {wanting} more message{'s' if wanting != 1 else ''}"
        if wanting
        else ", with its next message"
    )
    return f"{escape(promote.to)} {when}{more}, if nothing is found against it"


def _network(client: str) -> str:
    """The network of a client as detectors count it: /24, for IPv6 /48."""
    address = parse_address(client)
    if address is None:
        return client or "unknown"
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def _most(seen: Iterable[tuple[str, int]]) -> list[Seen]:
    """What was seen, the most frequent first."""
    found: dict[str, Seen] = {}
    for value, wall_at in seen:
        each = found.setdefault(value, Seen(value))
        each.requests += 1
        each.last_wall = max(each.last_wall, wall_at)
    return sorted(found.values(), key=lambda each: (-each.requests, each.value))


def helps(found: Found) -> list[str]:
    """The commands that fit what was found."""
    name = shell_word(found.user)
    commands = []
    if found.suspension is not None:
        commands += [release_command(found.user), f"policyctl queue {name}"]
        if found.suspension.ref:
            commands.append(f"policyctl explain {escape(found.suspension.ref)}")
    commands += [f"policyctl unban {ban.kind} {shell_word(ban.value or '<>')}" for ban in found.bans]
    if any(usage.full and usage.scope == "user" and usage.mode == "enforce" for usage in found.usages):
        commands.append(f"policyctl grant {name} AMOUNT UNIT --for 1d")
    if found.reason == "hand":
        commands.append(f"policyctl user tier {name} auto")
    commands += [f"policyctl grant rm {row['id']}" for row in found.grants]
    return list(dict.fromkeys(commands))


def _record(found: Found) -> dict[str, Any]:
    from policyd.cli.decisions import record
    from policyd.cli.quota_show import usage_record

    account, times = found.account, found.times
    return {
        "user": found.user,
        "tier": found.tier or None,
        "tier_by": found.reason,
        "tier_since": times.iso(account.tier_since),
        "probation_until": times.iso(account.probation_until) if found.reason == "probation" else None,
        "outlook": found.outlook or None,
        "first_seen": times.iso(account.first_at),
        "last_seen": times.iso(account.last_at),
        "messages_in_tier": account.messages,
        "limits": [usage_record(usage, times) for usage in found.usages],
        "own_limits": [{**row, "expires_at": times.iso(row["expires_at"])} for row in found.own],
        "grants": [{**row, "expires_at": times.iso(row["expires_at"])} for row in found.grants],
        "bans": [
            {
                **ban._asdict(),
                "created_at": times.iso(ban.created_at),
                "expires_at": times.iso(ban.expires_at),
            }
            for ban in found.bans
        ],
        "suspension": suspension_record(found.suspension, times) if found.suspension is not None else None,
        "strikes": [times.iso(at) for at in account.strikes],
        "last_incident": times.iso(account.incident_at),
        "note": found.note,
        "networks": [each.record() for each in found.networks],
        "senders": [each.record() for each in found.senders],
        "seen_in": len(found.decisions),
        "decisions": [record(row) for row in found.decisions[:LAST]],
        "helps": helps(found),
    }


def bar(used: int, allowed: int) -> str:
    """How far a limit is used; blocks where the output can show them, else # and dots."""
    full, empty = ("█", "░") if _shows_blocks() else ("#", ".")
    filled = WIDTH if not allowed else min(WIDTH, -(-used * WIDTH // allowed))
    return full * filled + empty * (WIDTH - filled)


def _shows_blocks() -> bool:
    try:
        "█░".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _lines(found: Found, session: Session) -> list[str]:
    """For people."""
    from policyd.cli.quota_show import steered_lines

    account, times = found.account, found.times
    lines = [click.style(escape(found.user), bold=True), f"  tier        {_tier_text(found, session)}"]
    if found.outlook:
        lines.append(f"  outlook     {found.outlook}")
    if account.first_at:
        lines.append(
            f"  sends       since {times.text(account.first_at)}, last {times.text(account.last_at)}; "
            f"{account.messages} messages in this tier"
        )
    if found.suspension is not None:
        lines.append(
            click.style(f"  SUSPENDED   {suspension_text(found.suspension, times)}", fg="red", bold=True)
        )
        lines += [f"              {text}" for text in evidence_lines(found.suspension)]
    if account.strikes:
        lines.append(
            f"  strikes     {len(account.strikes)}: {', '.join(times.text(at) for at in account.strikes)}"
        )
    if account.incident_at:
        lines.append(f"  incident    {times.text(account.incident_at)}")
    if found.note:
        lines.append(f"  note        {escape(found.note, 500)}")
    for ban in found.bans:
        until = times.until(ban.expires_at) if ban.expires_at else "it is lifted"
        reason = f": {escape(ban.reason)}" if ban.reason else ""
        lines.append(f"  banned      {ban.kind} {escape(ban.value) or '<>'}, until {until}{reason}")
    lines.append("")
    lines += [f"  {text}" for text in _limit_lines(found)] or ["  no limit holds for this account"]
    lines += [f"  {text}" for text in steered_lines(found.own, found.grants, times)]
    for title, seen in (("networks", found.networks), ("senders", found.senders)):
        if seen:
            lines += ["", f"  {title}, of the {_looked_at(found)}:"]
            lines += [f"    {text}" for text in _seen_lines(seen)]
    lines += ["", "  last decisions:" if found.decisions else "  no decision on it is kept"]
    lines += [f"    {text}" for text in _decision_lines(found.decisions[:LAST])]
    commands = helps(found)
    if commands:
        lines += ["", *(f"  helps: {command}" for command in commands)]
    return lines


def _tier_text(found: Found, session: Session) -> str:
    account, times = found.account, found.times
    text = f"{escape(found.tier) or 'none'}, {spoken_reason(found.reason)}"
    if found.reason == "probation":
        after = Account(found.user)
        after.tier, after.tier_by = account.tier, account.tier_by
        then = after.tier_of(session.config.tiers, times.now)
        text += f", until {times.until(account.probation_until)}; then {escape(then)}"
    elif account.tier_since and found.reason not in ("configuration", "default"):
        text += f", since {times.text(account.tier_since)}"
    return text


def _looked_at(found: Found) -> str:
    count = len(found.decisions)
    return (
        f"{count} decision{'s' if count != 1 else ''} on it that are kept"
        if found.complete
        else f"last {count} decisions"
    )


def _limit_lines(found: Found) -> list[str]:
    from policyd.cli.quota_show import amount

    rows = []
    for usage in found.usages:
        unit = usage.limit.unit
        what = f"{unit} per {format_duration(usage.limit.window)}"
        if usage.scope != "user":
            what += f", {usage.scope}"
        if usage.mode != "enforce":
            what += f" ({usage.mode})"
        room = f"room for {amount(unit, usage.room)}" if usage.room else "no room"
        again = usage.fits_at if usage.full else 0
        rows.append(
            (
                what,
                bar(usage.used, usage.allowed),
                f"{amount(unit, usage.used)} of {amount(unit, usage.allowed)}, {room}"
                + (f", again at {found.times.until(again)}" if again else ""),
                usage.full,
            )
        )
    width = max((len(what) for what, *_ in rows), default=0)
    return [
        f"{what:<{width}}  {click.style(drawn, fg='red' if full else None)}  {text}"
        for what, drawn, text, full in rows
    ]


def _decision_lines(rows: list[Logged]) -> list[str]:
    """The decisions without what is the same in all of them, the newest last."""
    from policyd.cli.decisions import whither

    if not rows:
        return []
    return table(
        ["time", "stage", "to", "answer", "by", "ref"],
        [
            (
                stamp(row.wall_at),
                row.stage,
                whither(row)[:40],
                "pass" if row.verdict == "pass" else row.action.partition(";")[0][:50],
                row.by,
                row.ref or "",
            )
            for row in reversed(rows)
        ],
    ).split("\n")


def _seen_lines(seen: list[Seen]) -> list[str]:
    width = max(len(escape(each.value, 60)) for each in seen[:MOST])
    lines = [
        f"{escape(each.value, 60):<{width}}  {each.requests:>6}  last {stamp(each.last_wall)}"
        for each in seen[:MOST]
    ]
    if len(seen) > MOST:
        lines.append(f"and {len(seen) - MOST} more")
    return lines
