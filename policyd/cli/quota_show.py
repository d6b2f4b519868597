"""``policyctl quota show`` and ``quota top``: what is used of which limit, and when room returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape, shell_word
from policyd.cli.common import Session, Times, account_of, json_option, pass_session, table, usage_errors
from policyd.errors import NotFound
from policyd.request import MX

if TYPE_CHECKING:
    import sqlite3

    from policyd.cli.offline import Offline, Usage
    from policyd.steering import Steering
    from policyd.window import Counter

#: Decisions in which a sender from outside is looked for.
LOOKED_AT = 100_000
#: Whose counters can be ranked: the scopes of the quota check.
SCOPES = (
    "user",
    "user-domain",
    "sender",
    "sender-domain",
    "client",
    "client:mx",
    "client:submission",
    "server",
)


def must_be_known(connection: sqlite3.Connection, session: Session, account: str) -> None:
    """
    :raises NotFound: the account was never seen, and no tier names it.
    """
    from policyd.store import known, read

    named = {member for tier in session.config.tiers.all.values() for member in tier.members}
    if account in named or known.is_known(connection, account):
        return
    near = known.similar(connection, account) or known.alike(account, named)
    hint = f"; did you mean {' or '.join(escape(name) for name in near)}?" if near else ""
    # No index finds a sender: of millions of decisions the newest have to do.
    recent = max(0, read.newest_id(connection) - LOOKED_AT)
    outside = read.Wanted(sender=account, direction=MX, after=recent)
    if "@" in account and read.decisions(connection, outside, 1):
        raise NotFound(
            f"{escape(account)} is no account that was seen{hint}; mail with this sender came from outside, see "
            f"'policyctl log --sender {shell_word(account)}'"
        )
    raise NotFound(
        f"{escape(account)} was never seen{hint or '; Postfix has not asked about it, and nothing was set for it'}"
    )


def amount(unit: str, value: int) -> str:
    """An amount for people: bytes as a size."""
    from policyd.units import format_size

    return format_size(value) if unit.startswith("bytes") else str(value)


def usage_record(usage: Usage, times: Times) -> dict[str, Any]:
    """One limit for programs."""
    return {
        "check": usage.check,
        "mode": usage.mode,
        "scope": usage.scope,
        "value": usage.value,
        "unit": usage.limit.unit,
        "external_only": usage.counted.endswith("/external"),
        "window_ms": usage.limit.window,
        "limit": usage.limit.amount,
        "granted": usage.allowed - usage.limit.amount,
        "allowed": usage.allowed,
        "used": usage.used,
        "room": usage.room,
        "fits_at": times.iso(usage.fits_at),
        "returns_from": times.iso(usage.returns_from),
        "all_back": times.iso(usage.all_back),
    }


def usage_table(usages: list[Usage], times: Times) -> str:
    """Limits for people."""
    from policyd.units import format_duration

    rows = []
    for usage in usages:
        unit = usage.limit.unit
        rows.append(
            (
                usage.check if usage.mode == "enforce" else f"{usage.check} ({usage.mode})",
                usage.scope if usage.value in (usage.scope, "server") else f"{usage.scope} {usage.value}",
                f"{unit} per {format_duration(usage.limit.window)}",
                amount(unit, usage.used),
                amount(unit, usage.limit.amount)
                + (
                    f" + {amount(unit, usage.allowed - usage.limit.amount)}"
                    if usage.allowed != usage.limit.amount
                    else ""
                ),
                amount(unit, usage.room),
                _moment(usage.returns_from if usage.room else usage.fits_at or usage.all_back, times),
                _moment(usage.all_back, times),
            )
        )
    return table(["check", "per", "what", "used", "limit", "room", "more room at", "all back at"], rows)


def _moment(ledger: int, times: Times) -> str:
    return times.until(ledger) if ledger else ""


@click.command("show")
@click.argument("user")
@json_option
@pass_session
def quota_show(session: Session, user: str) -> None:
    """Used, limit, room and when it returns, for each limit that a message of USER is tested against.

    "more room at" is when the next part of what is used leaves the window (with no room: when one more fits), "all back
    at" when all of it has.
    """
    from policyd.cli.accounts import suspension_record, suspension_text
    from policyd.cli.offline import Offline

    account = account_of(session, user)
    with session.reading() as connection:
        must_be_known(connection, session, account)
        offline = Offline(session.config, connection, session.warn)
        request, _ = offline.typical(account)
        usages = offline.usage(request)
        times = Times(offline.now, Times.of(connection).ahead)
        tier = offline.account(account).tier_of(session.config.tiers, offline.now)
        own, grants = steered(offline, account)
        suspension = offline.steering.suspension_of(account, offline.now)
    if session.json:
        session.data(
            {
                "user": account,
                "tier": tier or None,
                "suspension": suspension_record(suspension, times) if suspension is not None else None,
                "limits": [usage_record(usage, times) for usage in usages],
                "own_limits": [{**row, "expires_at": times.iso(row["expires_at"])} for row in own],
                "grants": [{**row, "expires_at": times.iso(row["expires_at"])} for row in grants],
            }
        )
        return
    click.echo(f"{escape(account)}, tier {escape(tier) if tier else '-'}")
    if suspension is not None:
        click.echo(click.style(suspension_text(suspension, times), fg="red"))
    click.echo(usage_table(usages, times) if usages else "no limit holds for this account")
    for text_line in steered_lines(own, grants, times):
        click.echo(text_line)


def steered(offline: Offline, account: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The account's own limits and grants that are in force."""
    steering: Steering = offline.steering
    now = offline.now
    own = [
        {name: value for name, value in row._asdict().items() if name != "created_at"}
        for row in steering.user_limits.get(account, {}).values()
        if not row.expires_at or now < row.expires_at
    ]
    grants = [
        {name: value for name, value in row._asdict().items() if name != "created_at"}
        for row in steering.grants_of.get(account, {}).values()
        if not row.expires_at or now < row.expires_at
    ]
    return own, grants


def steered_lines(own: list[dict[str, Any]], grants: list[dict[str, Any]], times: Times) -> list[str]:
    """Own limits and grants for people."""
    from policyd.cli.grant import amount_text
    from policyd.store.dump import limit_text

    own_lines = [
        f"own limit: {limit_text(row['unit'], row['window'], row['amount'])}{_circumstances(row, times)}"
        for row in own
    ]
    return own_lines + [
        f"granted: {amount_text(row['unit'], row['amount'])} more in every window{_circumstances(row, times)}"
        for row in grants
    ]


def _circumstances(row: dict[str, Any], times: Times) -> str:
    text = f", until {times.until(row['expires_at'])}" if row["expires_at"] else ""
    text += f", by {escape(row['author'])}" if row["author"] else ""
    return text + (f": {escape(row['reason'])}" if row["reason"] else "")


def _used(counter: Counter, width: int, window: int, now: int) -> int:
    """What was counted in the window, from the series that exists: a ranking needs no new one for each of a million counters."""
    widths = counter.all
    if width not in widths:
        wider = [other for other in widths if other > width]
        width = min(wider) if wider else max(widths, default=0)
    return widths[width].used(window, now) if width else 0


@click.command("top")
@click.option(
    "--per", "scope", type=click.Choice(SCOPES), default="user", show_default=True, help="Whose counters."
)
@click.option(
    "--unit",
    type=click.Choice(("messages", "recipients", "bytes")),
    default="recipients",
    show_default=True,
    help="What is counted.",
)
@click.option(
    "--window", metavar="TIME", default="1d", show_default=True, help="Up to now, of that length: 1h, 7d."
)
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="So many.")
@json_option
@pass_session
def quota_top(session: Session, scope: str, unit: str, window: str, limit: int) -> None:
    """Who used the most in the window. What was counted with and without internal mail stands side by side.

    Counts reach back as far as the longest limit that looks at them.
    """
    import heapq

    from policyd.store import known, read
    from policyd.units import format_duration, parse_window
    from policyd.window import slot_width

    with usage_errors("--window"):
        length = parse_window(window)
    found: dict[str, list[int | None]] = {}
    damaged: list[str] = []
    reach, width = length, slot_width(length)
    with session.reading() as connection:
        times = Times.of(connection)
        with read.snapshot(connection):
            for at, suffix in enumerate(("/external", "")):
                for value, counter in known.counters(connection, scope, unit + suffix):
                    if counter is None:
                        damaged.append(value)
                        continue
                    used = _used(counter, width, length, times.now)
                    if used:
                        found.setdefault(value, [None, None])[at] = used
                        # A counter remembers as much as the longest limit on it needs.
                        reach = min(reach, 60 * max(counter.all, default=0))
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        session.note(
            f"the counter of {scope} {escape(damaged[0])}{more} cannot be read and is left out; 'policyctl db check' names each"
        )
    if reach < length:
        session.note(
            f"no limit on {unit} per {scope} is as long as {window}: some counts reach back {format_duration(reach)} only"
        )
    most = heapq.nsmallest(limit, found.items(), key=lambda item: (-max(filter(None, item[1])), item[0]))
    records = [
        {
            "scope": scope,
            "value": value,
            "unit": unit,
            "window_ms": length,
            "external": used[0],
            "all": used[1],
        }
        for value, used in most
    ]
    columns = [at for at in (0, 1) if any(used[at] is not None for _, used in most)]
    rows = [
        (
            value,
            *(
                amount(unit, number) if unit == "bytes" else number
                for number in ([used[at] or 0 for at in columns])
            ),
        )
        for value, used in most
    ]
    heads = [(f"{unit} to outside", f"{unit}, all")[at] for at in columns]
    session.show(records, [scope, *heads], rows, f"nothing was counted per {scope} in the last {window}")
