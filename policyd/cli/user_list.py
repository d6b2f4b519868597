"""``policyctl user list``: the accounts that are known, and in which tier they are."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from policyd.accounts import Account
from policyd.cli.accounts import reason_of_tier, tier_named
from policyd.cli.common import Session, Times, json_option, pass_session, usage_errors
from policyd.match import fold

if TYPE_CHECKING:
    from policyd.store.account_rows import Listed
    from policyd.tiers import Tiers

#: The same names as ``policyd.store.account_rows.ORDERS``, which would be slow to import for the help alone.
ORDERS = ("user", "seen", "messages", "since")
#: Accounts of one list at the most; all of them are what 'user export' is for.
MOST = 100_000


@click.command()
@click.option("--tier", metavar="TIER", default="", help="Those in this tier now.")
@click.option("--suspended", is_flag=True, help="Those that are suspended.")
@click.option(
    "--seen-since", metavar="WHEN", default="", help="Those that sent since: 2h, yesterday, 2026-12-01."
)
@click.option("--like", metavar="TEXT", default="", help="Those with this in their name: bob, @example.org.")
@click.option(
    "--sort",
    type=click.Choice(ORDERS),
    default="user",
    show_default=True,
    help="By name, last mail, messages, or how long they are in their tier.",
)
@click.option(
    "-n", "--limit", type=click.IntRange(1, MOST), default=50, show_default=True, help="At most so many."
)
@json_option
@pass_session
def list_users(
    session: Session, tier: str, suspended: bool, seen_since: str, like: str, sort: str, limit: int
) -> None:
    """List accounts: those that have sent, that were named by hand, or that are members of a tier.

    All filters that are given must fit. All accounts at once: 'policyctl user export'.
    """
    from policyd.cli.import_journal import take_back_unfinished
    from policyd.store import account_rows

    take_back_unfinished(session)
    tiers = session.config.tiers
    if tier:
        tier_named(session, tier)
    like = fold(like.strip())
    with session.reading() as connection:
        times = Times.of(connection)
        since = _since(times, seen_since) if seen_since else 0
        found = account_rows.listed(
            connection,
            tiers,
            times.now,
            tier=tier,
            suspended=suspended,
            seen_since=since,
            like=like,
            order=sort,
            limit=limit + 1,
        )
        if len(found) <= limit and not (suspended or since):
            found += _members(tiers, account_rows.missing(connection, _named(tiers, tier, like)))
    session.show(
        [_record(row, tiers, times) for row in found[:limit]],
        ("user", "tier", "by", "since", "last mail", "messages", "suspended until", "note"),
        [
            (
                row.user,
                *_tier(row, tiers, times),
                times.text(row.tier_since),
                times.text(row.last_at),
                row.messages,
                _suspended(row, times),
                row.note,
            )
            for row in found[:limit]
        ],
        "no such account",
    )
    if len(found) > limit:
        session.note(f"there are more than {limit}; see --limit, or 'policyctl user export' for all")


def _since(times: Times, text: str) -> int:
    from policyd.cli.when import parse_past

    now = datetime.fromtimestamp((times.now + times.ahead) / 1000).astimezone()
    with usage_errors("--seen-since"):
        return max(1, int(parse_past(text, now).timestamp() * 1000) - times.ahead)


def _named(tiers: Tiers, tier: str, like: str) -> list[str]:
    """The logins that the configuration names as members, of one tier or all."""
    named = {
        member
        for each in tiers.all.values()
        for member in each.members
        if not member.startswith("@") and like in member
    }
    return sorted(member for member in named if tier in ("", tiers.name_of(member)))


def _members(tiers: Tiers, users: list[str]) -> list[Listed]:
    from policyd.store.account_rows import Listed

    return [Listed(user, "", "", 0, 0, 0, 0, 0, "", 0, 0) for user in users]


def _tier(row: Listed, tiers: Tiers, times: Times) -> tuple[str, str]:
    """The tier in force, and why."""
    account = Account(row.user)
    account.tier, account.tier_by, account.probation_until = row.tier, row.tier_by, row.probation_until
    return account.tier_of(tiers, times.now) or "-", reason_of_tier(account, tiers, times.now)


def _suspended(row: Listed, times: Times) -> str:
    if not row.suspended:
        return ""
    return times.until(row.suspended_until) if row.suspended_until else "released"


def _record(row: Listed, tiers: Tiers, times: Times) -> dict[str, object]:
    tier, reason = _tier(row, tiers, times)
    return {
        "user": row.user,
        "tier": tier if tier != "-" else None,
        "by": reason,
        "since": times.iso(row.tier_since),
        "first_seen": times.iso(row.first_at),
        "last_seen": times.iso(row.last_at),
        "messages": row.messages,
        "suspended": bool(row.suspended),
        "suspended_until": times.iso(row.suspended_until),
        "note": row.note,
    }
